"""The cause of a step that is not finite: the first such tensor, and the samples. Called once the run gives up.

A skipped step leaves the weights unchanged, so it fails in the same way when it is repeated. It is repeated in full, on
all ranks, with hooks that check every module's output and every parameter's gradient. The hooks replace every gradient
with NaN, so the repeated step is always skipped, and it too leaves nothing behind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data import Batch
from orchestrator.engine.step import Engine
from orchestrator.wording import count

SAMPLES_SHOWN = 5  # in the message
LOSS = "loss"


@dataclass(frozen=True)
class Diagnosis:
    """What is not finite in a step, over all ranks.

    Attributes:
        tensor: the first tensor that is not finite, such as "output of blocks.3.mlp", "loss", "gradient of
            head.weight"; None if the repeated step is finite.
        samples: ids of the samples whose own loss is not finite, in rising order.
    """

    tensor: str | None
    samples: list[int]

    def __str__(self) -> str:
        if self.tensor is None:
            return "the repeated step is finite (a sum over workers overflowed, or a device is faulty)"
        if not self.samples:
            return f"{self.tensor} is not finite; the losses of all samples are finite"
        shown = ", ".join(map(str, self.samples[:SAMPLES_SHOWN]))
        more = f" and {len(self.samples) - SAMPLES_SHOWN:,} more" if len(self.samples) > SAMPLES_SHOWN else ""
        samples = f"{count(len(self.samples), 'sample')} ({shown}{more})"
        if self.tensor == LOSS:
            return f"{LOSS} is not finite in {samples}"
        return f"{self.tensor} is not finite, nor is the loss of {samples}"


@dataclass
class _Found:
    """What one rank found: whether each output (in the order of the forward pass) and each gradient is finite."""

    outputs: dict[str, bool]
    gradients: dict[str, bool]
    samples: list[int]


def diagnose(engine: Engine, batch: Batch, seeds: Tensor | None) -> Diagnosis:
    """Repeat a skipped step and find what is not finite. The engine's state does not change. Collective.

    Args:
        engine: took the step.
        batch, seeds: this rank's slots of the step, as `Engine.train_step` received them.
    """
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, _repeat(engine, batch, seeds))
    samples = sorted({sample for rank in found for sample in rank.samples})
    return Diagnosis(_first(engine, found, samples), samples)


def _first(engine: Engine, found: list[_Found], samples: list[int]) -> str | None:
    """The first tensor that is not finite on any rank; None if all are finite."""
    for name in found[0].outputs:
        if not all(rank.outputs[name] for rank in found):
            return f"output of {name}"
    if samples:
        return LOSS
    # The backward pass starts at the head: a bad gradient spoils those of all earlier modules.
    for name, _ in reversed(list(engine.deepspeed.module.named_parameters())):
        if not all(rank.gradients.get(name, True) for rank in found):
            return f"gradient of {name}"
    return None


def _repeat(engine: Engine, batch: Batch, seeds: Tensor | None) -> _Found:
    """Repeat the step on this rank, with hooks."""
    found = _Found({}, {}, [])
    losses: list[Tensor] = []
    objective, module = engine.objective, engine.deepspeed.module

    def check_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        losses.append(objective(logits, labels, weights))
        return losses[-1]

    hooks = [part.register_forward_hook(_check_output(name, found)) for name, part in module.named_modules() if name]
    hooks += [parameter.register_hook(_check_gradient(name, found)) for name, parameter in module.named_parameters()]
    engine.objective = check_losses
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled block would not call its hooks
            engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, seeds, lr=0.0)
    finally:
        engine.objective = objective
        for hook in hooks:
            hook.remove()
    bad = ~torch.cat(losses).isfinite().cpu() & batch.valid
    found.samples = batch.ids[bad].tolist()
    return found


def _check_output(name: str, found: _Found) -> Callable[..., None]:
    def check(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        found.outputs[name] = bool(output.isfinite().all()) and found.outputs.get(name, True)

    return check


def _check_gradient(name: str, found: _Found) -> Callable[[Tensor], Tensor]:
    def check(gradient: Tensor) -> Tensor:
        found.gradients[name] = bool(gradient.isfinite().all()) and found.gradients.get(name, True)
        return torch.full_like(gradient, torch.nan)

    return check
