"""Errors of a whole data set, and causes for a single sample."""


class DataError(ValueError):
    """A data set that cannot be used. The message is one line: what, where, what to do about it."""


class Unreadable(DataError):
    """A shard that cannot be read, or is not as indexed. The message names the shard.

    Args:
        away: whether its store did not answer: it may answer later.
    """

    def __init__(self, message: str, *, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


class Cause:
    """Why a sample cannot be used. Equal damage has equal words, so that causes can be counted."""

    EMPTY = "empty image"
    UNDECODABLE = "undecodable image"
    HUGE = "absurd dimensions"
    LONG_IMAGE = "image file too long"
    NOT_DRAWN = "too large to be drawn"
    NO_RANGE = "pixel values without a range"
    NO_IMAGE = "no image"
    NO_LABEL = "no label"
    BAD_LABEL = "unreadable label"
    OUTSIDE = "label outside the classes"
    SEVERAL = "several labels"
    CUT_SHORT = "shard cut short"
    UNREADABLE = "unreadable shard"
    MANY_LABELS = "too many labels"
    LONG_LABEL = "label field too long"
    HUGE_LABEL = "absurd class number"
    NO_SUCH_NAME = "unknown class name"


class BadSample(Exception):
    """A sample that cannot be used. The loader masks its slot and reports the cause.

    Attributes:
        cause: one of `Cause`.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class NoCluster(DataError):
    """A Ray cluster that cannot be joined or started. The message says why and what to do, and not where."""
