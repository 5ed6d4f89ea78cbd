"""The environment of a chaos run: a cluster that scales, a bucket behind a proxy, an MLflow server, and the job."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from data import storage
from infra.local.autoscaler import Scaling
from infra.local.cluster import LocalCluster
from infra.local.stores import FaultyProxy, Server, free_port, gcs_server, reached_by

ROOT = Path(__file__).resolve().parents[2]
BATCH = 64
LEARNED = 0.2
"""Learning rate times steps. With ten times as much, the rounding difference of another number of workers grows from
one part in 10^7 to the size of the loss within 500 steps, and the runs cannot be compared."""
HANG_SECONDS = 20.0
TERMINAL = (50, 250)  # lines, columns

NODES = {
    "DATA_REQUEST_SECONDS": "5",  # outages are longer and shorter than this
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",  # a stopped raylet is missed within half a minute
}
DISK_BYTES = 48 << 20

T = TypeVar("T")


class ChaosError(RuntimeError):
    """The message is one line, in some cases followed by the last lines of the job."""


def until(condition: Callable[[], T], what: str, seconds: float, pause: float = 0.1) -> T:
    """Waits until `condition` returns a true value, and returns that value.

    Raises:
        ChaosError: it was not true within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise ChaosError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)
    return found


@dataclass(frozen=True)
class Attempt:
    """An attempt that continued a run.

    Attributes:
        time: when its line was read, in seconds since the epoch.
        step: where it continued.
        workers: number of workers.
    """

    time: float
    step: int
    workers: int


class Job:
    """A run of the orchestrator at a terminal, on which it draws its progress twice a second.

    Attributes:
        name: of the run.
        step: the last step shown.
        peak: the highest step shown.
        attempts: the attempts of all its processes, except those that began at step 0.
        lines: the output without the progress bar.
    """

    def __init__(self, name: str, words: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._words, self._environment, self._log = words, environment, log
        self._bar = re.compile(rf"{name}: .*\| (\d+)/\d+ \[")
        self._process: subprocess.Popen[bytes] | None = None
        self.step, self.peak = 0, 0
        self.attempts: list[Attempt] = []
        self.lines: list[str] = []

    def start(self, *changes: str) -> None:
        """Starts the process, or starts it again; with changes of job keys, which stay for later starts."""
        self._words += [word for change in changes for word in ("--set", change)]
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, TERMINAL)
        self._process = subprocess.Popen(
            self._words, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def kill(self) -> None:
        """Sends SIGKILL if the process runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    def terminate(self, patience: float) -> None:
        """Sends SIGTERM and waits for the end of the process.

        Raises:
            ChaosError: the process does not end within `patience` seconds, or not with exit code 143.
        """
        assert self._process is not None
        self._process.terminate()
        until(lambda: self.code is not None, "a job that got SIGTERM to end", patience)
        self._reader.join()
        if self.code not in (143, 0):
            raise ChaosError(f"a job that got SIGTERM ended with exit code {self.code}\n{self.tail()}")

    @property
    def code(self) -> int | None:
        """The exit code; None while the process runs."""
        assert self._process is not None
        return self._process.poll()

    def tail(self) -> str:
        """The last lines of the output."""
        return "\n".join(self.lines[-15:])

    def _read(self, terminal: int) -> None:
        rest = b""
        with open(terminal, "rb", buffering=0) as stream, self._log.open("a") as log:
            while True:
                try:
                    rest += stream.read(65536)
                except OSError:  # the other end is closed
                    return
                *lines, rest = re.split(rb"[\r\n]+", rest)
                for line in lines:
                    text = re.sub(r"\x1b\[\w*", "", line.decode(errors="replace")).strip()
                    if text:
                        self._note(text, log)

    def _note(self, line: str, log: Any) -> None:
        if bar := self._bar.match(line):
            self.step = int(bar[1])
            self.peak = max(self.peak, self.step)
            return
        log.write(f"{time.time():.1f} {line}\n")
        log.flush()
        self.lines.append(line)
        if found := re.search(r"continuing at step (\d+) of \d+ on (\d+) worker", line):
            self.attempts.append(Attempt(time.time(), int(found[1]), int(found[2])))


class MlflowServer:
    """The project's MLflow server on a folder; it can be killed and restarted."""

    def __init__(self, folder: Path) -> None:
        self.database = f"sqlite:///{folder}/mlflow.db"
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and returns when it answers."""
        words = [sys.executable, "-m", "infra.mlflow_server", f"--folder={self._folder}", f"--port={self._port}"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers, "the MLflow server", 180)

    def kill(self) -> None:
        """Sends SIGKILL to all of its processes if it runs."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200)
        except OSError:
            return False


@dataclass
class World:
    """The cluster, the servers and the current job. Leaving the `with` block ends all of them.

    Attributes:
        folder: of logs and the MLflow database.
        patience: seconds to wait for the progress of a run before giving up.
        job: the current run.
        keep: `checkpoint.keep` of its last start.
        has_disk: whether `scratch` is a small disk of its own, which can be filled.
    """

    folder: Path
    patience: float
    cluster: LocalCluster = field(init=False)
    bucket: Server = field(init=False)
    proxy: FaultyProxy = field(init=False)
    tracker: MlflowServer = field(init=False)
    job: Job = field(init=False)
    keep: int = 4
    has_disk: bool = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.bucket = stack.enter_context(gcs_server())
            self.proxy = stack.enter_context(FaultyProxy(self.bucket))
            self.tracker = MlflowServer(self.folder)
            stack.callback(self.tracker.kill)
            self.tracker.start()
            self.scratch.mkdir()
            self.has_disk = stack.enter_context(small_disk(self.scratch))
            nodes = {**self.proxy.server.environment, **NODES, "TMPDIR": str(self.scratch)}
            self._access = replace(self.proxy.server, environment=nodes)
            with reached_by(self._access):
                scaling = Scaling(min_workers=0, max_workers=3, cpus_per_worker=1, idle_seconds=20)
                self.cluster = stack.enter_context(LocalCluster.start(self.folder / "cluster", scaling))
            stack.enter_context(reached_by(self.bucket))  # this process bypasses the proxy
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def scratch(self) -> Path:
        """The temporary folder of all nodes, with checkpoints and metrics that are waiting for upload."""
        return self.folder / "tmp"

    def run_url(self, name: str) -> str:
        """The folder of a run."""
        return f"{self.bucket.url}/runs/{name}"

    def new_job(self, name: str, steps: int, every: int, workers: int | list[int]) -> Job:
        """Starts the run `name`, which ends with this `World` at the latest."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(job_file(self, name, steps, every, workers), indent=1))
        words = [sys.executable, "-m", "orchestrator", "run", str(path)]
        environment = {**self.cluster.environment, **self._access.environment}
        self.job = Job(name, words, environment, self.folder / f"{name}.log")
        self._stack.callback(self.job.kill)
        self.job.start()
        return self.job

    def training_workers(self) -> list[tuple[psutil.Process, str]]:
        """The running training workers with their nodes, sorted by node."""
        found = []
        for process, raylet in self._ray_processes("RayTrainWorker"):
            with suppress(psutil.Error):
                words = raylet.cmdline()
                node = next((word.partition("=")[2] for word in words if word.startswith("--node_id=")), "")
                found.append((process, node))
        return sorted(found, key=lambda entry: (entry[1], entry[0].pid))

    def controllers(self) -> list[psutil.Process]:
        """The process of Ray Train's controller, if it runs."""
        return [process for process, _ in self._ray_processes("Controller")]

    def _ray_processes(self, name: str) -> Iterator[tuple[psutil.Process, psutil.Process]]:
        """The cluster's processes with a word in their title, and the raylet of each."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                raylet = process.parent() if name in " ".join(process.cmdline()) else None
                if raylet is not None and any(str(self.cluster.scratch) in word for word in raylet.cmdline()):
                    yield process, raylet

    def trains_on(self, nodes: list[str]) -> bool:
        """Whether a training worker runs on one of the nodes."""
        return any(node in nodes for _, node in self.training_workers())

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Inside the block, the small disk has no room."""
        filler = self.scratch / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            filler.unlink()

    def checkpoints(self) -> list[str]:
        """The folders of the run's complete checkpoints that no start has passed over."""
        run = self.run_url(self.job.name)
        names = [name for name in storage.contents(run) if name.startswith("step-")]
        found = [(name, storage.contents(f"{run}/{name}")) for name in names]
        return [name for name, files in found if "manifest.json" in files and "passed_over.json" not in files]

    def is_saving(self) -> bool:
        """Whether a worker is writing its state to local disk."""
        return any(self.scratch.glob("vit-staging-*/rank-*/*"))

    def is_uploading(self) -> bool:
        """Whether the chaos run has a checkpoint without a manifest."""
        run = self.run_url(self.job.name)
        names = [name for name in storage.contents(run) if name.startswith("step-")]
        return any("manifest.json" not in storage.contents(f"{run}/{name}") for name in names)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a disk of DISK_BYTES in memory at a folder, if this process may. Yields whether it did."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def job_file(world: World, name: str, steps: int, every: int, workers: int | list[int]) -> dict[str, Any]:
    """A tiny ViT on drawn images of 32 pixels."""
    shapes = f"{world.bucket.url}/shapes"
    return {
        "kind": "pretrain",
        "name": name,
        "model": {
            "name": "ViT-Ti/16",
            "image_size": 32,
            "patch_size": 8,
            "num_classes": 10,
            "dropout": 0.1,
            "depth": 4,
            "width": 64,
            "mlp_dim": 256,
            "heads": 4,
        },
        "data": {
            "pack": {"source": "shapes", "to": shapes, "samples": 2000, "test_samples": 200, "image_size": 32},
            "train": {"url": f"{shapes}/train", "augment": {"crop": "inception", "min_area": 0.5, "flip": True}},
            "eval": {"test": {"url": f"{shapes}/test", "augment": {"crop": "resize"}}},
        },
        "objective": {"loss": "softmax"},
        "optimizer": {"name": "adamw", "lr": LEARNED / steps, "weight_decay": 0.1},
        "schedule": {"length": {"steps": steps}, "warmup": {"steps": max(1, steps // 20)}, "decay": "cosine"},
        "batch_size": BATCH,
        "parallel": {"zero_stage": 2, "precision": "float32", "micro_batch": 32},
        "cluster": {"workers": workers, "max_failures": -1, "hang_timeout": HANG_SECONDS, "resize_every": 2},
        "checkpoint": {"url": f"{world.bucket.url}/runs", "every": {"steps": every}, "keep": world.keep},
        "evaluate": {"every": {"steps": 5 * every}},
        "tracking": {"uri": world.tracker.uri, "every": {"steps": 1}, "record_samples": True},
    }
