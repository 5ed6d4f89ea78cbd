"""A Ray head node that a whole test session shares, and commands on it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local.stores import GCS_ENVIRONMENT, S3_ENVIRONMENT
from tests.paths import ROOT

CPUS = 8
"""What the head says that it has."""
TIMEOUT = 1200
"""Seconds for a command; a busy machine takes a minute to start a run."""


@dataclass(frozen=True)
class RayHead:
    """A running head: its address, that of its job server, and the environment for commands that use it."""

    address: str
    jobs: str
    environment: dict[str, str]

    def start(self, *words: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> "Command":
        """Start a command on the cluster, with more variables in its environment."""
        return Command(words, {**self.environment, **(environment or {})}, cwd)

    def call(self, *words: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
        """Run a command to its end; returns what it printed. Fails the test unless its exit code is 0."""
        started = self.start(*words, cwd=cwd, environment=environment)
        output = started.end()
        assert started.process.returncode == 0, output
        return output


class Command:
    """A command whose output is read as it comes.

    Attributes:
        process: of the command.
        lines: the output so far.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], cwd: Path = ROOT) -> None:
        self.lines: list[str] = []
        self._read_to = 0
        self.process = subprocess.Popen(
            words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def wait_for(self, pattern: str) -> list[str]:
        """The groups of the pattern's match in the next line that matches, after the line found by the last call."""

        def found() -> tuple[int, list[str]] | None:
            for number, line in enumerate(list(self.lines)[self._read_to :], self._read_to + 1):
                if match := re.search(pattern, line):
                    return number, list(match.groups())
            return None

        until(lambda: found() or self.process.poll() is not None, pattern, 600)
        line = found()
        assert line is not None, f"no {pattern} in:\n{''.join(self.lines[self._read_to :])}"
        self._read_to = line[0]
        return line[1]

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until a condition holds; fails the test if the command ends first."""
        until(lambda: condition() or self.process.poll() is not None, what, 600)
        assert condition(), f"ended before: {what}\n{self.end()}"

    def kill(self) -> str:
        """End the command at once; returns all of its output."""
        self.process.kill()
        return self.end()

    def end(self, seconds: float = TIMEOUT) -> str:
        """Wait for the end of the command; returns all of its output."""
        self.process.wait(seconds)
        self._reader.join(seconds)
        return "".join(self.lines)


@contextmanager
def start_head(home: Path) -> Iterator[RayHead]:
    """Start a head node with a job server and end it. The process and what it starts get `home` as their HOME."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.update(HOME=str(home), PATH=path)
    os.environ.update({**S3_ENVIRONMENT, **GCS_ENVIRONMENT})  # a cluster's nodes have their rights to buckets
    from ray.cluster_utils import Cluster

    port, agent = free_port(), free_port()
    # Ray's sockets are files, whose paths may have 107 characters. In the folder that all clusters of a machine share,
    # a submitted job would be sent to the one that was started last.
    scratch = Path(tempfile.mkdtemp(prefix="vit-head-", dir="/tmp"))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": CPUS,
            "temp_dir": str(scratch),
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "dashboard_agent_listen_port": agent,  # its default is one for all clusters of a machine
        },
    )
    (scratch / "ray_current_cluster").write_text(cluster.address)
    jobs = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_API_SERVER_ADDRESS": jobs}
    wait_for_port(agent)  # the job server refuses jobs until it knows an agent
    yield RayHead(cluster.address, jobs, environment)
    cluster.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)


def until(condition: Callable[[], Any], what: str, seconds: float = 240) -> None:
    """Wait until a condition holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for: {what}"
        time.sleep(0.2)


def wait_for_port(port: int, seconds: float = 240) -> None:
    """Wait until a TCP port of this machine accepts connections, and a moment longer."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        assert time.monotonic() < deadline, f"port {port} accepts no connection"
        time.sleep(0.2)
    time.sleep(2)  # until it is known to the others, too


def free_port() -> int:
    """A TCP port that is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
