"""Kinds of failures of the workers: a planned exit, an infrastructure fault, or a fault of the job itself.

    planned          every worker saved and left (`cluster/notices.py`): start again, at no cost
    infrastructure   a process or node is gone, a connection broke, a worker hung, a store does not answer: start again,
                     `cluster.max_failures` times
    the job          a bug, bad data, no memory. It depends on the step, so it comes again: give up with the cause, at
                     once if the workers had done no step, else when it comes a second time without progress

A fault of the job on one rank makes the other ranks fail in their collectives. So one such error among many decides.
"""

import re
import sys
from pkgutil import resolve_name
from typing import Any

import ray
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from data.errors import Unreadable
from orchestrator.cluster.notices import PlannedExit
from orchestrator.redact import redact_text
from orchestrator.wording import one_line

BOARD_SECONDS = 90.0  # to answer; a new one takes its place within a minute

_INFRASTRUCTURE = (ray.exceptions.RayError, RayTrainError, OSError)
# Errors that PyTorch raises as plain RuntimeErrors when another worker, a link or a device is gone.
_INFRASTRUCTURE_WORDS = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|closed by peer|socket|broken pipe|timed? ?out|store->"
    r"|ECC error|NVLink|unspecified launch failure|hardware|fell off the bus",
    re.IGNORECASE,
)
_NO_MEMORY = re.compile(r"node running low on memory")  # Ray's memory monitor killed the worker
# What it calls GB is GiB.
_NODE_MEMORY = re.compile(r"Memory on the node \(IP: ([^,)]+).*? was ([\d.]+)GB used / ([\d.]+)GB limit")
_WORKER_MEMORY = re.compile(r"task name=RayTrainWorker[^)]*actual memory used=([\d.]+)GB")
_DEATH = re.compile(r"because (its \w+(?: process)? has died|[^.]*preempt[^.]*)")


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's policy, with a decision for each of the three kinds.

    Args:
        config: how many infrastructure failures are tolerated.
        board: the progress actor, which knows how many steps the workers have done.
    """

    def __init__(self, config: FailureConfig, board: Any) -> None:
        super().__init__(config)
        self._board = board
        self._last: tuple[type, int] | None = None  # the previous fault of the job: its class and step

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Called by Ray Train's controller after each failure."""
        if isinstance(training_failed_error, WorkerGroupError):
            failures = training_failed_error.worker_failures
            if any(isinstance(error, PlannedExit) for error in failures.values()):
                return FailureDecision.RETRY
            if (steps := self._steps()) is None:
                return super().make_decision(training_failed_error)
            step, done = steps
            fault = own_fault(failures, started=done > 0)
            if fault is not None:
                before, self._last = self._last, (type(fault), step)
                if done == 0 or (before is not None and before[0] is type(fault) and step <= before[1]):
                    return FailureDecision.RAISE
        return super().make_decision(training_failed_error)

    def _steps(self) -> tuple[int, int] | None:
        """(steps done in the run, by the workers that failed); None if the board does not know."""
        try:
            steps: tuple[int, int] | None = ray.get(self._board.steps.remote(), timeout=BOARD_SECONDS)
        except ray.exceptions.RayError:
            return None
        return steps


def own_fault(failures: dict[int, Exception], *, started: bool) -> Exception | None:
    """The first error that is a fault of the job itself; None if all are infrastructure faults.

    Args:
        failures: by rank.
        started: whether these workers have done a step. If not, running out of memory is a fault of the job, too,
            even if the system killed the process.
    """
    for _, error in sorted(failures.items()):
        if isinstance(error, MemoryError) or _is_of_torch(error, "OutOfMemoryError"):
            return error
        if isinstance(error, Unreadable) and error.away:
            continue
        if isinstance(error, _INFRASTRUCTURE) or _is_of_torch(error, "distributed.DistError"):
            if not started and _NO_MEMORY.search(str(error)):
                return error
            continue
        if isinstance(error, RuntimeError) and _INFRASTRUCTURE_WORDS.search(str(error)):
            continue
        return error
    return None


def _is_of_torch(error: Exception, name: str) -> bool:
    """Whether an error is of a class of torch. Torch is loaded if there is such an error, and not loaded to ask."""
    return "torch" in sys.modules and isinstance(error, resolve_name(f"torch:{name}"))


def died(error: BaseException) -> bool:
    """Whether processes died, and not a worker's code: such a worker says nothing any more."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    return not failures or any(
        isinstance(failure, ray.exceptions.RayError | RayTrainError) for failure in failures.values()
    )


def root_cause(error: BaseException) -> str:
    """One line: the fault of the job if there is one, else the failure of the first worker."""
    failures: dict[int, Any] = getattr(error, "worker_failures", None) or {}
    cause: Any = error
    if failures:
        cause = own_fault(failures, started=False) or failures[min(failures)]
    cause = getattr(cause, "controller_failure", cause)
    cause = getattr(cause, "health_check_failure", cause)
    cause = getattr(cause, "_base_exc", cause)
    text = redact_text(one_line(cause))
    if isinstance(cause, ray.exceptions.RayError) and _NO_MEMORY.search(text):
        return _out_of_memory(text)
    if isinstance(cause, ray.exceptions.RayActorError):
        death = _DEATH.search(text)
        return death[1] if death else "it died"
    kind = type(cause)
    said_plainly = kind.__module__.startswith(("orchestrator", "data", "model")) and text
    return text if said_plainly else f"{kind.__name__}: {text}".rstrip(": ")


def _out_of_memory(text: str) -> str:
    """The essence of Ray's page about memory: how much was used, how much by a worker, and what to do."""
    node, worker = _NODE_MEMORY.search(text), _WORKER_MEMORY.search(text)
    used = f" ({node[2]} of {node[3]} GiB in use on {node[1]})" if node else ""
    held = f", of which a worker held {worker[1]} GiB" if worker else ""
    return (
        f"the node ran out of memory{used}{held}: use a smaller parallel.micro_batch, fewer workers a node, or a node"
        " with more memory"
    )
