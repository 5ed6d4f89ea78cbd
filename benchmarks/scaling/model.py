"""The time of a step on many accelerators, by arithmetic: computation, collectives, and which of them hide.

**Links.** W accelerators in nodes of n. A ring goes through all accelerators of a node and on to the next node. NCCL
lays as many rings as a node has network cards, each of which leaves the node through another card, so that all cards
work at once. What goes round passes every link inside a node, and an n-th of it every card. So the rate at which data
goes round, which NCCL's tests call bus bandwidth (nccl-tests, doc/PERFORMANCE.md), is

    B = fraction * link in the node                         one node
    B = fraction * min(link in the node, n * card)          more than one

**Collectives** of S bytes (Thakur, Rabenseifner and Gropp 2005; NCCL's src/graph/tuning.cc counts the hops so): bytes
over bandwidth, and a constant for each hop. Once round are W - 1 hops, nodes - 1 of them between nodes:

    all-gather, reduce-scatter    ring    (W-1)/W S/B + once round
    all-reduce                    ring    both of these, one after the other
                                  tree    2 S/B + 2 ((n-1) hops inside + log2(nodes) hops between)

Of an all-reduce the shorter one counts, as NCCL chooses. For the other two NCCL has a tree (PAT) only where every node
has one accelerator.

**Computation.** A micro-batch of m images takes  (m * FLOPs + depth * fixed) / rate
(`orchestrator/engine/memory/fit.py`), a third of it forward. So few images run slowly, and a global batch leaves few
images to each of many accelerators.

**Hiding.** What runs beside computation costs what sticks out of it:

- Gathers, one ahead: of n equal pieces that take c to compute and g to gather, the first gather and the last
  computation stand alone:  g + (n-1) max(g, c) + c.
- Gradients in buckets: one begins to travel when it is full and the one before has arrived. A backward pass makes
  gradients at a constant rate, so a bucket that holds all of them hides nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.scaling.tally import TRAFFIC, Kind, Traffic
from model import ViTConfig, training_flops

FORWARD_SHARE = 1 / 3  # of a pass: the backward pass has twice the products of the forward pass


@dataclass(frozen=True)
class Links:
    """What joins the accelerators. Bytes and seconds; bandwidth in one direction, of one accelerator.

    Attributes:
        node: accelerators of a node, and network cards.
        inside, between: bandwidth to another accelerator of the node; of a card.
        hop_inside, hop_between: latency of a hop.
        fraction: of the bandwidth that collectives reach.
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
    """Seconds of `calls` collectives one after another, of `size` bytes in all."""
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
    """A single accelerator, as measured or assumed.

    Attributes:
        rate: FLOPs of the model a second, where many images hide the fixed cost.
        fixed: FLOPs that a pass through a block takes as long as, besides its images.
    """

    rate: float
    fixed: float

    def pass_seconds(self, config: ViTConfig, images: int) -> float:
        """Forward and backward, of one micro-batch."""
        return (images * training_flops(config) + config.depth * self.fixed) / self.rate


def measured_device(config: ViTConfig, images: int, images_per_second: float, fixed: float) -> Device:
    """The device that takes steps of `images` at this rate."""
    flops = images * training_flops(config) + config.depth * fixed
    return Device(flops * images_per_second / images, fixed)


@dataclass(frozen=True)
class Work:
    """What all accelerators do together in a step.

    Attributes:
        parameters: of the model.
        batch: images, of all accelerators.
        micro_batch: most images that an accelerator computes at once.
        bucket: gradients that stages 2 and 3 exchange at once.
    """

    config: ViTConfig
    parameters: int
    batch: int
    micro_batch: int
    bucket: int

    def passes(self, ranks: int) -> tuple[int, int]:
        """Micro-batches of a step, and the images of each."""
        local = math.ceil(self.batch / ranks)
        passes = math.ceil(local / self.micro_batch)
        return passes, math.ceil(local / passes)


@dataclass(frozen=True)
class Step:
    """Seconds of one step.

    Attributes:
        gradients, weights, small: collectives, by what they carry: norms, verdicts and the weights that stage 3 keeps
            everywhere are small.
        exposed: what of them does not hide.
        ideal: of the same images at the rate of a single accelerator with full micro-batches.
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
    """A step of ZeRO `stage` on so many accelerators."""
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
    """Of all gradients, those of each bucket, in the order in which they fill."""
    full, rest = divmod(parameters, bucket)
    return [bucket / parameters] * full + ([rest / parameters] if rest else [])


def exposed_gathers(compute: float, gather: float, calls: int) -> float:
    """What sticks out of equal gathers, one ahead of the computation that needs it."""
    return (gather + compute + (calls - 1) * max(gather, compute)) / calls - compute


def exposed_buckets(compute: float, reduce: float, shares: Sequence[float]) -> float:
    """What sticks out of reductions that begin when their share of the gradients is there, one after another."""
    ready = arrived = 0.0
    for share in shares:
        ready += share * compute
        arrived = max(ready, arrived) + share * reduce
    return arrived - compute
