"""One command a claim: `python -m benchmarks.NAME`."""
