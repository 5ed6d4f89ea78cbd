"""The lock of a run's folder: one command at a time owns the run."""
