"""Workers that hang: stopped, or waiting in a collective that never ends.

Every worker beats when it trains a step or measures a batch (`Heartbeat`). The board that holds the progress notes the
beats, and Ray Train's controller looks at the board (`Watchdog`). It kills a worker without a beat for
`cluster.hang_timeout`; Ray Train then restarts the group, as after any other death of a worker.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.board import START_SECONDS

ANSWER_SECONDS = 10.0  # longest answer of a process that is not stopped

Item = TypeVar("Item")

log = logging.getLogger(__name__)


class Heartbeat:
    """One worker's heartbeat.

    Args:
        board: the progress actor.
        timeout: `cluster.hang_timeout`; beats are sent about twenty times as often, at least every 30 s.
    """

    def __init__(self, board: Any, rank: int, timeout: float) -> None:
        self._board = board
        self._rank = rank
        self._every = min(30.0, timeout / 20)
        self._last = float("-inf")

    def beat(self) -> None:
        """Report progress of this worker, unless it has just done so."""
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._board.beat.remote(self._rank)

    def around(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with a beat before each."""
        for item in items:
            self.beat()
            yield item

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Beat from a thread, around work that may take long, such as waiting for an upload."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._every):
                self._board.beat.remote(self._rank)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


class Watchdog(WorkerGroupCallback):
    """Runs in Ray Train's controller, after each of its polls.

    Args:
        board: the progress actor.
        timeout: `cluster.hang_timeout`.
    """

    def __init__(self, board: Any, timeout: float) -> None:
        self._board = board
        self._timeout = timeout
        self._workers: dict[int, Any] = {}
        self._looked = 0.0
        self._started = 0.0

    def after_worker_group_start(self, worker_group: Any) -> None:
        """A new group: the clock starts for all of its workers."""
        self._workers = {worker.distributed_context.world_rank: worker for worker in worker_group.get_workers()}
        self._board.new_group.remote(len(self._workers))
        self._looked = self._started = time.monotonic()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Kill the workers without a beat for too long; only those that do not answer, if there are any."""
        now = time.monotonic()
        if worker_group_status.finished or worker_group_status.errors or now - self._looked < self._timeout / 10:
            return
        self._looked = now
        silence = self._silence()
        silent = [rank for rank, seconds in silence.items() if seconds > self._timeout and rank in self._workers]
        if not silent:
            return
        stopped = [rank for rank in silent if not self._answers(rank)]
        ranks = stopped or silent
        problem = "not answered" if stopped else "made no progress"
        named = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
        self._board.say.remote(
            f"worker {named} has {problem} for {min(silence[rank] for rank in ranks):.0f} s; killing it"
        )
        for rank in ranks:
            self._kill(rank)
            del self._workers[rank]

    def _silence(self) -> dict[int, float]:
        """The board's answer; empty if it does not answer. A new board hears which workers there are."""
        try:
            silence: dict[int, float] = ray.get(self._board.silence.remote(), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError:
            return {}
        if unknown := sorted(self._workers.keys() - silence.keys()):
            allowance = max(0.0, self._started + START_SECONDS - time.monotonic())
            self._board.expect.remote(unknown, allowance)
        return silence

    def _answers(self, rank: int) -> bool:
        """Whether the worker's process answers. If it does, its stacks go into the log."""
        try:
            stacks = ray.get(self._workers[rank].execute_async(_stacks), timeout=ANSWER_SECONDS)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
            return False
        log.warning("worker %d makes no progress here:\n%s", rank, stacks)
        return True

    def _kill(self, rank: int) -> None:
        """SIGKILL from a process on the worker's node: a stopped process reacts to nothing else."""
        metadata = self._workers[rank].metadata
        there = NodeAffinitySchedulingStrategy(metadata.node_id, soft=False)
        ray.remote(num_cpus=0, scheduling_strategy=there)(_kill).remote(metadata.pid)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _stacks() -> str:
    """The stack of every thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
