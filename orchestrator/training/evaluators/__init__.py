"""One module a measurement; the table that names them is in `table.py`."""
