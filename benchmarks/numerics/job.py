"""The fixed small job: in plain PyTorch, which is the reference, and with the engine of a run.

Both train the same network from the same weights on the same samples, with the same dropout seeds and learning rates,
all of which are functions of (seed, step). The training itself is implemented twice.
"""

import math
import warnings
from collections.abc import Generator
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import model
from data import Augment, Batch, Loader, SampleOrder, open_index
from model.layers.dropout import fold_in
from model.layers.recompute import CheckpointMode
from model.objectives import dense_targets, softmax_cross_entropy
from orchestrator.engine.collectives import all_reduce_sums
from orchestrator.engine.cpu import set_cpu_threads
from orchestrator.engine.optimizer import parameter_groups
from orchestrator.engine.step import Engine
from orchestrator.job.choices import AdamW
from orchestrator.job.sections import Parallel
from orchestrator.run.schedule import learning_rate
from orchestrator.training.classify import dropout_seeds

BATCH, IMAGE_SIZE, CLASSES = 32, 8, 10
Precision = Literal["bf16", "float32"]
ULP = 2.0**-23  # largest relative distance of neighbouring float32 numbers


@dataclass(frozen=True)
class Recipe:
    """The settings that determine the result: AdamW, warm-up over a tenth of the steps, linear decay."""

    steps: int
    lr: float = 3e-4
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def learning_rate(self, step: int) -> float:
        warmup = self.steps // 10
        return learning_rate(step, base=self.lr, total_steps=self.steps, warmup_steps=warmup, decay="linear")


@dataclass(frozen=True)
class Variant:
    """A way to compute the recipe's step."""

    name: str
    workers: int = 1
    precision: Precision = "float32"
    zero_stage: int = 0
    compiled: bool = False
    checkpointing: CheckpointMode = "none"
    micro_batch: int = BATCH
    reduction: Precision | None = None  # of the sum of gradients over the workers; None: `precision`


def new_model(seed: int) -> model.VisionTransformer:
    """Two blocks of width 96 on 16 patches of 2x2 pixels."""
    torch.manual_seed(seed)
    return model.create_model(
        "ViT-Ti/16",
        num_classes=CLASSES,
        image_size=IMAGE_SIZE,
        patch_size=2,
        depth=2,
        width=96,
        heads=3,
        mlp_dim=384,
        dropout=0.1,
    )


def batches(shards: str, recipe: Recipe, seed: int, slots: int) -> Generator[tuple[Batch, Tensor], None, None]:
    """This rank's `slots` of each step, with their dropout seeds."""
    index = open_index(shards)
    with Loader(
        index,
        SampleOrder(index, seed=seed, batch_size=BATCH),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        image_size=IMAGE_SIZE,
        augment=Augment(crop="inception", min_area=0.8),
        seed=seed,
        stop_step=recipe.steps,
        slots_per_rank=slots,
        threads=1,
    ) as loader:
        for batch in loader:
            yield batch, dropout_seeds(seed, batch.step, batch.slots, BATCH)


def train_plainly(shards: str, recipe: Recipe, seed: int, moved: bool) -> list[float]:
    """The reference's loss of each step: float32, one process, whole batches, torch's AdamW and clipping.

    Args:
        moved: change every initial weight by one unit in the last place, which shows the effect of rounding.
    """
    vit = new_model(seed)
    if moved:
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.mul_(1.0 + ULP * (2.0 * torch.randint_like(parameter, 2) - 1.0))
    optimizer = torch.optim.AdamW(parameter_groups(vit, recipe.weight_decay, model.decay_mask(vit)))
    losses = []
    with closing(batches(shards, recipe, seed, BATCH)) as steps:
        for batch, seeds in steps:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(batch.step)
            keep = batch.valid
            pixels = batch.images[keep].float() / 127.5 - 1.0
            loss = F.cross_entropy(whole_forward(vit, pixels, seeds[keep]), batch.labels[keep, 0])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vit.parameters(), recipe.grad_clip)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def whole_forward(vit: model.VisionTransformer, pixels: Tensor, seeds: Tensor) -> Tensor:
    """The logits, computed with all tokens of all blocks. The model itself omits those that have no effect."""
    x = vit.embedding(pixels, seeds)
    for number, block in enumerate(vit.blocks):
        x = block(x, fold_in(seeds, number))
    return vit.head(vit.norm(x)[:, 0])


def train_variant(shards: str, recipe: Recipe, seed: int, variant: Variant) -> list[float]:
    """The loss of each step over all ranks, with `orchestrator.engine.step.Engine`."""
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed calls torch functions by old names
    set_cpu_threads(1)
    vit = new_model(seed)
    model.checkpoint_blocks(vit, variant.checkpointing)
    if variant.compiled:
        model.compile_blocks(vit)
    with redirect_stdout(None):  # DeepSpeed prints its memory use
        engine = Engine(
            vit,
            lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, CLASSES)),
            model.decay_mask(vit),
            optimizer=AdamW(name="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay, grad_clip=recipe.grad_clip),
            parallel=Parallel(
                zero_stage=variant.zero_stage, precision=variant.precision, gradient_reduction=variant.reduction
            ),
            micro_batch=variant.micro_batch,
            local_batch=math.ceil(BATCH / dist.get_world_size()),
            device=torch.device("cpu"),
        )
    losses = []
    with closing(batches(shards, recipe, seed, engine.micro_batch * engine.micro_batches)) as steps:
        for batch, seeds in steps:
            result = engine.train_step(
                batch.images, batch.labels, batch.weights, batch.valid, seeds, lr=recipe.learning_rate(batch.step)
            )
            losses.append(all_reduce_sums([result.loss_sum])[0] / float(result.valid))
    return losses
