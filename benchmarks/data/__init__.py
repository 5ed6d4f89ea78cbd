"""How fast the data path is, beside other libraries."""
