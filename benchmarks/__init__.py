"""Measurements of what the documentation claims: `python -m benchmarks.NAME`. Imports anything but tests."""
