"""Where the time of a step goes: data wait, forward, backward, optimizer, checkpoint stall, and the rest.

On a CPU a phase is timed by the host's clock. On a GPU the host runs ahead of the device: its clock says nothing about
the device's work, and waiting for the device in every step would slow it down. There a phase is the time between two
events in the device's own queue:

    host      wait for a batch   launch forward ...
    queue       E0          E1   kernels ...   E2        forward = E2 - E1,  data wait = E1 - E0

Events are read, without waiting, once the device has passed them, and are then reused. The host is at most a step or
two ahead, so a few events for each phase suffice for a run of any length. While the device still has work, a wait of
the host takes no time between its two events: only the time in which the device is idle counts.

A profiler's trace shows the phases by name (`history/profile/`).
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.profiler import record_function

DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER = "data_wait", "forward", "backward", "optimizer"
CHECKPOINT_STALL = "checkpoint_stall"
PHASES = (DATA_WAIT, FORWARD, BACKWARD, OPTIMIZER, CHECKPOINT_STALL)
STEP, OTHER = "step", "other"
EVALUATION = "evaluation"  # in traces only: it is between steps


class Phases:
    """Sums of the seconds of each phase on this rank.

    Args:
        device: computes the steps.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()  # in the queue's order
        self._free: list[torch.cuda.Event] = []

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Count the time of the block as `phase`, unless it raises. Phases must not overlap."""
        with record_function(phase):
            if self._on_gpu:
                begin, end = self._event(), self._event()
                begin.record()
                yield
                end.record()
                self._pending.append((phase, begin, end))
                self._collect()
            else:
                began = time.perf_counter()
                yield
                self._seconds[phase] += time.perf_counter() - began

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere, while the device was idle."""
        self._seconds[phase] += seconds

    def totals(self) -> dict[str, float]:
        """Seconds by phase since the start, of the work that the device has finished. Does not wait."""
        self._collect()
        return dict(self._seconds)

    def since(self, earlier: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase since `totals` returned `earlier`."""
        return {phase: now - earlier[phase] for phase, now in self.totals().items()}

    def _event(self) -> torch.cuda.Event:
        return self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)

    def _collect(self) -> None:
        while self._pending and self._pending[0][2].query():
            phase, begin, end = self._pending.popleft()
            self._seconds[phase] += begin.elapsed_time(end) / 1000.0  # from milliseconds
            self._free += (begin, end)


def per_step(spent: Mapping[str, float], *, seconds: float, steps: int) -> dict[str, float]:
    """Seconds per step: the whole as `step`, each phase, and the rest as `other`.

    Args:
        spent: seconds by phase.
        seconds: wall time of all `steps` steps, with checkpoint stalls and without evaluations.
    """
    split = {phase: spent[phase] / steps for phase in PHASES}
    rest = seconds / steps - sum(split.values())
    return {STEP: seconds / steps, **split, OTHER: max(0.0, rest)}  # the two clocks differ by rounding
