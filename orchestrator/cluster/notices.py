"""Notices that this attempt has to end, and the common step at which all workers act on them.

    a node is being drained ──> Ray marks every worker ─┐
    SIGTERM to one worker ──────────────────────────────┼──> agree(): all ranks, same step ──> save ──> PlannedExit
    another number of workers is wanted ──> rank 0 ─────┤
    SIGTERM to the command ──> the board ──> rank 0 ────┘ (then the run ends)

A notice reaches the ranks at different moments, and if one rank left alone, the others would wait in a collective. So
every step takes the maximum of each flag over all ranks. On a GPU the result is read one step late, when it has long
arrived: the host never waits for the device.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

from orchestrator.cluster.board import END

if TYPE_CHECKING:
    import torch  # where it is used: the driver imports this file, and needs no torch

Item = TypeVar("Item")

TERMINATED = 143  # exit code of a process that SIGTERM ended, as in a shell


class Reason(Enum):
    """Why an attempt ends; if several apply, the first in this order is reported."""

    END = "the command received SIGTERM"
    PREEMPTION = "a node is being taken away"
    TERMINATION = "a worker received SIGTERM"
    RESIZE = "the number of workers changes"


class PlannedExit(Exception):
    """The planned end of an attempt: everything is saved, and Ray Train starts the workers again."""


class EvaluationCutOff(Exception):
    """A notice came during work that can be repeated later, such as an evaluation."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


_terminated = threading.Event()


class AnswerSigterm(WorkerCallback):
    """Makes SIGTERM a notice in every worker, for `grace` seconds. A second SIGTERM ends the process at once.

    Args:
        grace: `cluster.preemption_grace`.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace

    def after_init_train_context(self) -> None:
        """Called by Ray Train in the worker's main thread, where Python takes signal handlers."""
        _terminated.clear()
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if _terminated.is_set():
            os._exit(TERMINATED)
        _terminated.set()
        timer = threading.Timer(self._grace, os._exit, (TERMINATED,))
        timer.daemon = True
        timer.start()


class Notices:
    """One rank's notices and the agreement over all ranks.

    Args:
        device: where collectives take place.
        wanted: the board's answer to this rank, as `Reporter.wanted` gives it.
    """

    def __init__(self, device: "torch.device", wanted: Callable[[], int]) -> None:
        self._device = device
        self._wanted = wanted
        self._end = False
        self._resize = False
        self._agreed: tuple[torch.Tensor, torch.cuda.Event] | None = None  # of the previous step, on a GPU

    def agree(self) -> Reason | None:
        """Why the attempt ends now, the same on all ranks; None to go on. Collective, once a step on every rank."""
        import torch
        import torch.distributed as dist

        flags = torch.tensor(self._here(), dtype=torch.int32)
        if self._device.type == "cpu":
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            return _first(flags.tolist())
        found = self._read()
        there = flags.pin_memory().to(self._device, non_blocking=True)
        dist.all_reduce(there, dist.ReduceOp.MAX)
        back = torch.empty_like(flags, pin_memory=True)
        back.copy_(there, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._agreed = (back, event)
        return found

    def check_each(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, as many on every rank, with an agreement before each.

        Raises:
            EvaluationCutOff: there is a notice.
        """
        for item in items:
            if reason := self.agree():
                raise EvaluationCutOff(reason)
            yield item

    def _here(self) -> list[int]:
        # Ray's public `get_preemption_info` is a barrier through an actor at each call; this is the value behind it.
        marked = get_train_context().preemption_context.preemption_info is not None
        wanted = self._wanted()
        self._end |= wanted == END
        self._resize |= wanted > 0
        return [int(self._end), int(marked), int(_terminated.is_set()), int(self._resize)]

    def _read(self) -> Reason | None:
        if self._agreed is None:
            return None
        flags, event = self._agreed
        event.synchronize()
        return _first(flags.tolist())


def _first(flags: Sequence[int]) -> Reason | None:
    return next((reason for reason, flag in zip(Reason, flags, strict=True) if flag), None)
