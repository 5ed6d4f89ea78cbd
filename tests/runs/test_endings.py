"""Runs that end before their end: through a fault of the job's own, numbers that stay wrong, and Ctrl-C."""

import re
import shutil
import signal
from pathlib import Path

from mlflow.tracking import MlflowClient

from tests.cluster import CPUS, RayHead
from tests.runs.helpers import command


def test_the_jobs_own_fault_ends_it_at_once(ray_head: RayHead, folder: Path, digits: Path) -> None:
    """A shard that is gone: no restarts, and the last line names it."""
    shutil.copytree(digits, folder / "holed")
    shard = sorted((folder / "holed" / "train").glob("*.tar"))[0]
    shard.unlink()
    urls = {f"data.{key}.url": f"{folder}/holed/{key.split('.')[-1]}" for key in ("train", "eval.test")}
    more = {"data.pack": "null", "cluster.workers": 1, **urls}
    started = ray_head.start(*command(folder, "holed_run", **more))
    output = started.end()
    assert started.process.returncode == 1, output
    assert shard.name in output.strip().splitlines()[-1]
    assert output.count("starting workers") == 1


def test_numbers_that_stay_wrong_stop_it(ray_head: RayHead, folder: Path) -> None:
    """The second step's learning rate ruins the weights: back to the last checkpoint, once, and then the end."""
    more = {"optimizer.lr": 1e37, "training.max_bad_steps": 3, "checkpoint.every.steps": 1, "cluster.workers": 1}
    started = ray_head.start(*command(folder, "diverged", **more))
    output = started.end()
    assert started.process.returncode == 1, output
    skipped = "step 5: 3 steps in a row skipped (training.max_bad_steps = 3): "
    assert re.search(rf"{re.escape(skipped)}.*; going back to the last checkpoint\n.*continuing at step 2", output)
    last = output.strip().splitlines()[-1]
    assert skipped in last
    assert last.endswith("going back to a checkpoint did not help")


def test_ctrl_c_ends_a_job_that_waits_for_nodes(ray_head: RayHead, folder: Path) -> None:
    started = ray_head.start(*command(folder, "waiting", **{"cluster.workers": CPUS + 1}))
    started.wait_for(rf"needed for {CPUS + 1} workers: {CPUS + 1} CPU \(there are {CPUS}\)")
    started.process.send_signal(signal.SIGINT)
    output = started.end(60)
    assert started.process.returncode == 130, output
    assert output.splitlines()[-1].endswith("stopped; the same command continues at the newest checkpoint")


def test_sigterm_saves_and_ends_a_job(ray_head: RayHead, folder: Path) -> None:
    """Until then another command is refused, by the lock."""
    more = {"cluster.workers": 2, "checkpoint.every.steps": 1000, "schedule.length.steps": 1000}
    started = ray_head.start(*command(folder, "ended", **more))
    started.wait_for(r"step \d+/1,000 .* loss")
    other = ray_head.start(*command(folder, "ended", **more))
    refused = other.end(60)
    assert other.process.returncode == 2, refused
    assert f"(process {started.process.pid}, Ray at " in refused.splitlines()[-1]
    started.process.send_signal(signal.SIGTERM)
    output = started.end(60)
    assert started.process.returncode == 143, output
    saved = re.search(r"the command received SIGTERM: saved at step (\d+), where the same", output)
    assert saved is not None, output
    assert list((folder / "ended").glob(f"step-{int(saved[1]):09d}-*/manifest.json"))
    assert not (folder / "ended" / "lock").exists()
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs(["1"], filter_string="attributes.run_name = 'ended'")
    assert run.info.status == "KILLED"
