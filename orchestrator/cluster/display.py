"""What the person at the terminal sees: a progress bar on a terminal, one line every few seconds in a log.

Rank 0 tells a small Ray actor where training stands, without waiting for it; the driver reads the actor and draws. The
actor outlives restarts of the workers, so the bar does too. Whoever decides about the workers asks it, too: whether
they live (`cluster/watchdog.py`), whether they got on (`cluster/failures.py`), whether they should save and leave
(`cluster/elastic.py`).
"""

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

import ray
from tqdm import tqdm

from orchestrator.redact import redact_text
from orchestrator.wording import count, duration, rate

LOG_SECONDS = 5.0
PATIENT_SECONDS = 20.0  # before the display asks what a start waits for
START_SECONDS = 600.0  # that workers may take to import, build the model and read a checkpoint, before they must beat


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


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest progress, the workers' signs of life and the messages that nobody has read yet."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._messages: list[str] = []
        self._said: set[str] = set()
        self._stopped = ""
        self._heard: dict[int, float] = {}
        self._first_step: int | None = None
        self._workers_wanted = 0

    def new_group(self, workers: int) -> None:
        """Workers were started. Nothing is known of them yet, and their first sign of life may take a while."""
        self._heard = dict.fromkeys(range(workers), time.monotonic() + START_SECONDS)
        self._first_step = None
        self._workers_wanted = 0
        self._said.clear()

    def update(self, progress: Progress) -> int:
        """Replace the progress shown. Returns how many workers there should be instead; 0 = as many as there are."""
        self._progress = progress
        if self._first_step is None and progress.total_steps:
            self._first_step = progress.step
        return self._workers_wanted

    def group_gone(self) -> None:
        """The workers ended before the run did; others are to come, once there is a place for them."""
        self._progress = replace(self._progress, total_steps=0, note="waiting for workers")

    def beat(self, rank: int) -> None:
        """A worker lives."""
        self._heard[rank] = time.monotonic()

    def silence(self) -> dict[int, float]:
        """Seconds since the last sign of life, by rank; negative while one is still starting."""
        now = time.monotonic()
        return {rank: now - heard for rank, heard in self._heard.items()}

    def steps(self) -> tuple[int, int]:
        """(steps done in the run, steps done by the present workers), as of the last update."""
        if self._first_step is None:
            return self._progress.step, 0
        return self._progress.step, self._progress.step - self._first_step

    def want_workers(self, number: int) -> None:
        """Ask the present workers to make room for another number of them."""
        self._workers_wanted = number

    def say(self, message: str) -> None:
        """A line that the driver prints, once for each start of the workers."""
        if message not in self._said:
            self._said.add(message)
            self._messages.append(message)

    def stop(self, reason: str) -> None:
        """The workers ended the run themselves; every rank says so."""
        self._stopped = reason

    def stopped(self) -> str:
        """Why the workers ended the run before its end; empty if they did not."""
        return self._stopped

    def read(self) -> tuple[Progress, list[str]]:
        """The progress and the messages since the last read."""
        messages, self._messages = self._messages, []
        return self._progress, messages


@dataclass
class Display:
    """Draws a board's progress until stopped; a bar if `stream` is a terminal, else lines.

    `missing` says what the cluster lacks for the workers to start; empty if nothing.
    """

    board: Any
    name: str
    missing: Callable[[], str] = lambda: ""
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __enter__(self) -> "Display":
        self._stop, self._heard = threading.Event(), False
        self._bar: tqdm | None = None
        self._last_line, self._last_shown = 0.0, ""
        self._trained = time.monotonic()  # the last time that workers were seen to train; the start before that
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self._bar is not None:
            self._bar.close()

    def _follow(self) -> None:
        while not self._stop.wait(0.5):
            self._show()
        self._show(final=True)

    def _show(self, final: bool = False) -> None:
        try:
            progress, messages = ray.get(self.board.read.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError) as error:
            if self._heard and not final:
                self._print(f"{self.name}: no progress report ({type(error).__name__})")
            self._heard = False  # say it once; and not while the board is still starting
            return
        self._heard = True
        for message in messages:
            self._print(f"{self.name}: {message}")
        if not progress.total_steps:
            if final:
                return
            waited = time.monotonic() - self._trained > PATIENT_SECONDS
            missing = self.missing() if waited else ""
            self._line(f"{self.name}: {progress.note}{missing and ': '}{missing}", force=False)
            return
        self._trained = time.monotonic()
        if self.stream.isatty():
            self._draw(progress)
        else:
            self._line(f"{self.name}: {describe(progress)}", force=final)

    def _draw(self, p: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(total=p.total_steps, initial=p.step, desc=self.name, unit="step", file=self.stream)
        self._bar.n = p.step
        self._bar.set_postfix_str(f"{_numbers(p)}, {p.note}" if p.note else _numbers(p))

    def _line(self, line: str, *, force: bool) -> None:
        now = time.monotonic()
        if line != self._last_shown and (force or now - self._last_line >= LOG_SECONDS):
            self._last_line, self._last_shown = now, line
            self._print(line)

    def _print(self, line: str) -> None:
        line = redact_text(line)
        if self._bar is not None:
            self._bar.write(line, file=self.stream)
        else:
            print(line, file=self.stream, flush=True)


def describe(p: Progress) -> str:
    """One line: step, share, loss, rate, MFU, time left."""
    left = "" if math.isnan(p.seconds_left) else f", {duration(p.seconds_left)} left"
    note = f", {p.note}" if p.note else ""
    return f"step {p.step:,}/{p.total_steps:,} ({p.step / p.total_steps:.0%}), {_numbers(p)}{left}{note}"


def _numbers(p: Progress) -> str:
    known = "" if math.isnan(p.loss) else f"loss {p.loss:.4f}, {rate(p.rate)}, MFU {p.mfu:.1%}, "
    return known + count(p.workers, "worker")
