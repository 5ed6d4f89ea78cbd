"""The run's progress actor: where training stands, which workers live, and how many workers there should be.

Rank 0 tells it where training stands, without waiting for it; the driver reads it and draws (`cluster/display.py`).
The actor outlives restarts of the workers, so the progress bar does too. The controller asks it whether workers live
(`cluster/watchdog.py`), whether they got on (`cluster/failures.py`), and has it ask them to save and leave
(`cluster/elastic.py`).

Ray starts the actor again if it dies, and repeats the calls that it had not answered. A stopped one is killed by the
display. What a new one must know, the others tell it again: the display where training stands, the watchdog which
workers there are.
"""

import os
import time
from dataclasses import dataclass, replace

import ray

END = -1
"""The board's answer if the run is to be saved and ended."""

START_SECONDS = 600.0
"""Start-up allowance: how long workers may import, build the model and read a checkpoint before they must beat."""


class Ended(Exception):
    """The command asked the run to end, and everything is saved."""


@dataclass
class Progress:
    """Where training stands. `rate` in images/s, `mfu` a fraction of peak, `seconds_left` NaN before it is known.

    `total_steps` is 0 while no workers train.
    """

    step: int = 0
    total_steps: int = 0
    loss: float = float("nan")
    rate: float = float("nan")
    mfu: float = float("nan")
    seconds_left: float = float("nan")
    note: str = "starting workers"
    workers: int = 0
    first_step: int | None = None
    """Where the present workers began; None before they did."""


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Board:
    """Holds the latest progress, the workers' heartbeats and the messages that the driver has not read yet."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._messages: list[str] = []
        self._said: set[str] = set()
        self._stopped = ""
        self._ended = False
        self._heard: dict[int, float] = {}
        self._workers_wanted = 0
        self._end_wanted = False

    def new_group(self, workers: int) -> None:
        """Workers were started. Nothing is known of them yet, and their first heartbeat may take a while."""
        self._heard = {}
        self.expect(list(range(workers)), START_SECONDS)
        self._progress = replace(self._progress, first_step=None)
        self._workers_wanted = 0
        self._said.clear()

    def expect(self, ranks: list[int], allowance: float) -> None:
        """These workers are there; those without a heartbeat so far have some more seconds for it."""
        for rank in ranks:
            self._heard.setdefault(rank, time.monotonic() + allowance)

    def update(self, progress: Progress) -> int:
        """Replace the progress shown.

        Returns:
            How many workers there should be instead, 0 for as many as there are; or END.
        """
        self._progress = progress
        return END if self._end_wanted else self._workers_wanted

    def group_gone(self) -> None:
        """The workers ended before the run did; others will start once there is room for them."""
        self._progress = replace(self._progress, total_steps=0, note="waiting for workers")

    def beat(self, rank: int) -> None:
        """A heartbeat of a worker."""
        self._heard[rank] = time.monotonic()

    def silence(self) -> dict[int, float]:
        """Seconds since the last heartbeat, by rank; negative while a worker may still be starting."""
        now = time.monotonic()
        return {rank: now - heard for rank, heard in self._heard.items()}

    def steps(self) -> tuple[int, int] | None:
        """(steps done in the run, steps done by the present workers), as of the last update; None if this actor is new
        and has heard of no workers.
        """
        if self._progress.first_step is None:
            return (self._progress.step, 0) if self._heard or self._progress.step else None
        return self._progress.step, self._progress.step - self._progress.first_step

    def want_workers(self, number: int) -> None:
        """Ask the present workers to make room for another number of them."""
        self._workers_wanted = number

    def want_end(self) -> None:
        """Ask the present workers to save and to end the run."""
        self._end_wanted = True

    def say(self, message: str) -> None:
        """A line that the driver prints, once for each start of the workers."""
        if message not in self._said:
            self._said.add(message)
            self._messages.append(message)

    def stop(self, reason: str, *, ended: bool = False) -> None:
        """The workers ended the run themselves; every rank says so.

        Args:
            ended: everything is saved, as the command asked.
        """
        self._stopped = reason
        self._ended = ended

    def is_ended(self) -> bool:
        """Whether the workers saved and ended the run as the command asked."""
        return self._ended

    def stopped(self) -> str:
        """Why the workers ended the run before its end; empty if they did not."""
        return self._stopped

    @ray.method(max_task_retries=0)  # the display asks again; without a cluster, Ray would print a line at each retry
    def read(self) -> tuple[Progress, list[str], int]:
        """The progress, the messages since the last read, and the ID of this actor's process."""
        messages, self._messages = self._messages, []
        return self._progress, messages, os.getpid()
