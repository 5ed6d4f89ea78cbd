"""The arithmetic of benchmarks/scaling against numbers by hand, simulations and limits."""

import dataclasses
import itertools
import math

import pytest

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
from model import training_flops, vit_config

LINKS = Links(node=8, inside=400e9, between=25e9, hop_inside=2e-6, hop_between=10e-6, fraction=0.5)
H14 = vit_config("H/14", num_classes=18291, representation_size=1280)
WORK = Work(H14, 655_835_251, batch=4096, micro_batch=64, bucket=500_000_000)
DEVICE = Device(rate=400e12, fixed=1.2e11)


def test_collectives_by_hand() -> None:
    """1 GB: over 8 accelerators at 0.5 * 400 GB/s, over 16 at 0.5 * 8 * 25 GB/s."""
    assert collective_seconds("all_gather", 1e9, 1, 8, LINKS) == pytest.approx(7 / 8 / 200 + 7 * 2e-6)
    assert collective_seconds("all_gather", 1e9, 3, 16, LINKS) == pytest.approx(15 / 16 / 100 + 3 * (14 * 2e-6 + 10e-6))
    assert collective_seconds("all_reduce", 1e9, 1, 8, LINKS) == pytest.approx(2 * (7 / 8 / 200 + 7 * 2e-6))
    # A few bytes among 512 nodes: a ring has twice 4,095 hops, a tree twice 7 hops inside and 9 between.
    assert collective_seconds("all_reduce", 0, 1, 4096, LINKS) == pytest.approx(2 * (7 * 2e-6 + 9 * 10e-6))


def test_the_slower_link_counts() -> None:
    """Eight cards of 25 GB/s carry 200 GB/s between nodes. Cards that are faster than the node's links do not help."""
    assert [LINKS.bandwidth(ranks) for ranks in (8, 9, 4096)] == [200e9, 100e9, 100e9]
    wide = dataclasses.replace(LINKS, between=100e9)
    assert wide.bandwidth(4096) == 200e9


@pytest.mark.parametrize("ranks", [2, 8, 24, 100])
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(ranks: int) -> None:
    """For many bytes, the all-reduce is a ring. For few bytes, it may be a tree, if that is shorter."""
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
    """Against a simulation in which piece i+1 is gathered while piece i computes."""
    for compute, gather, calls in itertools.product((1.0, 5.0), (0.5, 1.0, 20.0), (1, 4, 13)):
        gathered = [gather / calls * (i + 1) for i in range(calls)]
        done = 0.0
        for there in gathered:
            done = max(done, there) + compute / calls
        assert exposed_gathers(compute, gather, calls) == pytest.approx(done - compute)


def test_buckets() -> None:
    """4 of 5 parts are ready after 80 % of the pass, and are sent during the rest of it."""
    assert bucket_shares(5, 4) == [0.8, 0.2]
    assert bucket_shares(8, 4) == [0.5, 0.5]
    assert exposed_buckets(10.0, 1.0, [0.8, 0.2]) == pytest.approx(0.2)  # the first 0.8 are hidden by 2
    assert exposed_buckets(10.0, 5.0, [0.8, 0.2]) == pytest.approx(2.0 + 1.0)  # 2 of the first 4 are hidden
    assert exposed_buckets(10.0, 5.0, [1.0]) == pytest.approx(5.0)  # one bucket is not hidden


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
    assert fast.efficiency < 0.8  # 8 images are slower than 64

    steps = [step_time(WORK, stage, ranks, DEVICE, LINKS) for ranks in (8, 64, 512, 2048)]
    for step in steps:
        assert 0 <= step.hidden <= step.gradients + step.weights
        assert step.seconds == pytest.approx(step.compute + step.gradients + step.weights + step.small - step.hidden)
    shares = [step.exposed_share for step in steps]
    assert shares == sorted(shares)


def test_a_step_by_hand() -> None:
    """Stage 1 on 64: 2 bytes per parameter, reduced and gathered at 100 GB/s, without overlap."""
    gigabytes = 2 * WORK.parameters / 1e9
    step = step_time(WORK, 1, 64, DEVICE, dataclasses.replace(LINKS, hop_inside=0, hop_between=0))
    assert step.gradients == pytest.approx(2 * 63 / 64 * gigabytes / 100)
    assert step.weights == pytest.approx(63 / 64 * gigabytes / 100)
    assert step.hidden == pytest.approx(0)


def test_a_measured_device_has_the_measured_time() -> None:
    device = measured_device(H14, 32, 300.0, 1.2e11)
    assert device.pass_seconds(H14, 32) == pytest.approx(32 / 300)
    assert device.pass_seconds(H14, 64) < 2 * 32 / 300  # the fixed cost occurs once
