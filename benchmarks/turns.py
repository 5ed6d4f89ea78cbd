"""Two programs on one machine, one at a time: the other one is stopped meanwhile, with every process that it started.

In turns of a few seconds both meet the same slow and fast minutes of a machine whose speed drifts, which one after the
other they would not. Each has a clock of its own, which runs during its turns.
"""

import os
import subprocess
import time
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

MARK = "BENCHMARK_PROGRAM"
"""Environment variable that all processes of a program inherit, in sessions and groups of their own too."""
AT_REST = frozenset([psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD])


@dataclass
class OwnClock:
    """Seconds of a program's turns. `turns`: (start, end) of each, in seconds since the epoch, in order."""

    turns: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, moment: float) -> float:
        """Seconds that the program had until `moment`, which may lie in a turn, between two, or after the last."""
        begun = bisect_right(self.turns, moment, key=lambda turn: turn[0])
        return sum(min(end, moment) - start for start, end in self.turns[:begun])


class Program:
    """A command with all processes that it starts. Its first turn begins at once."""

    def __init__(self, name: str, command: Sequence[str], *, cwd: Path, environment: dict[str, str], log: IO[str]):
        self._mark = f"{name} of {os.getpid()}"
        self.process = subprocess.Popen(
            command, cwd=cwd, env={**environment, MARK: self._mark}, stdout=log, stderr=subprocess.STDOUT
        )
        self.clock = OwnClock()
        self._began = time.time()

    def stop(self) -> None:
        """End its turn."""
        self.clock.turns.append((self._began, time.time()))
        while running := [one for one in self._processes() if one.info["status"] not in AT_REST]:  # some are just born
            for one in running:
                with suppress(psutil.NoSuchProcess):
                    one.suspend()

    def go_on(self) -> None:
        """Begin its next turn."""
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                one.resume()
        self._began = time.time()

    def kill(self) -> None:
        """End all of it."""
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()

    def _processes(self) -> list[psutil.Process]:
        every = psutil.process_iter(["environ", "status"])  # None: another user's
        return [one for one in every if (one.info["environ"] or {}).get(MARK) == self._mark]
