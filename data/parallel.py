"""Work on many shards at once, in processes of their own."""

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
    """CPUs that this process may run on (containers and job launchers restrict them, where the system can)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """`work(task)` for every task, in the tasks' order, by at most `workers` processes (one: this very process).

    What `work` raises is raised here, at its task's turn. Then, and when the caller wants no more, all work stops.

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
    except BaseException:  # an interrupt, too: whoever waits should not wait for shards half read
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process: the parent alone has to speak
    cv2.setNumThreads(1)  # the processes share the cores already
