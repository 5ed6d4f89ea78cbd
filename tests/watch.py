"""Which programs the tests of this process start, whatever process of theirs starts them."""

import threading
from contextlib import suppress
from pathlib import Path

import psutil

EVERY_SECONDS = 0.5  # a Ray node needs longer than this to start and end


class Watch:
    """Looks for a program among the descendants of this process, from a thread of its own.

    Attributes:
        seen: the process numbers of all that were found since the beginning.
    """

    def __init__(self, program: str) -> None:
        self.seen: set[int] = set()
        self._program = program
        self._end = threading.Event()
        threading.Thread(target=self._follow, name=f"watch for {program}", daemon=True).start()

    def look(self) -> set[int]:
        """Look now; returns `seen`."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.name() == self._program and Path(process.exe()).name == self._program:
                    self.seen.add(process.pid)
        return self.seen

    def end(self) -> None:
        """Stop looking."""
        self._end.set()

    def _follow(self) -> None:
        while not self._end.wait(EVERY_SECONDS):
            self.look()
