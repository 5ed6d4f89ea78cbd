"""The progress of a run: a bar on a terminal, a line every few seconds in a log."""

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

import ray
from tqdm import tqdm

from data.quantities import rate
from orchestrator.cluster.board import Progress
from orchestrator.redact import redact_text
from orchestrator.wording import count, duration

LOG_SECONDS = 5.0  # between two lines
PATIENT_SECONDS = 20.0  # without workers, before the display says what is missing


@dataclass
class Display:
    """Draws a board's progress until stopped; a bar if `stream` is a terminal, else lines.

    `missing` returns what the cluster lacks for the workers to start, in words; empty if nothing.
    """

    board: Any
    name: str
    missing: Callable[[], str] = lambda: ""
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def __enter__(self) -> "Display":
        self._stop = threading.Event()
        self._heard = False  # whether the board answered the last time
        self._trained = time.monotonic()  # when workers last trained; before that, the start

        self._bar: tqdm | None = None
        self._last_line = 0.0  # when it was printed
        self._last_shown = ""

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
            self._heard = False  # say it once, and not while the board is starting
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
    known = "" if math.isnan(p.loss) else f"loss {p.loss:.4f}, {rate(p.rate, 'images')}, MFU {p.mfu:.1%}, "
    return known + count(p.workers, "worker")
