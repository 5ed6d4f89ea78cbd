"""Work on several shards at once, each in a process of its own."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import TypeVar

import cv2

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cpus() -> int:
    """CPUs that this process may run on. Containers and job launchers restrict them on some systems."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """`work(task)` for every task, in the tasks' order, by at most `workers` processes; 1 is this process itself.

    An exception of `work` is raised here when its task's turn comes. All work stops then, and also when the caller
    stops iterating.

    Raises:
        ChildProcessError: a process was killed.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    others = set(active_children())
    # Fresh processes: a fork would copy fsspec's event loop without its thread.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield from pool.map(work, tasks)
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
