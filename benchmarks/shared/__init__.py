"""Code that several benchmarks use. Imports none of them."""
