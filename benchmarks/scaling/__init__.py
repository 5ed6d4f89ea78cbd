"""A step on up to thousands of accelerators, on paper."""
