"""Work spread over processes by Ray: on the present cluster, or else on a private one on this machine. Work that this
process ends sooner by itself starts no Ray.

Ray reads its token authentication from the environment once, at `import ray`, so it is settled before that. Every
cluster that this project starts has a token.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data.clusters import joining
from data.clusters.joining import cluster_is_named
from data.errors import DataError
from data.parallel import Pace, usable_cpus

RAY_SECONDS = 15.0  # until a private cluster has started, and its processes have imported what they need
OWNER = "python -m data"  # in lines about Ray
ROOT = Path(__file__).resolve().parents[1]

Result = TypeVar("Result")


class SizedCalls(Protocol):
    """The arguments of calls, of which the number is known: a list, or `Calls`."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]: ...

    def __len__(self) -> int: ...


class Runner(Protocol):
    """Calls a function once for each tuple of arguments; yields the results as they come."""

    def __call__(self, function: Callable[..., Result], calls: SizedCalls) -> Iterator[Result]: ...


@dataclass(frozen=True)
class Calls:
    """The arguments of calls, `make(number)` for each number: they are made when their turn comes."""

    make: Callable[[int], tuple[Any, ...]]
    numbers: Sequence[int]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return map(self.make, self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def in_process(function: Callable[..., Result], calls: SizedCalls) -> Iterator[Result]:
    """A runner that makes one call after another in this process."""
    for call in calls:
        yield function(*call)


@contextmanager
def session(workers: int) -> Iterator[Runner]:
    """A runner of `workers` calls at a time: Ray tasks of one CPU each, or for 1 this process itself.

    This process begins, and measures how long a call takes. Once Ray with its start would end the rest sooner, the
    runner joins the cluster that RAY_ADDRESS or `ray start` names. If there is none, it starts a quiet local cluster,
    whose tasks are as fast as there are cores, and stops it at the end. It raises DataError if the named cluster does
    not answer.
    """
    if workers == 1:
        yield in_process
        return
    runner = _OnRay(workers)
    try:
        yield runner
    finally:
        runner.close()


def settle_authentication() -> None:
    """Choose the token mode, unless RAY_AUTH_MODE is set. Call it before the first `import ray`."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    if not cluster_is_named():
        # A private cluster gets a token that only its processes know. By default Ray would save one in the home
        # folder, and clusters that are started later would demand it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_MODE"] = "token"  # `ray start` demands a token if this file exists


class _OnRay:
    """Keeps `workers` tasks running and no more: other users may share the cluster."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._connected = False

    def __call__(self, function: Callable[..., Result], calls: SizedCalls) -> Iterator[Result]:
        todo, left = iter(calls), len(calls)
        if not self._connected:
            workers = self._workers if cluster_is_named() else min(self._workers, usable_cpus())
            pace = Pace(RAY_SECONDS, workers)
            while left and not pace.others_are_sooner(left):
                yield pace.timed(partial(function, *next(todo)))
                left -= 1
        first = next(todo, None)
        if first is None:
            return
        self._connect()
        import ray

        task = ray.remote(num_cpus=1)(_single_threaded)
        running: list[Any] = [task.remote(function, first)]
        while True:
            while len(running) < self._workers and (call := next(todo, None)) is not None:
                running.append(task.remote(function, call))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            try:
                yield ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, DataError | OSError):
                    raise error.cause from error
                raise
            except ray.exceptions.RayError as error:
                raise DataError(f"a Ray task was lost ({' '.join(str(error).split())[:300]})") from error

    def close(self) -> None:
        """Leave the cluster. A private one is stopped."""
        if self._connected:
            import ray

            ray.shutdown()

    def _connect(self) -> None:
        settle_authentication()
        import ray  # takes seconds; a set that is complete needs none of it

        if ray.is_initialized():
            return
        joining.check()
        if cluster_is_named():
            joining.join(OWNER, runtime_env={"env_vars": {"PYTHONPATH": _search_path()}})
        else:
            os.environ["PYTHONPATH"] = _search_path()  # the tasks' processes inherit this
            joining.start(OWNER, num_cpus=self._workers)
        self._connected = True


def _single_threaded(function: Callable[..., Result], call: tuple[Any, ...]) -> Result:
    """One call, in a Ray task. OpenCV keeps to one thread, since there are as many tasks as cores."""
    import cv2

    cv2.setNumThreads(1)
    return function(*call)


def _search_path() -> str:
    """PYTHONPATH with the project's folder first: the packages are not installed."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
