"""A program that starts workers on a Ray of its own, watched from outside through its stamps."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from benchmarks.start import stamps

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds until a stamp must be there

SITE_CUSTOMIZE = f"import sys; sys.path.append({str(ROOT)!r}); from benchmarks.start import stamps; stamps.install()\n"


class Stamp(NamedTuple):
    """What a process wrote: when (seconds since the epoch), its CPU seconds by then, and the name."""

    pid: int
    time: float
    cpu: float
    name: str


class ProgramError(RuntimeError):
    """The program ended, or a stamp did not come. The message is one line."""


class Program:
    """One run of a command. Use it in a `with`; at its end all of its processes are killed.

    Attributes:
        began: seconds since the epoch, just before the command was started.
    """

    def __init__(self, module: str, words: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-start-", ignore_cleanup_errors=True)
        (Path(self._folder.name) / "sitecustomize.py").write_text(SITE_CUSTOMIZE)
        environment = {**os.environ, "RAY_ADDRESS": "local", stamps.FOLDER: self._folder.name}
        environment["PYTHONPATH"] = self._folder.name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed in __exit__
        self.began = time.time()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words], cwd=ROOT, env=environment, stdout=self._log, stderr=self._log
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        processes = [*psutil.Process().children(recursive=True)]
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        psutil.wait_procs(processes, timeout=10)
        self._log.close()
        self._folder.cleanup()

    def stamps(self) -> list[Stamp]:
        """All stamps so far, by time."""
        found = []
        for path in Path(self._folder.name).glob("*.stamps"):
            for line in path.read_text().splitlines():
                when, cpu, name = line.split(" ", 2)
                found.append(Stamp(int(path.stem), float(when), float(cpu), name))
        return sorted(found, key=lambda stamp: stamp.time)

    def wait(self, name: str, count: int, *, after: float = 0.0) -> list[Stamp]:
        """The first `count` stamps of that name after a moment, each of another process.

        Raises:
            ProgramError: they do not come.
        """
        deadline = time.time() + PATIENCE
        while True:
            first = {stamp.pid: stamp for stamp in reversed(self.stamps()) if stamp.name == name and stamp.time > after}
            if len(first) >= count:
                return sorted(first.values(), key=lambda stamp: stamp.time)[:count]
            if self._process.poll() is not None or time.time() > deadline:
                self._log.seek(0)
                last = (self._log.read().strip().splitlines() or ["no message"])[-1]
                raise ProgramError(f"no stamp {name!r} of {count} processes: {last}")
            time.sleep(0.02)

    def kill_worker(self) -> float:
        """SIGKILL to one training worker; returns when, in seconds since the epoch."""
        worker = self.stamps_of("worker")[-1]
        os.kill(worker.pid, signal.SIGKILL)
        return time.time()

    def stamps_of(self, name: str) -> list[Stamp]:
        """The stamps of one name, by time."""
        return [stamp for stamp in self.stamps() if stamp.name == name]
