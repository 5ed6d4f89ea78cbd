"""Numbers and errors as people read them."""


def duration(seconds: float) -> str:
    """3725 -> '1h02m', 65 -> '1m05s', 5 -> '5s'; days from 48 hours on."""
    whole = round(seconds)
    if whole >= 48 * 3600:
        return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def count(number: int, thing: str) -> str:
    """(1, 'worker') -> '1 worker', (2, 'worker') -> '2 workers'."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def one_line(text: object) -> str:
    """An error, a docstring or another text on one line, with single spaces."""
    return " ".join(str(text).split())
