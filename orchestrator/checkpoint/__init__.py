"""A run's state on disk: written beside training, complete with its manifest, read back at any number of workers.
Imports `engine`, and neither Ray nor MLflow.
"""
