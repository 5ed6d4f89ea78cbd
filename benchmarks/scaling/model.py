"""Calculates the time of a step on many accelerators: computation, collectives, and their overlap.

**Links.** There are W accelerators in nodes of n. A ring connects all accelerators of a node, then those of the next
node. NCCL makes one ring per network card; each ring leaves the node through another card, so that all cards work at
once. All data in the rings pass every link inside a node, and an n-th of them passes each card. So the rate of data in
the rings, which NCCL's tests call bus bandwidth (nccl-tests, doc/PERFORMANCE.md), is

    B = fraction * link in the node                         one node
    B = fraction * min(link in the node, n * card)          more than one

**Collectives** of S bytes take bytes over bandwidth, plus a constant per hop (Thakur, Rabenseifner and Gropp 2005; hops
as in NCCL's src/graph/tuning.cc). Once round a ring is W - 1 hops, nodes - 1 of them between nodes:

    all-gather, reduce-scatter    ring    (W-1)/W S/B + once round
    all-reduce                    ring    both of these, one after the other
                                  tree    2 S/B + 2 ((n-1) hops inside + log2(nodes) hops between)

An all-reduce takes the shorter of its two times, since NCCL chooses. For the other two, NCCL has a tree (PAT) only if
every node has one accelerator.

**Computation.** A micro-batch of m images takes  (m * FLOPs + depth * fixed) / rate
(`orchestrator/engine/memory/fit.py`), a third of it forward. So small micro-batches are slow, and a fixed global batch
on many accelerators makes them small.

**Overlap.** A collective beside computation costs only the time that is not hidden by it:

- Gathers, one ahead: of n equal pieces with c to compute and g to gather, only the first gather and the last
  computation have no overlap:  g + (n-1) max(g, c) + c.
- Gradients in buckets: a bucket is sent when it is full and the previous one has arrived. A backward pass produces
  gradients at a constant rate, so a bucket that holds all of them is not hidden at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scaling.tally import TRAFFIC, Kind, Traffic
from model import ViTConfig, training_flops

FORWARD_SHARE = 1 / 3  # of forward and backward: the backward pass has twice as many products


@dataclass(frozen=True)
class Links:
    """The links between the accelerators, in bytes and seconds. Bandwidths are those of one direction.

    Attributes:
        node: number of accelerators per node, and of network cards.
        inside: bandwidth of an accelerator's link in its node.
        between: bandwidth of a network card.
        hop_inside, hop_between: latency of a hop.
        fraction: share of the bandwidth that collectives reach.
    """

    node: int
    inside: float
    between: float
    hop_inside: float
    hop_between: float
    fraction: float

    def nodes(self, ranks: int) -> int:
        return math.ceil(ranks / self.node)

    def bandwidth(self, ranks: int) -> float:
        """Bus bandwidth of a ring over `ranks` accelerators."""
        several = self.nodes(ranks) > 1
        return self.fraction * (min(self.inside, self.node * self.between) if several else self.inside)

    def once_round(self, ranks: int) -> float:
        """Latency of a ring's ranks - 1 hops."""
        between = self.nodes(ranks) - 1
        return (ranks - 1 - between) * self.hop_inside + between * self.hop_between


def collective_seconds(kind: Kind, size: float, calls: int, ranks: int, links: Links) -> float:
    """Seconds of `calls` successive collectives with `size` bytes in total."""
    if ranks == 1:
        return 0.0
    wire, latency = size / links.bandwidth(ranks), calls * links.once_round(ranks)
    once = (ranks - 1) / ranks * wire + latency
    if kind != "all_reduce":
        return once
    if links.nodes(ranks) == 1:
        return 2 * once
    deep = (links.node - 1) * links.hop_inside + math.log2(links.nodes(ranks)) * links.hop_between
    return min(2 * once, 2 * wire + 2 * calls * deep)


@dataclass(frozen=True)
class Device:
    """A single accelerator, measured or assumed.

    Attributes:
        rate: FLOPs of the model per second, with so many images that the fixed cost is negligible.
        fixed: fixed cost of a pass through a block, expressed as the FLOPs that take as long.
    """

    rate: float
    fixed: float

    def pass_seconds(self, config: ViTConfig, images: int) -> float:
        """Seconds of the forward and backward pass of one micro-batch."""
        return (images * training_flops(config) + config.depth * self.fixed) / self.rate


def measured_device(config: ViTConfig, images: int, images_per_second: float, fixed: float) -> Device:
    """The device that was measured with steps of `images` at `images_per_second`."""
    flops = images * training_flops(config) + config.depth * fixed
    return Device(flops * images_per_second / images, fixed)


@dataclass(frozen=True)
class Work:
    """The work of a step on all accelerators together.

    Attributes:
        config: the model.
        parameters: number of the model's parameters.
        batch: images of all accelerators.
        micro_batch: largest number of images that an accelerator computes at once.
        bucket: number of gradients that stages 2 and 3 exchange at once.
    """

    config: ViTConfig
    parameters: int
    batch: int
    micro_batch: int
    bucket: int

    def passes(self, ranks: int) -> tuple[int, int]:
        """Number of micro-batches per step, and images of each."""
        local = math.ceil(self.batch / ranks)
        passes = math.ceil(local / self.micro_batch)
        return passes, math.ceil(local / passes)


@dataclass(frozen=True)
class Step:
    """Seconds of one step.

    Attributes:
        compute: forward and backward.
        gradients, weights, small: collectives by their content; small are norms, flags, and the weights that stage 3
            keeps on every rank.
        exposed: time of the collectives that does not overlap computation.
        ideal: time of the same images at the rate of a single accelerator with full micro-batches.
    """

    compute: float
    gradients: float
    weights: float
    small: float
    exposed: float
    ideal: float

    @property
    def hidden(self) -> float:
        return self.gradients + self.weights + self.small - self.exposed

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed

    @property
    def efficiency(self) -> float:
        return self.ideal / self.seconds

    @property
    def exposed_share(self) -> float:
        return self.exposed / self.seconds


def step_time(work: Work, stage: int, ranks: int, device: Device, links: Links) -> Step:
    """A step of ZeRO `stage` on `ranks` accelerators."""
    passes, images = work.passes(ranks)
    of_pass = device.pass_seconds(work.config, images)
    full = device.pass_seconds(work.config, work.micro_batch) / work.micro_batch  # an image
    carried = {"gradients": 0.0, "weights": 0.0, "small": 0.0}
    exposed = 0.0
    for traffic in TRAFFIC[stage]:
        times = passes if traffic.every == "micro_batch" else 1
        shares = bucket_shares(work.parameters, work.bucket)
        calls = len(shares) if traffic.hides == "backward" else traffic.calls
        each = collective_seconds(traffic.kind, traffic.size * work.parameters, calls, ranks, links)
        carried[_what(traffic)] += times * each
        match traffic.hides:
            case "nothing":
                exposed += times * each
            case "forward":
                exposed += times * exposed_gathers(FORWARD_SHARE * of_pass, each, calls)
            case "backward":
                exposed += times * exposed_buckets((1 - FORWARD_SHARE) * of_pass, each, shares)
    return Step(passes * of_pass, **carried, exposed=exposed, ideal=work.batch / ranks * full)


def _what(traffic: Traffic) -> str:
    if traffic.size == 0:
        return "small"
    return "weights" if traffic.kind == "all_gather" else "gradients"


def bucket_shares(parameters: int, bucket: int) -> list[float]:
    """Share of all gradients in each bucket, in the order in which the buckets fill."""
    full, rest = divmod(parameters, bucket)
    return [bucket / parameters] * full + ([rest / parameters] if rest else [])


def exposed_gathers(compute: float, gather: float, calls: int) -> float:
    """Exposed time of equal gathers, each one ahead of the computation that needs it."""
    return (gather + compute + (calls - 1) * max(gather, compute)) / calls - compute


def exposed_buckets(compute: float, reduce: float, shares: Sequence[float]) -> float:
    """Exposed time of successive reductions, each of which begins when its share of the gradients exists."""
    ready = arrived = 0.0
    for share in shares:
        ready += share * compute
        arrived = max(ready, arrived) + share * reduce
    return arrived - compute
