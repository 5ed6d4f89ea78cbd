"""A driver and workers of different code end in one line, whichever has what: real runs on copies of the project."""

import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from orchestrator.run.provenance import code_digest
from tests.cluster import CPUS, RayHead
from tests.paths import ROOT

PTH = Path(sysconfig.get_path("purelib")) / "vit-at-scale.pth"
HELD = CPUS - 1  # two workers of one CPU each have to wait


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project."""
    copy = tmp_path / "project"
    for folder in ("orchestrator", "data", "model", "jobs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def busy(ray_head: RayHead) -> Iterator[Callable[[], None]]:
    """A cluster without room for workers; call it to make room."""

    @ray.remote(num_cpus=HELD)
    class Holder:
        def ready(self) -> None:
            pass

    ray.init(address=ray_head.address, log_to_driver=False)
    holder = Holder.remote()  # type: ignore[attr-defined]
    ray.get(holder.ready.remote())
    yield lambda: ray.kill(holder)
    ray.shutdown()


def command(folder: Path) -> list[str]:
    keys = {
        "name": "code",
        "checkpoint.url": folder,
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "data.pack.to": f"{folder}/digits",
        "data.train.url": f"{folder}/digits/train",
        "data.eval.test.url": f"{folder}/digits/test",
    }
    sets = [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "orchestrator", "run", str(ROOT / "jobs/pretrain_digits.yaml"), *sets]


def change(project: Path) -> str:
    with (project / "model" / "vit.py").open("a") as file:
        file.write("# another version\n")
    return f"has digest {code_digest(project)[:12]}"


def remove_modules(project: Path) -> str:
    """As in a checkout from before there were these modules: among them are all that a worker unpickles first."""
    for folder in ("kinds", "training", "cluster"):
        shutil.rmtree(project / "orchestrator" / folder)
    return f"has digest {code_digest(project)[:12]}"


@pytest.mark.parametrize("spoil", [change, remove_modules])
def test_workers_with_other_code(
    project: Path, tmp_path: Path, ray_head: RayHead, busy: Callable[[], None], spoil: Callable[[Path], str]
) -> None:
    """The driver waits for room; when there is some, the workers have other code than it had when it started."""
    ours = code_digest(project)[:12]
    job = ray_head.start(*command(tmp_path), cwd=project)
    job.wait_until(workers_are_waited_for, "Ray Train's controller waits for room")
    theirs = spoil(project)
    busy()
    output = job.end()
    last = output.splitlines()[-1]
    assert job.process.returncode == 1, output
    assert "the run stopped: the workers run other code than this command: the worker on " in last
    assert f" {theirs}, this command {ours}; update the nodes or submit with --working-dir" in last
    assert "Traceback" not in output
    assert output.count("starting workers") == 1, "restarts cannot help"


def workers_are_waited_for() -> bool:
    """The controller has asked for room, and has loaded its own modules then."""
    return any(group["state"] == "PENDING" for group in ray.util.placement_group_table().values())


@pytest.mark.skipif(PTH.exists(), reason="the environment's .pth leads all of Ray's processes to the project")
def test_ray_on_the_drivers_node_with_no_code_at_all(project: Path, tmp_path: Path, ray_head: RayHead) -> None:
    """The driver finds the project through its own PYTHONPATH, and Ray's processes do not."""
    (tmp_path / "elsewhere").mkdir()
    environment = {"PYTHONPATH": str(project)}
    job = ray_head.start(*command(tmp_path), cwd=tmp_path / "elsewhere", environment=environment)
    output = job.end()
    assert job.process.returncode == 1, output
    assert "the workers run other code than this command: Ray on the driver's node has none" in output.splitlines()[-1]
    assert "Traceback" not in output
