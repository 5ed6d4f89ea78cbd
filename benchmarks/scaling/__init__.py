"""The time of a step on up to thousands of accelerators, calculated: `python -m benchmarks.scaling`."""
