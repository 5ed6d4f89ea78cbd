"""A trace of a few steps, and the page that sums it up."""
