"""The commands of `python -m data`, one a module: `add(commands)` defines its options, `run` does the work.
Imports every wing but `loading`."""
