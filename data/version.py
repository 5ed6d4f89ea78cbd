"""The program's version, which an index keeps as `packed_by`."""

VERSION = "0.1.0"  # that of pyproject.toml, which need not lie beside the packages
