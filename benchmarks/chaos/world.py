"""What a chaos run runs on: a cluster that scales, a bucket behind a proxy, an MLflow server, and the job itself."""

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
from collections.abc import Callable
from contextlib import ExitStack, suppress
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
LEARNED = 0.2  # learning rate times steps. With ten times as much, the rounding of another number of workers grows from
# one in 10^7 to all of the loss within 500 steps, and the runs could not be compared.
HANG_SECONDS = 20.0
TERMINAL = (50, 250)  # lines, columns

T = TypeVar("T")


class ChaosError(RuntimeError):
    """The message is one line, perhaps with the last lines of the job under it."""


def until(condition: Callable[[], T], what: str, seconds: float, pause: float = 0.1) -> T:
    """Wait for a condition; returns what it returned.

    Raises:
        ChaosError: it did not come true in so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise ChaosError(f"waited {seconds:.0f} s for: {what}")
        time.sleep(pause)
    return found


@dataclass(frozen=True)
class Attempt:
    """Workers that went on with a run: when the line that says so was read (seconds since the epoch), and where."""

    time: float
    step: int
    workers: int


class Job:
    """A run of the orchestrator at a terminal, where its progress is drawn twice a second.

    Attributes:
        step: last one shown.
        peak: highest one shown.
        attempts: of all processes, but for those that began at step 0.
        lines: all that was printed, without the progress bar.
    """

    def __init__(self, name: str, words: list[str], environment: dict[str, str], log: Path) -> None:
        self._words, self._environment, self._log = words, environment, log
        self._bar = re.compile(rf"{name}: .*\| (\d+)/\d+ \[")
        self._process: subprocess.Popen[bytes] | None = None
        self.step, self.peak = 0, 0
        self.attempts: list[Attempt] = []
        self.lines: list[str] = []

    def start(self) -> None:
        """Start it, or start it again."""
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
        """SIGKILL, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self._reader.join()

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self.lines[-15:])

    def _read(self, terminal: int) -> None:
        rest = b""
        with open(terminal, "rb", buffering=0) as stream, self._log.open("a") as log:
            while True:
                try:
                    rest += stream.read(65536)
                except OSError:  # nobody has the other end any more
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
    """The project's MLflow server on a folder, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.database = f"sqlite:///{folder}/mlflow.db"
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it answers."""
        words = [sys.executable, "-m", "infra.mlflow_server", f"--folder={self._folder}", f"--port={self._port}"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers, "the MLflow server", 180)

    def kill(self) -> None:
        """SIGKILL to all of it, if it runs."""
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
    """All of it. As a context manager it ends what it started.

    Attributes:
        folder: of logs and the MLflow database.
        patience: seconds after which a run that does not go on is given up.
        job: the run that is under way.
    """

    folder: Path
    patience: float
    cluster: LocalCluster = field(init=False)
    bucket: Server = field(init=False)
    proxy: FaultyProxy = field(init=False)
    tracker: MlflowServer = field(init=False)
    job: Job = field(init=False)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.bucket = stack.enter_context(gcs_server())
            self.proxy = stack.enter_context(FaultyProxy(self.bucket))
            self.tracker = MlflowServer(self.folder)
            stack.callback(self.tracker.kill)
            self.tracker.start()
            self.scratch.mkdir()
            nodes = {**self.proxy.server.environment, "TMPDIR": str(self.scratch)}
            self._access = replace(self.proxy.server, environment=nodes)
            with reached_by(self._access):
                scaling = Scaling(min_workers=0, max_workers=4, cpus_per_worker=1, idle_seconds=20)
                self.cluster = stack.enter_context(LocalCluster.start(self.folder / "cluster", scaling))
            stack.enter_context(reached_by(self.bucket))  # for ourselves
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def scratch(self) -> Path:
        """The temporary folder of all nodes: checkpoints and points of curves on their way."""
        return self.folder / "tmp"

    def run_url(self, name: str) -> str:
        """The folder of a run."""
        return f"{self.bucket.url}/runs/{name}"

    def new_job(self, name: str, steps: int, every: int, workers: int | list[int]) -> Job:
        """Start the run `name`; it ends with the world, if not before."""
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(job_file(self, name, steps, every, workers), indent=1))
        words = [sys.executable, "-m", "orchestrator", "run", str(path)]
        environment = {**self.cluster.environment, **self._access.environment}
        self.job = Job(name, words, environment, self.folder / f"{name}.log")
        self._stack.callback(self.job.kill)
        self.job.start()
        return self.job

    def training_workers(self) -> list[tuple[psutil.Process, str]]:
        """The training workers that live, with their nodes, in the order of these."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()) and (raylet := process.parent()) is not None:
                    words = raylet.cmdline()
                    node = next((word.partition("=")[2] for word in words if word.startswith("--node_id=")), "")
                    if any(str(self.cluster.scratch) in word for word in words):
                        found.append((process, node))
        return sorted(found, key=lambda entry: (entry[1], entry[0].pid))

    def trains_on(self, nodes: list[str]) -> bool:
        """Whether there is a training worker on one of the nodes."""
        return any(node in nodes for _, node in self.training_workers())

    def is_saving(self) -> bool:
        """Whether a worker has begun to write its state to local disk."""
        return any(self.scratch.glob("vit-staging-*/rank-*/*"))

    def is_uploading(self) -> bool:
        """Whether there is a checkpoint of the chaos run without a manifest."""
        run = self.run_url("chaos")
        names = [name for name in storage.contents(run) if name.startswith("step-")]
        return any("manifest.json" not in storage.contents(f"{run}/{name}") for name in names)


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
        "checkpoint": {"url": f"{world.bucket.url}/runs", "every": {"steps": every}},
        "evaluate": {"every": {"steps": 5 * every}},
        "tracking": {"uri": world.tracker.uri, "every": {"steps": 1}, "record_samples": True},
    }
