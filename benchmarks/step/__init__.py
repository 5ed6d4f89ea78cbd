"""How fast the training step is, beside other libraries."""
