"""One run: its folder, its inputs, its calendar and its totals. Imports `job`, `redact` and `wording`,
and neither torch nor Ray.
"""
