"""What a run loses that is killed many times: `python -m benchmarks.chaos`."""
