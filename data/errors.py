"""What can go wrong with data, in two sizes."""


class DataError(ValueError):
    """A data set that cannot be used. The message is one line: what, where, what to do about it."""


class Unreadable(DataError):
    """A shard that cannot be read, or is not what was indexed. Names it.

    Args:
        away: whether its store did not answer, and may do so later.
    """

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


class Cause:
    """Why samples cannot be used: the same few words for the same kind of damage, so that causes can be counted."""

    EMPTY = "empty image"
    UNDECODABLE = "undecodable image"
    HUGE = "absurd dimensions"
    NO_IMAGE = "no image"
    NO_LABEL = "no label"
    BAD_LABEL = "unreadable label"
    OUTSIDE = "label outside the classes"
    SEVERAL = "several labels"
    CUT_SHORT = "shard cut short"
    UNREADABLE = "unreadable shard"


class BadSample(Exception):
    """One sample that cannot be used: the loader masks its slot and reports the cause.

    Attributes:
        cause: one of `Cause`.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
