"""Two programs on one machine, one at a time: the other one is stopped meanwhile, with every process that it started.

In turns of a few seconds both meet the same slow and fast minutes of a machine whose speed drifts, which one after the
other they would not. Each has a clock of its own, which runs during its turns.
"""

import os
import subprocess
import time
from bisect import bisect_right
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

MARK = "BENCHMARK_PROGRAM"
"""Environment variable that all processes of a program inherit, in sessions and groups of their own too."""
SETTLING = 0.3  # seconds
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
        self._computing: set[int] = set()

    def stop(self) -> None:
        """End its turn. What computes stops first, and the turn ends there."""
        ended: list[float] = []
        while running := [one for one in self._processes() if one.info["status"] not in AT_REST]:  # some are just born
            for computing in (True, False):
                for one in running:
                    if self._computes(one) == computing:
                        with suppress(psutil.NoSuchProcess):
                            one.suspend()
                ended.append(time.time())
        self.clock.turns.append((self._began, ended[0] if ended else time.time()))

    def go_on(self) -> None:
        """Begin its next turn.

        What computes goes on last, and the turn begins there: the others have timers that are overdue because they
        were stopped, which is no cost of theirs.
        """
        every = self._processes()
        for computing in (False, True):
            if computing:
                time.sleep(SETTLING)
                self._began = time.time()
            for one in every:
                if self._computes(one) == computing:
                    with suppress(psutil.NoSuchProcess):
                        one.resume()

    def compute_on(self, cpus: Set[int]) -> None:
        """Tie to these CPUs as many threads, those that have worked the most; the others go where they like.

        A machine's CPUs differ, by more than what is to be measured, where other machines share them.
        """
        worked: list[tuple[float, int, int]] = []
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                worked += [(thread.user_time + thread.system_time, thread.id, one.pid) for thread in one.threads()]
        for _, thread, process in sorted(worked)[-len(cpus) :]:
            os.sched_setaffinity(thread, cpus)
            self._computing.add(process)

    def kill(self) -> None:
        """End all of it."""
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()

    def _computes(self, process: psutil.Process) -> bool:
        return process.pid in self._computing

    def _processes(self) -> list[psutil.Process]:
        every = psutil.process_iter(["environ", "status"])  # None: another user's
        return [one for one in every if (one.info["environ"] or {}).get(MARK) == self._mark]
