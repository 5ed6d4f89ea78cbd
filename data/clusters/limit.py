"""A limit of time for calls that cannot be interrupted, and the end of the processes that they had started."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

COMMAND_WRONG = 2
"""Exit code of a command that cannot do what it was asked."""


@contextmanager
def ends_within(seconds: float, line: Callable[[], str]) -> Iterator[None]:
    """The block takes at most `seconds`, and leaves no process behind if it fails.

    If it takes longer, this process prints `line()` on stderr and ends with code 2. Ray waits for its processes in C++,
    where no exception and no signal interrupts it.
    """
    before = _descendants()
    done = threading.Event()

    def watch() -> None:
        if done.wait(seconds):
            return
        text = line()
        if done.is_set():
            return
        _kill(_descendants())
        sys.stdout.flush()
        print(f"error: {text}", file=sys.stderr, flush=True)
        os._exit(COMMAND_WRONG)

    watcher = threading.Thread(target=watch, name="limit", daemon=True)
    watcher.start()
    try:
        yield
    except BaseException:
        _kill(_descendants() - before)
        raise
    finally:
        done.set()


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _kill(processes: set[psutil.Process]) -> None:
    """SIGKILL, and wait for the end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)
