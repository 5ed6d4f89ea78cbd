"""What the terminal shows of a run: rank 0 reports its progress to the board, without waiting for it."""

import time
from typing import Any

import ray
import torch.distributed as dist

from orchestrator.cluster.board import Progress
from orchestrator.wording import count

SHOW_SECONDS = 0.5
"""Seconds between two updates of the progress bar."""


class Reporter:
    """Every rank has one. Lines come from any rank, except those of `say_once`; progress comes from rank 0.

    Args:
        board: the progress actor.
        total_steps: length of the run.
    """

    def __init__(self, board: Any, total_steps: int) -> None:
        self._board = board
        self._is_first = dist.get_rank() == 0
        self._world = dist.get_world_size()
        self._progress = Progress(total_steps=total_steps, workers=self._world)
        self._shown = float("-inf")
        self._answer: ray.ObjectRef[int] | None = None

    def resume(self, step: int) -> None:
        """The workers train from `step` on."""
        self._progress.step = self._progress.first_step = step
        self._progress.note = ""
        if step:
            self.say_once(
                f"continuing at step {step} of {self._progress.total_steps} on {count(self._world, 'worker')}"
            )
        self.show()

    def stepped(self, step: int) -> None:
        """`step` steps are done."""
        self._progress.step = step
        if time.monotonic() - self._shown > SHOW_SECONDS:
            self.show()

    def trained(self, step: int, *, loss: float, images_per_second: float, mfu: float, seconds_a_step: float) -> None:
        """How training went up to `step`."""
        p = self._progress
        p.loss, p.rate, p.mfu = loss, images_per_second, mfu
        p.seconds_left = (p.total_steps - step) * seconds_a_step
        self.show()

    def note(self, text: str) -> None:
        """What the run does besides training, shown beside the progress; empty when it trains."""
        self._progress.note = text
        self.show()

    def say(self, message: str) -> None:
        """A line on the terminal."""
        self._board.say.remote(message)

    def say_once(self, message: str) -> None:
        """A line on the terminal that every rank has, and rank 0 says."""
        if self._is_first:
            self.say(message)

    def wanted(self) -> int:
        """The board's answer to rank 0's last report: another number of workers than there are, END, or 0 for neither.

        It comes later than the report, and once. Reports again if the last report is older than SHOW_SECONDS.
        """
        wanted = 0
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            wanted, self._answer = self._answered(self._answer), None
        if self._is_first and time.monotonic() - self._shown > SHOW_SECONDS:
            self.show()
        return 0 if wanted == self._world else wanted

    def _answered(self, answer: "ray.ObjectRef[int]") -> int:
        try:
            return int(ray.get(answer))
        except ray.exceptions.RayError:  # the board is being replaced; training goes on
            return 0

    def show(self) -> None:
        """Report the progress now."""
        if self._is_first:
            self._shown = time.monotonic()
            self._answer = self._board.update.remote(self._progress)
