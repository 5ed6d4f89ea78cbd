"""What a child process is to measure: a contender, its batches, and the timing. It is passed as JSON."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from model import ViTConfig, vit_config
from model.objectives import dense_targets, sigmoid_cross_entropy, softmax_cross_entropy
from orchestrator.job.choices import AdamW

PEERS = ("timm", "transformers")
IMPLS = ("ours", *PEERS)
MATMUL = "matmul"  # the ceiling, which is measured like a contender

# ViT paper, Table 3, JFT-300M, but with a learning rate at which random labels cannot make the loss diverge.
GRAD_CLIP = 1.0
OPTIMIZER = AdamW(name="adamw", lr=1e-5, weight_decay=0.1, grad_clip=GRAD_CLIP)
NUM_CLASSES = 1000
LOSSES = {"sigmoid": sigmoid_cross_entropy, "softmax": softmax_cross_entropy}


@dataclass(frozen=True)
class Task:
    """One contender in one child process.

    Attributes:
        model: a name of `model.vit_config`; `sizes` replaces some of its fields.
        impl: one of IMPLS, or MATMUL.
        compiled: whether torch.compile is used.
        precision: "bf16" or "float32".
        checkpointing: "none", "selective" or "full".
        zero_stage: ZeRO stage of ours.
        loss: one of LOSSES.
        batches: images per step, tried in this order; see `search.climb`.
        device: "cuda" or "cpu".
        threads: number of CPU threads.
        memory: bytes that a contender may use.
        warm_up: steps before the first window.
        windows, seconds: number of timed windows, and the intended time of each.
        profile: whether one more step is profiled.
    """

    model: str
    impl: str
    compiled: bool
    precision: Literal["bf16", "float32"]
    checkpointing: Literal["none", "selective", "full"]
    zero_stage: int
    loss: Literal["sigmoid", "softmax"]
    batches: tuple[int, ...]
    device: Literal["cuda", "cpu"]
    threads: int
    memory: int
    warm_up: int
    windows: int
    seconds: float
    profile: bool
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> ViTConfig:
        """The network: without dropout, as on JFT-300M, and without the tanh layer, which the peers lack."""
        return vit_config(self.model, **{"num_classes": NUM_CLASSES, **self.sizes})

    @property
    def name(self) -> str:
        """A name for messages."""
        parts = [self.config.name, self.precision, self.impl, *(["compiled"] if self.compiled else [])]
        return " ".join(parts + ([f"checkpointing {self.checkpointing}"] if self.checkpointing != "none" else []))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        return cls(**{**fields, "batches": tuple(fields["batches"])})


class Batch(NamedTuple):
    """Synthetic samples on the device.

    Attributes:
        images: (B, 3, S, S) uint8, random.
        labels: (B, 1) int64, random.
        weights: (B, 1) float32, all 1.
        valid: (B,) bool, all True.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    valid: Tensor


class Contender(Protocol):
    """A network with its optimizer. `parameters` is the number of weights that it trains."""

    parameters: int

    def step(self, batch: Batch) -> Tensor:
        """Forward, backward, clipping and optimizer step. Returns the mean loss, (), on the device."""
        ...


def synthetic(config: ViTConfig, size: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = (size, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, config.num_classes, (size, 1), generator=generator)
    valid = torch.ones(size, dtype=torch.bool)
    return Batch(*(x.to(device) for x in (images, labels, torch.ones(size, 1), valid)))


def objective(task: Task) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function (logits (B, K), labels (B, 1), weights (B, 1)) -> loss of each sample (B,), float32."""
    cross_entropy, classes = LOSSES[task.loss], task.config.num_classes
    return lambda logits, labels, weights: cross_entropy(logits, dense_targets(labels, weights, classes))
