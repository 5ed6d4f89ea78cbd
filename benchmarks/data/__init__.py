"""The speed of the data path, compared with other libraries: `python -m benchmarks.data`."""
