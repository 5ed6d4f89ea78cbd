"""Weights of Vision Transformers in files: ours, the authors', and those of other libraries."""
