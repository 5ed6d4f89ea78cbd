"""The commands of `python -m model`, one a module: `add(commands)` defines its arguments, `run` does the work."""
