"""A cluster on one machine that grows and shrinks, and what tests and benchmarks need beside it: stores, ranks."""
