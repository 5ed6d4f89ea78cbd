"""What a whole job costs beyond its training steps: `python -m benchmarks.overhead`."""
