"""A checkpoint as a model: its weights as whole tensors, for other networks and other programs."""
