"""The checks of a job that need the world: its places to write, and its sets. `run/inputs.py` makes them."""
