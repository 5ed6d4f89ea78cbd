"""A run that is struck again and again, and what it lost."""
