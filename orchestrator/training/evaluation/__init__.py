"""Kind evaluate on a worker: what it measures with, what it counts, and what the counts say."""
