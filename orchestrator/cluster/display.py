"""The progress of a run: a bar on a terminal, a line every few seconds in a log."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

import ray
from tqdm import tqdm

from data.quantities import rate
from orchestrator.cluster.board import Progress
from orchestrator.redact import redact_text
from orchestrator.wording import count, duration

NO_COLUMNS = 80  # width of a terminal that says 0
LOG_SECONDS = 5.0  # between two lines
PATIENT_SECONDS = 20.0  # without workers, before the display says what is missing
ANSWER_SECONDS = 5.0  # that one look waits for the board
SILENT_SECONDS = 20.0  # without an answer of a board that has answered before: its process is stopped
NEW_SECONDS = 120.0  # the same for a board that is new: its process may still be starting


@dataclass
class Display:
    """Draws a board's progress until stopped; a bar if `stream` is a terminal, else lines.

    A board that does not answer is killed, and Ray starts a new one, which hears from here where training stands.

    `missing` returns what the cluster lacks for the workers to start, in words; empty if nothing. `renewed` is called
    when the board is a new one.
    """

    board: Any
    name: str
    missing: Callable[[], str] = lambda: ""
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    renewed: Callable[[], None] = lambda: None

    def __enter__(self) -> "Display":
        self._stop = threading.Event()
        self._heard: float | None = None  # when the board last answered; None once its silence was said
        self._question: ray.ObjectRef | None = None  # that the board has not answered
        self._asked = 0.0  # when
        self._process: int | None = None  # of the board; None before the first answer, and once it was killed
        self._replaced = False  # whether one was killed
        self._progress = Progress()  # the last
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
        progress = self._read(final)
        if progress is None:
            return
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

    def _read(self, final: bool) -> Progress | None:
        """The board's progress, once its messages are printed; None if there is nothing to show.

        A question that is not answered yet is waited for the next time: another one would lose its messages.
        """
        if self._question is None:
            self._question, self._asked = self.board.read.remote(), time.monotonic()
        if not ray.wait([self._question], timeout=ANSWER_SECONDS)[0]:
            if not final:
                self._replace_if_silent()
            return None
        try:
            progress, messages, process = ray.get(self._question)
        except ray.exceptions.RayError as error:
            if self._heard is not None and time.monotonic() - self._heard > SILENT_SECONDS and not final:
                self._print(f"{self.name}: no progress report ({type(error).__name__})")
                self._heard = None
            return None
        finally:
            self._question = None
        self._heard = time.monotonic()
        for message in messages:
            self._print(f"{self.name}: {message}")
        is_new = self._replaced or self._process not in (None, process)
        if is_new and not self._replaced:
            self._print(f"{self.name}: the progress actor died; a new one has taken its place")
        self._process, self._replaced = process, False
        if is_new:
            self.board.update.remote(self._progress)
            self.renewed()
            return None
        self._progress = progress
        return progress

    def _replace_if_silent(self) -> None:
        silent = time.monotonic() - self._asked
        if silent > (NEW_SECONDS if self._process is None else SILENT_SECONDS):
            self._print(f"{self.name}: the progress actor has not answered for {silent:.0f} s; starting a new one")
            with suppress(ray.exceptions.RayError):
                ray.kill(self.board, no_restart=False)
            self._asked, self._process, self._replaced = time.monotonic(), None, True

    def _draw(self, p: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=p.total_steps,
                initial=p.step,
                desc=self.name,
                unit="step",
                file=self.stream,
                ncols=columns(self.stream),
            )
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


def columns(stream: TextIO) -> int | None:
    """80 for a terminal that claims to have no columns, where a bar would be empty; None: as many as there are."""
    try:
        found = int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (ValueError, OSError):
        return None
    return None if found > 0 else NO_COLUMNS


def describe(p: Progress) -> str:
    """One line: step, share, loss, rate, MFU, time left."""
    left = "" if math.isnan(p.seconds_left) else f", {duration(p.seconds_left)} left"
    note = f", {p.note}" if p.note else ""
    return f"step {p.step:,}/{p.total_steps:,} ({p.step / p.total_steps:.0%}), {_numbers(p)}{left}{note}"


def _numbers(p: Progress) -> str:
    loss = "" if math.isnan(p.loss) else f"loss {p.loss:.4f}, "  # NaN: no valid samples, or no point yet
    speed = "" if math.isnan(p.rate) else f"{rate(p.rate, 'images')}, MFU {p.mfu:.1%}, "
    return loss + speed + count(p.workers, "worker")
