"""benchmarks/scaling: its arithmetic against numbers by hand and limits, its table against a fresh
count."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling import check
from benchmarks.scaling.model import (
    Device,
    Links,
    Work,
    bucket_shares,
    collective_seconds,
    exposed_buckets,
    exposed_gathers,
    measured_device,
    step_time,
)
from benchmarks.scaling.tally import TRAFFIC, expected, tally
from infra.local.ranks import run_ranks
from model import training_flops, vit_config
from orchestrator.engine.settings import REDUCE_BUCKET
from tests.paths import ROOT

LINKS = Links(node=8, inside=400e9, between=25e9, hop_inside=2e-6, hop_between=10e-6, fraction=0.5)
H14 = vit_config("H/14", num_classes=18291, representation_size=1280)
WORK = Work(H14, 655_835_251, batch=4096, micro_batch=64, bucket=500_000_000)
DEVICE = Device(rate=400e12, fixed=1.2e11)


def test_collectives_by_hand() -> None:
    """1 GB: over 8 accelerators at 0.5 * 400 GB/s, over 16 at 0.5 * 8 * 25 GB/s."""
    assert collective_seconds("all_gather", 1e9, 1, 8, LINKS) == pytest.approx(7 / 8 / 200 + 7 * 2e-6)
    assert collective_seconds("all_gather", 1e9, 3, 16, LINKS) == pytest.approx(15 / 16 / 100 + 3 * (14 * 2e-6 + 10e-6))
    assert collective_seconds("all_reduce", 1e9, 1, 8, LINKS) == pytest.approx(2 * (7 / 8 / 200 + 7 * 2e-6))
    # a few bytes between 512 nodes: a ring has 4,095 hops there and again, a tree 7 inside and 9 between, twice
    assert collective_seconds("all_reduce", 0, 1, 4096, LINKS) == pytest.approx(2 * (7 * 2e-6 + 9 * 10e-6))


def test_the_slower_link_counts() -> None:
    """Eight cards of 25 GB/s carry 200 GB/s between nodes; cards that carry more than the node does not help."""
    assert [LINKS.bandwidth(ranks) for ranks in (8, 9, 4096)] == [200e9, 100e9, 100e9]
    wide = dataclasses.replace(LINKS, between=100e9)
    assert wide.bandwidth(4096) == 200e9


@pytest.mark.parametrize("ranks", [2, 8, 24, 100])
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(ranks: int) -> None:
    """As a ring, which it is for many bytes; a tree may only be shorter."""
    halves = sum(collective_seconds(kind, 1e12, 1, ranks, LINKS) for kind in ("reduce_scatter", "all_gather"))
    assert collective_seconds("all_reduce", 1e12, 1, ranks, LINKS) == pytest.approx(halves)
    few = sum(collective_seconds(kind, 10, 1, ranks, LINKS) for kind in ("reduce_scatter", "all_gather"))
    assert collective_seconds("all_reduce", 10, 1, ranks, LINKS) <= few


def test_collectives_grow_with_ranks_bytes_and_calls() -> None:
    for kind in ("all_reduce", "all_gather", "reduce_scatter"):
        by_ranks = [collective_seconds(kind, 1e9, 2, ranks, LINKS) for ranks in (1, 2, 8, 64, 512, 2048)]
        assert by_ranks[0] == 0
        assert by_ranks == sorted(by_ranks)
        assert collective_seconds(kind, 1e9, 2, 64, LINKS) < collective_seconds(kind, 2e9, 2, 64, LINKS)
        assert collective_seconds(kind, 1e9, 2, 64, LINKS) < collective_seconds(kind, 1e9, 3, 64, LINKS)


def test_gathers_one_ahead() -> None:
    """Against a simulation: piece i+1 is gathered while piece i computes."""
    for compute, gather, calls in itertools.product((1.0, 5.0), (0.5, 1.0, 20.0), (1, 4, 13)):
        gathered = [gather / calls * (i + 1) for i in range(calls)]
        done = 0.0
        for there in gathered:
            done = max(done, there) + compute / calls
        assert exposed_gathers(compute, gather, calls) == pytest.approx(done - compute)


def test_buckets() -> None:
    """4 of 5 parts are there after 80 % of the pass, and travel beside the rest of it."""
    assert bucket_shares(5, 4) == [0.8, 0.2]
    assert bucket_shares(8, 4) == [0.5, 0.5]
    assert exposed_buckets(10.0, 1.0, [0.8, 0.2]) == pytest.approx(0.2)  # the first 0.8 hide in 2
    assert exposed_buckets(10.0, 5.0, [0.8, 0.2]) == pytest.approx(2.0 + 1.0)  # 2 of the first 4 hide
    assert exposed_buckets(10.0, 5.0, [1.0]) == pytest.approx(5.0)  # one bucket hides nothing


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_limits_of_a_step(stage: int) -> None:
    alone = step_time(WORK, stage, 1, DEVICE, LINKS)
    assert alone.exposed == 0
    assert alone.efficiency == pytest.approx(1.0)
    assert alone.seconds == pytest.approx(64 * (64 * training_flops(H14) + 32 * 1.2e11) / 400e12)

    free = Links(node=8, inside=math.inf, between=math.inf, hop_inside=0, hop_between=0, fraction=1)
    fast = step_time(WORK, stage, 512, DEVICE, free)
    assert fast.exposed == pytest.approx(0)
    assert fast.seconds == pytest.approx((8 * training_flops(H14) + 32 * 1.2e11) / 400e12)
    assert fast.efficiency < 0.8  # 8 images run slower than 64

    steps = [step_time(WORK, stage, ranks, DEVICE, LINKS) for ranks in (8, 64, 512, 2048)]
    for step in steps:
        assert 0 <= step.hidden <= step.gradients + step.weights
        assert step.seconds == pytest.approx(step.compute + step.gradients + step.weights + step.small - step.hidden)
    shares = [step.exposed_share for step in steps]
    assert shares == sorted(shares)


def test_a_step_by_hand() -> None:
    """Stage 1 on 64: 2 bytes a parameter, reduced and gathered at 100 GB/s, after everything else."""
    gigabytes = 2 * WORK.parameters / 1e9
    step = step_time(WORK, 1, 64, DEVICE, dataclasses.replace(LINKS, hop_inside=0, hop_between=0))
    assert step.gradients == pytest.approx(2 * 63 / 64 * gigabytes / 100)
    assert step.weights == pytest.approx(63 / 64 * gigabytes / 100)
    assert step.hidden == pytest.approx(0)


def test_a_measured_device_takes_what_was_measured() -> None:
    device = measured_device(H14, 32, 300.0, 1.2e11)
    assert device.pass_seconds(H14, 32) == pytest.approx(32 / 300)
    assert device.pass_seconds(H14, 64) < 2 * 32 / 300  # the fixed cost comes once


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_table_says_what_is_sent(stage: int) -> None:
    """A fresh count of two micro-batches, between two processes; one of each is in the table as well."""
    counted = {(c.kind, c.phase): c for c in run_ranks(2, tally, stage, 2)[0]}
    table = {(c.kind, c.phase): c for c in expected(stage, 2)}
    assert counted.keys() == table.keys()
    for key, row in table.items():
        assert counted[key].calls == row.calls, key
        # Norms and biases weigh ten times more in the network that is counted, which is a tenth as wide.
        assert counted[key].size == pytest.approx(row.size, abs=0.02), key
    # A gradient that no longer fits leaves some of its bucket empty, so there may be one bucket more.
    ideal = len(bucket_shares(WORK.parameters, REDUCE_BUCKET))
    assert all(ideal <= t.calls <= ideal + 1 for t in TRAFFIC[stage] if t.hides == "backward")


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.scaling", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_line(tmp_path: Path) -> None:
    """From a measurement: of the rows, the fastest of ours with this model in bf16."""
    row = {"model": "ViT-H/14", "impl": "ours", "precision": "bf16", "checkpointing": "none", "compiled": True}
    rows = [
        {**row, "batch": 32, "images_per_s": 300.0},
        {**row, "batch": 64, "images_per_s": 320.0},
        {**row, "batch": 64, "images_per_s": None},  # failed
        {**row, "batch": 64, "images_per_s": 900.0, "impl": "timm"},
        {**row, "batch": 64, "images_per_s": 900.0, "precision": "float32"},
        {**row, "batch": 64, "images_per_s": 900.0, "model": "ViT-B/16"},
    ]
    (tmp_path / "step.txt").write_text("a table\n" + json.dumps({"device": "NVIDIA X", "rows": rows}) + "\n")
    done = run("--step", str(tmp_path / "step.txt"), "--ranks", "64", "128")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    found = json.loads(last)
    assert found["device"]["source"] == "measured on NVIDIA X"
    assert "ASSUMED" not in done.stdout
    assert [(row["ranks"], row["stage"]) for row in found["rows"]] == list(itertools.product((64, 128), (1, 2, 3)))
    assert found["rows"][0]["compute_ms"] == pytest.approx(1e3 * 64 / 320, rel=1e-3)  # 64 images, as measured
    assert found["rows"][0]["state_gb"] == 4.06  # docs/sizing.md
    assert any("128" in line for line in table)
    for ranks in ("64", "128"):
        of_ranks = [row for row in found["rows"] if row["ranks"] == int(ranks)]
        assert found["fastest"][ranks] == min(of_ranks, key=lambda row: row["step_ms"])["stage"]


def test_an_assumption_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--ranks", "8"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert "ASSUMED" in table[1]
    assert json.loads(last)["device"]["source"] == "ASSUMED"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "8192"], "fewer images than accelerators"),
        (["--ranks", "0"], "is not a whole number above 0"),
        (["--between", "-1"], "is not a number above 0"),
        (["--fraction", "1.5"], "above 1"),
        (["--model", "Huge"], "Huge"),
        (["--step", "nowhere.txt"], "nowhere.txt"),
        (["--step", "pyproject.toml"], "pyproject.toml: its last line is not what"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = scaling.main(words)
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert said in error


def test_predicted_bytes_by_hand() -> None:
    """Stage 1, two processes: a ring sends all of the 2 bytes for the all-reduce, and half of them for the gather."""
    assert check.sent_bytes(1, 2, 1000) == pytest.approx(2000 + 1000)
    assert check.sent_bytes(3, 4, 1000) == pytest.approx(1.5 * 2000 + 0.75 * 2000)
    slow, fast = (check.predicted(0.1, 1, 2, 10**6, rate) for rate in (10, 20))
    assert slow - 0.1 == pytest.approx(2 * (fast - 0.1))


def test_behind_a_throttled_link() -> None:
    """Real processes: the bytes are the table's, and halving the rate makes a step longer by about its bytes."""
    if why := check.missing():
        pytest.skip(why)
    fast, slow = check.check([2], [1], [100.0, 50.0], 3)
    for row in (fast, slow):
        assert row["sent_ratio"] == pytest.approx(1.0, abs=0.1)
        assert 0.6 < row["ratio"] < 1.8
    assert slow["measured_s"] > 1.4 * fast["measured_s"]
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert f"scaling-{os.getpid()}-" not in left
