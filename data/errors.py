"""What can go wrong with data, in two sizes."""


class DataError(ValueError):
    """A data set that cannot be used. The message is one line: what, where, what to do about it."""


class BadSample(Exception):
    """One sample that cannot be used: the loader masks its slot and reports the cause.

    Attributes:
        cause: a few words, the same for the same kind of damage, so that causes can be counted.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
