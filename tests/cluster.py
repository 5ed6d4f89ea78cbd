"""A Ray head node that a whole test session shares."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from infra.local.stores import GCS_ENVIRONMENT, S3_ENVIRONMENT
from tests.paths import ROOT


@dataclass(frozen=True)
class RayHead:
    """A running head: its address, that of its job server, and the environment for commands that use it."""

    address: str
    jobs: str
    environment: dict[str, str]

    def start(
        self, *words: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on the cluster, with more variables in its environment."""
        env = {**self.environment, **(environment or {})}
        return subprocess.Popen(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def call(self, *words: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
        """Run a command to its end; returns what it printed. Fails the test unless its exit code is 0."""
        process = self.start(*words, cwd=cwd, environment=environment)
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output
        return output


@contextmanager
def start_head(home: Path) -> Iterator[RayHead]:
    """Start a head node with a job server and end it. The process and what it starts get `home` as their HOME."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.update(HOME=str(home), PATH=path)
    os.environ.update({**S3_ENVIRONMENT, **GCS_ENVIRONMENT})  # a cluster's nodes have their rights to buckets
    from ray.cluster_utils import Cluster

    port, agent = free_port(), free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 8,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "dashboard_agent_listen_port": agent,  # its default is one for all clusters of a machine
        },
    )
    jobs = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_API_SERVER_ADDRESS": jobs}
    wait_for_port(agent)  # the job server refuses jobs until it knows an agent
    yield RayHead(cluster.address, jobs, environment)
    cluster.shutdown()


def wait_for_port(port: int, seconds: float = 240) -> None:
    """Wait until somebody listens on a TCP port of this machine, and a moment longer."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        assert time.monotonic() < deadline, f"nobody listens on port {port}"
        time.sleep(0.2)
    time.sleep(2)  # until it is known to the others, too


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
