"""Which class an image belongs to: numbers of names and labels, and the split of a set in proportion to its classes."""
