"""When a store does not answer: how long to wait for a request, and when to make it again.

Requests fail, stall and come back short; who tries again:

- gcsfs (6 times) and s3fs with botocore (5 times each) repeat what a server answers with 5xx or "slow down", and broken
  connections, with backoff of their own. So do their streaming writes, part by part. https:// repeats nothing.
- `patiently`, here, gives every request a time limit, their repeats included: REQUEST_SECONDS plus the time that its
  bytes take at SLOWEST. What runs into it is cancelled, its connection closed. It and what they gave up is tried
  again, at most ATTEMPTS times and never begun again after PATIENCE seconds, with random waits that double: their
  repeats and ours together end within PATIENCE and one time limit. Writes that put a whole object are repeated
  whole. Files that are missing or not ours to read, wrong names and full disks are never tried again.
- Work that can wait for longer, such as an upload beside training, is given more patience by its caller.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

import fsspec
import tenacity

T = TypeVar("T")

REQUEST_SECONDS = float(os.environ.get("DATA_REQUEST_SECONDS", "20"))  # before the first byte counts
SLOWEST = 1e6  # bytes a second that a request must bring at the least
ATTEMPTS = 8
PATIENCE = 60.0  # seconds after which nothing is tried again
FIRST_WAIT, LONGEST_WAIT = 0.4, 20.0  # upper ends of the random waits, seconds
TRANSIENT_STATUS = frozenset([408, 425, 429])  # of the 4xx answers, those that another try may change
FINAL_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
    TypeError,
    ImportError,
    NotImplementedError,
)
FINAL_NUMBERS = frozenset(  # s3fs says with EINVAL, EPERM and EMSGSIZE that a request makes no sense
    [
        errno.EINVAL,
        errno.EPERM,
        errno.EMSGSIZE,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EFBIG,
    ]
)
FINAL_NAMES = frozenset(  # by name, since s3fs is an extra
    ["NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "DefaultCredentialsError"]
)


class ShortRead(OSError):
    """Fewer bytes came than the object has there."""


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    status = getattr(error, "status", None) or getattr(error, "code", None)  # aiohttp's name, and gcsfs's
    if str(status).isdigit() and 400 <= int(str(status)) < 500:
        return int(str(status)) in TRANSIENT_STATUS
    if isinstance(error, FINAL_ERRORS) or type(error).__name__ in FINAL_NAMES:
        return False
    if isinstance(error, OSError) and (error.errno in FINAL_NUMBERS or str(error).startswith("Forbidden")):
        return False  # gcsfs says "Forbidden: ..." with a plain OSError
    return isinstance(error, Exception)


def patiently(
    work: Callable[[], T],
    *,
    attempts: int | None = None,
    on_retry: Callable[[], object] | None = None,
    patience: float | None = None,
    until: threading.Event | None = None,
) -> T:
    """The result of `work()`, tried again while it fails for reasons that may pass. It may be carried out repeatedly.

    Args:
        attempts: how often at most. Default: ATTEMPTS, or without limit if `patience` is given.
        on_retry: called before each further try.
        patience: seconds after which nothing is tried again. Default: PATIENCE.
        until: once set, nothing is tried again, and a wait before the next try ends.

    Raises:
        Whatever the last try raised.
    """

    def before_sleep(_: tenacity.RetryCallState) -> None:
        if on_retry is not None:
            on_retry()

    stop: tenacity.stop.stop_base = tenacity.stop_before_delay(PATIENCE if patience is None else patience)
    if attempts is not None or patience is None:
        stop = tenacity.stop_after_attempt(attempts or ATTEMPTS) | stop
    if until is not None:
        stop = tenacity.stop_when_event_set(until) | stop
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        stop=stop,
        sleep=tenacity.nap.sleep if until is None else tenacity.sleep_using_event(until),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        before_sleep=before_sleep,
        reraise=True,
    )
    return retrying(work)


def limit(length: int) -> float:
    """Seconds that a request about `length` bytes may take."""
    return REQUEST_SECONDS + length / SLOWEST


def limited(fs: fsspec.AbstractFileSystem, length: int = 0) -> dict[str, float]:
    """The time limit as an option of a file system's method: those of object stores have it, local ones do not."""
    return {"timeout": limit(length)} if fs.async_impl else {}
