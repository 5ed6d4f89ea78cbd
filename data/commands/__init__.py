"""The commands of `python -m data`, one a module: `add(commands)` defines its words, `run` does the work."""
