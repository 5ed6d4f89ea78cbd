"""A run that is killed in every way, from a store in bad weather: it ends as if nothing had happened."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from data import storage
from infra.local.stores import FaultyProxy, gcs_server, reached_by
from orchestrator.checkpoint.manifest import MANIFEST
from tests.cluster import RayHead, until
from tests.orchestrator.checkpoint.helpers import weights
from tests.runs.helpers import (
    EVERY,
    assert_every_sample_once_an_epoch,
    command,
    history,
    training_workers,
    wait_for_checkpoint,
)


def test_killed_again_and_again_in_bad_weather(quiet: Path, ray_head: RayHead, folder: Path) -> None:
    """A worker is killed, a worker hangs, the job is killed and goes on with 3 workers at another stage.

    Until then the images come from a store: a tenth of the requests fail, some stall, some are cut short. As long as
    there are as many workers, the weights equal to the last bit those of the run that reads from disk. The rest reads
    from disk, too.
    """
    run, workers = folder / "killed", os.getpid()
    with gcs_server() as server:  # others: tests/data/storage/test_stores.py
        with reached_by(server) as bucket:
            for path in sorted((folder / "digits").glob("*/*")):
                storage.write_atomic(f"{bucket}/digits/{path.parent.name}/{path.name}", path.read_bytes())
        with FaultyProxy(server, seed=3, fail=0.1, stall=0.05, truncate=0.1) as proxy:
            urls = {f"data.{key}.url": f"{bucket}/digits/{key.split('.')[-1]}" for key in ("train", "eval.test")}
            more = {"data.pack": "null", "cluster.hang_timeout": 20, **urls}
            words = command(folder, "killed", **more)
            environment = {"DATA_REQUEST_SECONDS": "2", **proxy.server.environment}
            started = ray_head.start(*words, environment=environment)
            wait_for_checkpoint(run, EVERY, started)
            training_workers(workers)[0].send_signal(signal.SIGKILL)
            wait_for_checkpoint(run, 2 * EVERY, started)
            training_workers(workers)[1].send_signal(signal.SIGSTOP)
            wait_for_checkpoint(run, 3 * EVERY, started)
            output = started.kill()
            assert sum(proxy.counts[fate] for fate in ("fail", "stall", "truncate")) > 3, proxy.counts
    assert "worker 1 has not answered for" in output
    assert len(re.findall(r"continuing at step \d+ of 60 on 2 workers", output)) == 2
    for step in (2 * EVERY, 3 * EVERY):
        here, there = weights(quiet, step), weights(run, step)
        assert all(torch.equal(here[key], there[key]) for key in here)
    until(lambda: not training_workers(workers), "the killed job's workers end")
    foreign = tear(run, quiet)
    output = ray_head.call(*command(folder, "killed", **{"cluster.workers": 3, "parallel.zero_stage": 2}))
    assert re.search(rf"checkpoint {foreign}: owner.json: it belongs to the run \w+, and this is \w+", output)
    assert re.search(rf"checkpoint step-{3 * EVERY:09d}-\w+: rank-\S+ does not match its SHA-256", output)
    assert f"{run}/quarantine.jsonl: line 1 is damaged" in output
    assert f"{run}/summary.json is damaged" in output
    assert f"continuing at step {2 * EVERY} of 60 on 3 workers" in output
    assert (run / foreign / MANIFEST).exists()
    assert_as_if_nothing_happened(quiet, folder, "killed")


def tear(run: Path, other: Path) -> str:
    """Leave half a line in each file that a run reads back, and the last checkpoint of another run as the newest.

    Our newest checkpoint gets a damage that only a reader of its files notices. Returns the name of the other one.
    """
    for name in ("quarantine.jsonl", "summary.json", *(path.name for path in run.glob("tracking-*.jsonl"))):
        with (run / name).open("a") as file:
            file.write('{"set": "train", "id": 12')
    shard = min(max(run.glob(f"step-*/{MANIFEST}")).parent.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    newest = max(other.glob("step-*"))
    shutil.copytree(newest, run / newest.name)
    return newest.name


def assert_as_if_nothing_happened(quiet: Path, folder: Path, name: str) -> None:
    """Samples, weights and history equal those of the undisturbed run, on whatever workers."""
    assert_every_sample_once_an_epoch(folder / name, folder)
    expected, found = history(folder, "quiet", "train/loss"), history(folder, name, "train/loss")
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert dict(found) == pytest.approx(dict(expected), rel=1e-4)
    samples = [json.loads((run / "summary.json").read_text())["totals"]["samples"] for run in (quiet, folder / name)]
    assert samples[0] == samples[1]
    here, there = weights(quiet), weights(folder / name)
    # Adam divides each gradient by its size: where it is zero but for rounding (the keys' biases, which softmax
    # ignores), other rounding gives another direction. All together the weights agree.
    ours, theirs = (torch.cat([w[k] for k in sorted(w) if k.startswith("weight/")]) for w in (here, there))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
