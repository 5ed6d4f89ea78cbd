"""Whether any way to compute the step changes the training: `python -m benchmarks.numerics`."""
