"""How soon a run takes its first step, and its next one after a worker was killed."""
