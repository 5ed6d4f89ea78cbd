"""A small real training on the digits, without Ray: what the engine and checkpoint tests run on each rank."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

import model
from data import Augment, Loader, SampleOrder, open_index
from model.objectives import dense_targets, softmax_cross_entropy
from orchestrator.checkpoint.fragments import held_fragments, optimizer_state
from orchestrator.checkpoint.restore import restore
from orchestrator.checkpoint.saver import Saver
from orchestrator.engine.collectives import all_reduce_sums
from orchestrator.engine.step import Engine
from orchestrator.job.choices import SGD, AdamW
from orchestrator.job.sections import Parallel
from orchestrator.training.classify import dropout_seeds

BATCH, MICRO = 24, 5  # neither divides among 1 to 4 workers evenly


@dataclass
class Curve:
    """What one rank saw: ids by step, and the global loss and gradient norm by step."""

    ids: list[list[int]]
    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]


def build_engine(
    stage_: int,
    *,
    precision: str = "float32",
    dropout: float = 0.1,
    checkpointing: str = "none",
    sgd: bool = False,
    gradient_reduction: str | None = None,
) -> Engine:
    torch.manual_seed(0)
    vit = model.create_model(
        "ViT-Ti/16", num_classes=10, image_size=8, patch_size=2, depth=3, width=48, heads=3, mlp_dim=96, dropout=dropout
    )
    torch.nn.init.normal_(vit.head.weight, std=0.02)  # zeros would hide a wrong gradient of everything below
    model.checkpoint_blocks(vit, checkpointing)
    optimizer = SGD(name="sgd", lr=1e-2, weight_decay=0.1) if sgd else AdamW(name="adamw", lr=1e-3, weight_decay=0.1)
    return Engine(
        vit,
        lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 10)),
        model.decay_mask(vit),
        optimizer=optimizer,
        parallel=Parallel.model_validate(
            {"zero_stage": stage_, "precision": precision, "gradient_reduction": gradient_reduction}
        ),
        micro_batch=MICRO,
        local_batch=math.ceil(BATCH / dist.get_world_size()),
        device=torch.device("cpu"),
    )


def train_digits(
    shards: str,
    zero_stage: int,
    steps: int,
    save: str | None = None,
    resume: str | None = None,
    save_at: int | None = None,
    **engine_options: object,
) -> Curve:
    """Train to `steps`, from a checkpoint in `resume` if given. Save one in `save` if given, and one at `save_at`."""
    index = open_index(shards)
    order = SampleOrder(index, seed=1, batch_size=BATCH)
    engine = build_engine(zero_stage, **engine_options)  # type: ignore[arg-type]
    manifest = restore(engine, resume) if resume else None
    start = manifest.step if manifest else 0
    if resume:
        assert manifest is not None, "nothing to resume from"
    curve = Curve([], [], [], {})
    with Loader(
        index,
        order,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        image_size=8,
        augment=Augment(crop="inception", min_area=0.5),
        seed=1,
        start_step=start,
        stop_step=steps,
        slots_per_rank=engine.micro_batch * engine.micro_batches,
        threads=1,
    ) as batches:
        for batch in batches:
            seeds = dropout_seeds(1, batch.step, batch.slots, BATCH)
            result = engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, seeds, lr=1e-3)
            curve.ids.append(batch.ids[batch.valid].tolist())
            curve.losses.append(all_reduce_sums([result.loss_sum])[0] / float(result.valid))
            curve.norms.append(engine.gradient_norm())
            if save and batch.step + 1 == save_at:
                write_checkpoint(engine, save, save_at)
    if save:
        write_checkpoint(engine, save, steps)
    return curve


def write_checkpoint(engine: Engine, run: str, step: int, metrics: dict[str, float] | None = None) -> None:
    """Save a checkpoint from all ranks."""
    Saver(engine, run, 9, print, report=in_thread).save(step, {"steps": step}, metrics or {}, wait=True)


def in_thread(metrics: dict[str, object], directory: Path, name: str, upload: Callable[[], None]) -> None:
    """Carry out a saver's upload beside training, as Ray Train does, but without Ray."""
    threading.Thread(target=upload, daemon=True).start()


def state_of(engine: Engine) -> dict[tuple[str, str], torch.Tensor]:
    """Copies of all that a step may change on this rank: master weights, optimizer state and steps, model weights."""
    state = {}
    for f in held_fragments(engine):
        for key, tensor in {"master": f.flat, **optimizer_state(engine, f.flat)}.items():
            state[key, f.name] = f.view(tensor).clone()
    for i, values in enumerate(engine.deepspeed.basic_optimizer.state.values()):
        if "step" in values:
            state["step", str(i)] = values["step"].clone()
    for name, parameter in engine.deepspeed.module.named_parameters():
        state["model", name] = getattr(parameter, "ds_tensor", parameter).detach().clone()
    return state


def unchanged(before: dict[tuple[str, str], torch.Tensor], after: dict[tuple[str, str], torch.Tensor]) -> bool:
    """Bitwise; what was not allocated before is as good as zero."""
    new = (after[key] for key in after.keys() - before.keys())
    return all(torch.equal(before[key], after[key]) for key in before) and not any(tensor.any() for tensor in new)
