"""Time limits and retries of requests to a store: requests fail, stall and come back short.

- gcsfs (6 times) and s3fs with botocore (5 times each) retry answers of 5xx or "slow down" and broken connections, with
  a backoff of their own. So do their streaming writes, part by part. https:// has no retries of its own.
- `patiently`, here, gives every request a time limit, which includes these retries: REQUEST_SECONDS plus the time of
  its bytes at SLOWEST. At the limit the request is cancelled and its connection closed. Requests that reached the limit
  or that the libraries gave up are retried: at most ATTEMPTS times, with random waits that double, and no try begins
  after PATIENCE seconds. So all retries together end within PATIENCE and one time limit. A write of a whole object is
  retried as a whole. Missing files, missing rights, wrong names and full disks are never retried.
- Work that can wait for longer, such as an upload beside training, has more patience from its caller.
"""

import errno
import os
import threading
from collections.abc import Callable
from typing import TypeVar

import fsspec
import tenacity

T = TypeVar("T")

REQUEST_SECONDS = float(os.environ.get("DATA_REQUEST_SECONDS", "20"))  # time limit of a request of 0 bytes
SLOWEST = 1e6  # bytes a second: the least that a request must bring
ATTEMPTS = 8
PATIENCE = 60.0  # seconds; no try begins after that
FIRST_WAIT, LONGEST_WAIT = 0.4, 20.0  # seconds: upper ends of the first random wait and of all of them
TRANSIENT_STATUS = frozenset([408, 425, 429])  # the 4xx answers that may be different at the next try
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
FINAL_NUMBERS = frozenset(  # s3fs raises EINVAL, EPERM and EMSGSIZE for requests that make no sense
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
FINAL_NAMES = frozenset(  # by name, since s3fs is an optional package
    ["NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "DefaultCredentialsError"]
)


class ShortRead(OSError):
    """Fewer bytes came than the object has in that range."""


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    status = getattr(error, "status", None) or getattr(error, "code", None)  # aiohttp's name, and gcsfs's
    if str(status).isdigit() and 400 <= int(str(status)) < 500:
        return int(str(status)) in TRANSIENT_STATUS
    if isinstance(error, FINAL_ERRORS) or type(error).__name__ in FINAL_NAMES:
        return False
    if isinstance(error, OSError) and (error.errno in FINAL_NUMBERS or str(error).startswith("Forbidden")):
        return False  # gcsfs raises a plain OSError "Forbidden: ..."
    return isinstance(error, Exception)


def patiently(
    work: Callable[[], T],
    *,
    attempts: int | None = None,
    on_retry: Callable[[], object] | None = None,
    patience: float | None = None,
    until: threading.Event | None = None,
) -> T:
    """The result of `work()`, which is retried while its errors may pass. So it may run several times.

    Args:
        attempts: most tries. Default: ATTEMPTS, or no limit if `patience` is given.
        on_retry: called before each further try.
        patience: seconds; no try begins after that. Default: PATIENCE.
        until: once it is set, there are no more tries, and a wait before the next one ends.

    Raises:
        The error of the last try, of any type.
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
    """The time limit as an option of a file system's method. Object stores have this option, local disks do not."""
    return {"timeout": limit(length)} if fs.async_impl else {}
