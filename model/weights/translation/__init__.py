"""From the names, layouts and preprocessing of other libraries to ours, and back."""
