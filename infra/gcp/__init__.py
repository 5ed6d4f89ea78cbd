"""A cluster on Google Compute Engine."""
