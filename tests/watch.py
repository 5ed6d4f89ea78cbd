"""Which programs the tests of this process start, whatever process of theirs starts them."""

import threading
from contextlib import suppress
from pathlib import Path

import psutil

EVERY_SECONDS = 1.0  # a Ray node and a server need longer than this to start and end


class Watch:
    """Looks for programs among the descendants of this process, from a thread of its own.

    Args:
        programs: names of executables, and of modules that Python runs with `-m`.

    Attributes:
        seen: the program of every process that was found since the beginning, by the number of the process.
    """

    def __init__(self, *programs: str) -> None:
        self.seen: dict[int, str] = {}
        self._programs = programs
        self._end = threading.Event()
        threading.Thread(target=self._follow, name="watch for programs", daemon=True).start()

    def look(self) -> dict[int, str]:
        """Look now; returns `seen`."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if program := self._program(process):
                    self.seen[process.pid] = program
        return self.seen

    def end(self) -> None:
        """Stop looking."""
        self._end.set()

    def _program(self, process: psutil.Process) -> str | None:
        name = process.name()
        if name in self._programs and Path(process.exe()).name == name:
            return name
        match process.cmdline():
            case [_, "-m", module, *_] if module in self._programs:
                return module
        return None

    def _follow(self) -> None:
        while not self._end.wait(EVERY_SECONDS):
            self.look()
