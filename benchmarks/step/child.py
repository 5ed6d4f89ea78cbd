"""Child processes that measure a contender: one that answers once, or one that waits for its turns."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.step.search import Trial
from benchmarks.step.task import Task

ROOT = Path(__file__).resolve().parents[2]


class ChildFailed(Exception):
    """The message is the last line that the process wrote; `details` is the end of its output."""

    def __init__(self, returncode: int, written: str) -> None:
        lines = [line for line in written.splitlines() if line.strip()]
        line = f"ended by signal {-returncode}" if returncode < 0 else lines[-1] if lines else "no message"
        super().__init__(line.strip())
        self.details = written[-4000:]


def ask(task: Task) -> list[Trial]:
    """Measures `task` in a fresh process.

    Raises:
        ChildFailed: the process ended without an answer.
    """
    command, environment = _child(task, "--child")
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if child.returncode != 0:
        raise ChildFailed(child.returncode, child.stderr)
    answer = json.loads(child.stdout.splitlines()[-1])
    return [Trial(**trial) for trial in answer["trials"]]


class Waiting:
    """A process that holds the contender of `task`, warmed up at its first batch, and measures a window on request.

    Raises:
        ChildFailed: the process ended. `window` raises it, too.
    """

    def __init__(self, task: Task) -> None:
        command, environment = _child(task, "--turns")
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._read()

    def window(self) -> float:
        """Measures one window; returns images per second."""
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; `_read` raises the reason
        return self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read(self) -> float:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("rate "):  # libraries print, too
                return float(line.split()[1])
        returncode = self._process.wait()
        self._errors.seek(0)
        raise ChildFailed(returncode, self._errors.read())


def _child(task: Task, mode: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
    environment["HF_HUB_OFFLINE"] = "1"  # nothing needs to be downloaded: the weights are random
    return [sys.executable, "-m", "benchmarks.step", mode, task.to_json()], environment
