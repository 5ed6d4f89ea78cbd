"""Two programs on one machine that take turns: while one runs, all processes of the other are stopped.

On a machine whose speed drifts, programs that run one after the other meet different conditions. With turns of a few
seconds they meet the same. Each program has a clock of its own, which runs during its turns.
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
"""Environment variable that all processes of a program inherit, including those in sessions of their own."""
SETTLING = 0.3  # seconds between the start of the other processes and that of the computing ones
AT_REST = frozenset([psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD])


@dataclass
class OwnClock:
    """The clock of a program. `turns`: the (start, end) of each turn in seconds since the epoch, in order."""

    turns: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, moment: float) -> float:
        """Total seconds of the program's turns until `moment`, which may be inside or outside of a turn."""
        begun = bisect_right(self.turns, moment, key=lambda turn: turn[0])
        return sum(min(end, moment) - start for start, end in self.turns[:begun])


class Program:
    """A command with all processes that it starts. Its first turn begins immediately."""

    def __init__(self, name: str, command: Sequence[str], *, cwd: Path, environment: dict[str, str], log: IO[str]):
        self._mark = f"{name} of {os.getpid()}"
        self.process = subprocess.Popen(
            command, cwd=cwd, env={**environment, MARK: self._mark}, stdout=log, stderr=subprocess.STDOUT
        )
        self.clock = OwnClock()
        self._began = time.time()
        self._computing: set[int] = set()

    def stop(self) -> None:
        """Ends the turn. The computing processes are stopped first, which is the end of the turn."""
        ended: list[float] = []
        while running := [one for one in self._processes() if one.info["status"] not in AT_REST]:  # some may be new
            for computing in (True, False):
                for one in running:
                    if self._computes(one) == computing:
                        with suppress(psutil.NoSuchProcess):
                            one.suspend()
                ended.append(time.time())
        self.clock.turns.append((self._began, ended[0] if ended else time.time()))

    def go_on(self) -> None:
        """Begins the next turn.

        The computing processes continue last, which is the start of the turn. The others first handle the timers that
        became overdue while they were stopped; this is not a cost of the program.
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
        """Ties the threads with the most CPU time to `cpus`, one per CPU. The other threads are not restricted.

        If virtual machines share CPUs, these differ by more than the overhead to be measured.
        """
        worked: list[tuple[float, int, int]] = []
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                worked += [(thread.user_time + thread.system_time, thread.id, one.pid) for thread in one.threads()]
        for _, thread, process in sorted(worked)[-len(cpus) :]:
            os.sched_setaffinity(thread, cpus)
            self._computing.add(process)

    def kill(self) -> None:
        """Kills all processes of the program."""
        for one in self._processes():
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()

    def _computes(self, process: psutil.Process) -> bool:
        return process.pid in self._computing

    def _processes(self) -> list[psutil.Process]:
        every = psutil.process_iter(["environ", "status"])  # None for another user's processes
        return [one for one in every if (one.info["environ"] or {}).get(MARK) == self._mark]
