"""Work on several shards at once, each in a process of its own, if that ends sooner.

Processes and clusters take seconds to start. So one process begins, and measures how long its calls take; once it would
need more time for the rest than the others with their start, they are started. Small work never starts them.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context
from typing import TypeVar

import cv2

PROCESS_SECONDS = 3.0  # until new processes have started and imported what they need

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cpus() -> int:
    """CPUs that this process may run on. Containers and job launchers restrict them on some systems."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pace:
    """The time that one process takes for calls, and whether several processes would end the rest of them sooner.

    Args:
        start_seconds: until the other processes are ready. 0: they are always sooner.
        workers: their number.
    """

    def __init__(self, start_seconds: float, workers: int) -> None:
        self._start_seconds, self._workers = start_seconds, workers
        self._seconds, self._calls = 0.0, 0

    def timed(self, call: Callable[[], Result]) -> Result:
        """The result of a call, whose time counts."""
        began = time.monotonic()
        result = call()
        self._seconds += time.monotonic() - began
        self._calls += 1
        return result

    def others_are_sooner(self, left: int) -> bool:
        """Whether the other processes, with their start, take less time for the `left` calls than this one alone."""
        if self._workers < 2 or left < 2:
            return False
        alone = left * self._seconds / max(self._calls, 1)
        return not self._start_seconds or self._start_seconds + alone / min(self._workers, left) < alone


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """`work(task)` for every task, in the tasks' order, by this process, and if that ends sooner by `workers` others.

    An exception of `work` is raised here when its task's turn comes. All work stops then, and also when the caller
    stops iterating.

    Raises:
        ChildProcessError: a process was killed.
    """
    pace, done = Pace(PROCESS_SECONDS, min(workers, usable_cpus())), 0
    while done < len(tasks) and not pace.others_are_sooner(len(tasks) - done):
        yield pace.timed(partial(work, tasks[done]))
        done += 1
    if done == len(tasks):
        return
    others = set(active_children())
    # Fresh processes: a fork would copy fsspec's event loop without its thread.
    pool = ProcessPoolExecutor(min(workers, len(tasks) - done), mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield from pool.map(work, tasks[done:])
    except BrokenProcessPool as error:
        raise ChildProcessError("a worker process was killed, perhaps for lack of memory: try fewer workers") from error
    except BaseException:  # also an interrupt: end at once, not when the present shards are read
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process; only the parent reports it
    cv2.setNumThreads(1)  # the processes already use all cores
