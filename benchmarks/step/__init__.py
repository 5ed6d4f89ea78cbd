"""The speed of the training step, compared with other libraries: `python -m benchmarks.step`."""
