"""Sizes and rates as people read them."""

PREFIXES = ("", "k", "M", "G", "T", "P", "E")  # of 1, 1000, 1000^2 ... bytes


def size(count: float) -> str:
    """Bytes with three digits: 173882 -> '174 kB', 1234567890 -> '1.23 GB', 5 -> '5 B'."""
    power = 0
    while count >= 999.5 and power < len(PREFIXES) - 1:
        count /= 1000
        power += 1
    number = f"{count:.0f}" if count >= 99.95 else f"{count:.3g}"
    return f"{number} {PREFIXES[power]}B"


def rate(each_second: float, unit: str) -> str:
    """(1234.5, 'images') -> '1,234.5 images/s', (0.04321, 'images') -> '0.0432 images/s', (2e6, 'bytes') -> '2 MB/s'"""
    if unit == "bytes":
        return f"{size(each_second)}/s"
    number = f"{each_second:,.1f}" if each_second >= 10 else f"{each_second:.3g}"
    return f"{number} {unit}/s"
