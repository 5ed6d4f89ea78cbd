"""Ray's own autoscaler on one machine: a head without CPUs, and worker nodes that are processes instead of machines.

The autoscaler is the one of `ray up`, with Ray's provider for tests in place of a cloud's. Every part of the cluster
listens on loopback only and asks for a token. Several such clusters can run side by side: each takes free ports and
writes only to folders of its own.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import psutil

from infra.local.autoscaler import HEAD_ENVIRONMENT, HEAD_ID, Scaling, write_config

HOST = "127.0.0.1"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's switch between the loopback address, its choice on a Mac, and the address of the network card."""
OBJECT_STORE_BYTES = 90 << 20
START_SECONDS = 180
CALL_SECONDS = 60
ROOT = Path(__file__).resolve().parents[2]


class ClusterError(RuntimeError):
    """The message is one line: what failed, where, and what to do."""


@dataclass(frozen=True)
class Node:
    """A running node.

    Attributes:
        id: 56 hexadecimal digits.
        head: whether it is the head.
        resources: amounts by name, such as {"CPU": 1.0}.
    """

    id: str
    head: bool
    resources: Mapping[str, float]


@dataclass
class LocalCluster:
    """A running cluster. `start` creates one, `find` returns one that runs already; a `with` block ends it.

    Attributes:
        folder: holds the autoscaler's configuration, the head's output and the state that `find` reads.
        scratch: Ray's own files; all logs are under session_latest/logs.
        address: of the head, for RAY_ADDRESS.
        jobs: URL of the job server, for RAY_API_SERVER_ADDRESS.
        token: every part of the cluster asks for it.
        pid: process id of the head, and session id of all its processes.
        started: when the head started, in seconds since the epoch.
        scaling: number and size of the worker nodes.
    """

    folder: Path
    scratch: Path
    address: str
    jobs: str
    token: str = field(repr=False)
    pid: int
    started: float
    scaling: Scaling

    @classmethod
    def start(cls, folder: Path, scaling: Scaling = Scaling()) -> Self:  # noqa: B008 - frozen
        """Starts a head and its autoscaler, and returns when both work.

        Args:
            folder: used by this cluster alone.

        Raises:
            ClusterError: a cluster runs there already, or the head does not start.
        """
        if running := cls.find(folder):
            raise ClusterError(f"{folder}: a cluster already runs there, at {running.address}; use it, or end it first")
        folder.mkdir(parents=True, exist_ok=True)
        # Ray's sockets are files, and their paths are limited to 107 characters. `folder` may be too long for that.
        scratch = Path(tempfile.mkdtemp(prefix="vit-local-", dir="/tmp"))
        gcs, jobs, agent, client, metrics = _free_ports(5)
        address = f"{HOST}:{gcs}"
        config = folder / "autoscaler.json"
        write_config(config, address, scaling)
        token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)  # Ray reads the token once a process
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0"]
        words += [f"--node-ip-address={HOST}", f"--port={gcs}", f"--temp-dir={scratch}"]
        words += [f"--dashboard-host={HOST}", f"--dashboard-port={jobs}", f"--dashboard-agent-listen-port={agent}"]
        words += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
        words += [f"--object-store-memory={OBJECT_STORE_BYTES}", f"--autoscaling-config={config}"]
        environment = {**_environment(token), **HEAD_ENVIRONMENT, "AUTOSCALER_METRIC_PORT": str(metrics)}
        with (folder / "head.log").open("w") as log:
            head = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        started = psutil.Process(head.pid).create_time()
        cluster = cls(folder, scratch, address, f"http://{HOST}:{jobs}", token, head.pid, started, scaling)
        cluster._save()
        try:
            cluster._wait(head)
        except BaseException:
            cluster.close()
            raise
        return cluster

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The cluster that was started in this folder, if any of its processes still run; otherwise None."""
        try:
            state = json.loads((folder / "cluster.json").read_text())
        except FileNotFoundError:
            return None
        cluster = cls(folder, Path(state.pop("scratch")), scaling=Scaling(**state.pop("scaling")), **state)
        return cluster if cluster._processes() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """The complete environment for a command that uses the cluster."""
        return {**_environment(self.token), "RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.jobs}

    @property
    def exports(self) -> dict[str, str]:
        """Variables that a shell must export to use the cluster. The token is given by the file that holds it."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        return {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.jobs, **token, **LOOPBACK}

    def nodes(self) -> list[Node]:
        """The running nodes, the head first.

        Raises:
            OSError: the head does not answer.
        """
        request = urllib.request.Request(
            f"{self.jobs}/api/v0/nodes?detail=1&limit=1000", headers={"Authorization": f"Bearer {self.token}"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=CALL_SECONDS) as answer:
            listed = json.load(answer)["data"]["result"]["result"]
        alive = [Node(n["node_id"], n["is_head_node"], n["resources_total"]) for n in listed if n["state"] == "ALIVE"]
        return sorted(alive, key=lambda node: (not node.head, node.id))

    def workers(self) -> list[Node]:
        """The running nodes without the head."""
        return [node for node in self.nodes() if not node.head]

    def set_workers(self, least: int, most: int) -> None:
        """Changes the bounds of the number of worker nodes. The autoscaler reads its configuration every second.

        Between the bounds, the number follows the jobs' requests. An elastic job requests its maximum, and Ray adds
        no node for it if that exceeds `most`. Nodes beyond `most` are ended at once, with everything that runs on
        them: drain and end them first.
        """
        self.scaling = replace(self.scaling, min_workers=least, max_workers=most)
        write_config(self.folder / "autoscaler.json", self.address, self.scaling)
        self._save()

    def drain(self, node_id: str, seconds: int) -> None:
        """Tells Ray that the node will be lost in `seconds`, as a cloud's notice does. `kill_node` then ends it.

        Raises:
            ClusterError: the cluster has no such node, or Ray refuses.
        """
        if node_id not in {node.id for node in self.nodes()}:  # Ray accepts any id
            raise _no_such_node(node_id)
        words = ["drain-node", "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message", "notice of preemption", "--deadline-remaining-seconds", str(seconds)]
        call = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env=self.environment, capture_output=True, text=True, timeout=CALL_SECONDS, check=False,
        )  # fmt: skip
        if call.returncode:
            raise ClusterError(f"node {node_id} cannot be drained: {_last_line(call.stderr or call.stdout)}")

    def kill_node(self, node_id: str) -> None:
        """Ends a node at once, with everything that runs on it, as if its machine were lost.

        Raises:
            ClusterError: the cluster has no such node.
        """
        for process in self._processes():
            words = _words(process)
            if words and words[0].endswith("/raylet") and f"--node_id={node_id}" in words:
                # Suspend it first, or it replaces killed workers while the others are being killed.
                process.suspend()
                _kill([process, *process.children(recursive=True)])
                return
        raise _no_such_node(node_id)

    def close(self) -> None:
        """Ends the cluster and everything that runs on it, and removes its files. May be called again."""
        while processes := self._processes():
            _kill(processes)
        shutil.rmtree(self.scratch, ignore_errors=True)
        for name in ("cluster.json", "token", "autoscaler.json"):
            (self.folder / name).unlink(missing_ok=True)

    def _processes(self) -> list[psutil.Process]:
        """All descendants of the head, including those with sessions of their own, such as jobs.

        The system does not reuse the head's process id while its session has members.
        """
        with suppress(psutil.NoSuchProcess):
            if abs(psutil.Process(self.pid).create_time() - self.started) > 1:
                return []
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid:
                    found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        return [process for process in found.values() if _runs(process)]

    def _wait(self, head: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError, KeyError, ValueError):  # the job server may still be starting
                if any(node.id == HEAD_ID for node in self.nodes()):
                    return
            if head.poll() is not None or time.monotonic() > deadline:
                log = self.folder / "head.log"
                raise ClusterError(f"Ray's head did not start ({_last_line(log.read_text())}); its output is in {log}")
            time.sleep(0.2)

    def _save(self) -> None:
        state = {**asdict(self), "scratch": str(self.scratch)}
        del state["folder"]
        for name, text in (("cluster.json", json.dumps(state)), ("token", self.token)):
            path = self.folder / name
            path.touch(mode=0o600)
            path.write_text(text)


def _no_such_node(node_id: str) -> ClusterError:
    return ClusterError(f"the cluster has no node {node_id}; `nodes()` lists its nodes")


def _environment(token: str) -> dict[str, str]:
    """This process's environment with the project's modules and commands, without the address of another cluster."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    token_on = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return {**environment, **LOOPBACK, **token_on, "PATH": path, "PYTHONPATH": modules}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        listeners = [sockets.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listeners]


def _kill(processes: list[psutil.Process]) -> None:
    """Kills the processes and waits until none runs. Zombies count as ended: a busy parent may reap them late."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(map(_runs, processes)):
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _last_line(text: str) -> str:
    lines: list[Any] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
