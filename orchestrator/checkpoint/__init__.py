"""A run's state on disk: written during training, completed by its manifest, restored on any number of workers.
Imports `engine`, but neither Ray nor MLflow.
"""
