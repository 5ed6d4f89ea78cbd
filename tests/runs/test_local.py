"""Ray's autoscaler on this machine: nodes come for a run and go afterwards, can be told to go, and can be lost."""

import json
import os
import re
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from data import SampleOrder, open_index
from infra.local.__main__ import main
from infra.local.cluster import ClusterError, LocalCluster
from orchestrator.history.ledger import trained_samples
from tests.cluster import Command, until
from tests.runs.helpers import BATCH, command, training_workers, wait_for_checkpoint

STEPS, FIRST_SAVE = 240, 20


def elastic_run(folder: Path) -> list[str]:
    """The command of a run of the digits job with ZeRO stage 2, on one to three workers."""
    keys = {
        "parallel.zero_stage": 2,
        "cluster.workers": "[1, 3]",
        "cluster.resize_every": 2,
        "schedule.length.steps": STEPS,
        "schedule.warmup": "null",
        "checkpoint.every.steps": FIRST_SAVE,
        "evaluate.every.steps": STEPS,
    }
    return command(folder, "elastic", without=["schedule.warmup.steps"], **keys)


@contextmanager
def bounds(cluster: LocalCluster, least: int, most: int) -> Iterator[None]:
    cluster.set_workers(least, most)
    try:
        yield
    finally:
        cluster.set_workers(0, 3)


def attempts_by_step(run: Path) -> dict[int, set[int]]:
    """Which attempts trained each step, from the run's own ledger."""
    found: dict[int, set[int]] = defaultdict(set)
    for path in (run / "samples").glob("*.json"):
        record = json.loads(path.read_text())
        for step in record["steps"]:
            found[int(step)].add(record["attempt"])
    return found


def test_nodes_come_and_go_around_a_run_and_in_the_middle_of_it(local_cluster: LocalCluster, tmp_path: Path) -> None:
    """0 nodes, 1, then 3, one of which is drained, and 0 again: no step is done twice, no sample missed."""
    until(lambda: not local_cluster.workers(), "no worker nodes")
    assert [(node.head, node.resources.get("CPU", 0)) for node in local_cluster.nodes()] == [(True, 0)]
    with bounds(local_cluster, 0, 1):
        run = Command(elastic_run(tmp_path), local_cluster.environment)
        wait_for_checkpoint(tmp_path / "elastic", FIRST_SAVE, run)
        assert [node.resources["CPU"] for node in local_cluster.workers()] == [1]
        (worker,) = training_workers(local_cluster.pid)
        worker.suspend()  # so that however long the nodes take to come, the run is not over by then
        local_cluster.set_workers(0, 3)
        until(lambda: len(local_cluster.workers()) == 3, "three worker nodes")
        worker.resume()
        run.wait_for(r"the number of workers changes: saved at step \d+")
        run.wait_for(r"continuing at step \d+ of \d+ on 3 workers")
        local_cluster.drain(local_cluster.workers()[0].id, 20)
        run.wait_for(r"a node is being taken away: saved at step \d+")
        output = run.end()
    assert run.process.returncode == 0, output
    assert re.findall(r"saved at step (\d+)", output) == re.findall(r"continuing at step (\d+)", output)
    attempts = {step: len(each) for step, each in attempts_by_step(tmp_path / "elastic").items()}
    assert attempts == dict.fromkeys(range(STEPS), 1)
    trained = trained_samples(str(tmp_path / "elastic"))
    order = SampleOrder(open_index(f"{tmp_path}/digits/train"), batch_size=BATCH)
    assert trained == {step: sorted(i for i in order.batch(step) if i >= 0) for step in range(STEPS)}
    with pytest.raises(ClusterError, match="the cluster has no node"):
        local_cluster.drain("0" * 56, 5)
    until(lambda: not local_cluster.workers(), "the idle nodes go")


def test_it_listens_on_loopback_only_and_asks_for_a_token(local_cluster: LocalCluster) -> None:
    head = psutil.Process(local_cluster.pid)
    pids = {process.pid for process in (head, *head.children(recursive=True))}
    connections = [c for c in psutil.net_connections("tcp") if c.pid in pids]
    listening = [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 5
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{local_cluster.jobs}/api/v0/nodes", timeout=60)


def test_the_commands(local_cluster: LocalCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the cluster of the other tests, which stays as it is."""
    place = ["--folder", str(tmp_path / "cluster")]
    assert main(["status", *place]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["up", "--max-workers", "1", *place]) == 0
    exports = [line for line in capsys.readouterr().out.splitlines() if line.startswith("export ")]
    token = tmp_path / "cluster" / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() not in "".join(exports)
    assert main(["up", *place]) == 2
    assert "a cluster already runs there" in capsys.readouterr().err

    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    script = "\n".join([*exports, f"{sys.executable} -m ray.scripts.scripts list nodes --format=json"])
    listed = subprocess.run(["sh", "-c", script], env=without, capture_output=True, text=True, timeout=120, check=True)
    assert [node["is_head_node"] for node in json.loads(listed.stdout)] == [True]

    cluster = LocalCluster.find(tmp_path / "cluster")
    assert cluster is not None
    assert main(["down", *place]) == 0
    assert main(["down", *place]) == 0
    assert not cluster.scratch.exists()
    assert not psutil.pid_exists(cluster.pid) or psutil.Process(cluster.pid).status() == psutil.STATUS_ZOMBIE
    assert local_cluster.nodes()[0].head
