"""Data sets that `python -m data pack SOURCE DEST` knows how to get, by name."""

from collections.abc import Callable

from data.sources.digits import pack_digits

SOURCES: dict[str, Callable[[str, bool], bool]] = {"digits": pack_digits}
