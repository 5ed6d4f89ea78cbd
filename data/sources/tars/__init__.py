"""Tars as sources: what lies in them, keys for it, and identical images."""
