"""Where a step stopped being finite, and with which samples: asked once, when the run gives up on its weights.

The weights of a skipped step are unchanged, so training it again goes wrong in the same way. It is trained again in
full, on all ranks, with hooks that look at every module's output and every parameter's gradient. The hooks hand NaN on
in place of each gradient: so the repeated step is skipped whatever comes out, and leaves as little behind as the first.
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

SHOWN = 5  # samples that are named


@dataclass(frozen=True)
class Diagnosis:
    """What is not finite in a step, over all ranks.

    Attributes:
        tensor: what stopped being finite first, such as "output of blocks.3.mlp", "loss", "gradient of head.weight";
            None if all was finite this time.
        samples: ids whose own loss is not finite, rising.
    """

    tensor: str | None
    samples: list[int]

    def __str__(self) -> str:
        if self.tensor is None:
            return "all is finite in a repeat (a sum over workers overflowed, or a device is faulty)"
        if not self.samples:
            return f"{self.tensor} is not finite, the losses of all samples are"
        shown = ", ".join(map(str, self.samples[:SHOWN]))
        more = f" and {len(self.samples) - SHOWN:,} more" if len(self.samples) > SHOWN else ""
        return f"{self.tensor} is not finite, nor the loss of {count(len(self.samples), 'sample')} ({shown}{more})"


@dataclass
class _Found:
    """Of one rank. Outputs are in the order of the forward pass, gradients by parameter."""

    outputs: dict[str, bool]
    gradients: dict[str, bool]
    samples: list[int]


def diagnose(engine: Engine, batch: Batch, seeds: Tensor | None) -> Diagnosis:
    """Train a step again that was skipped, and say what was not finite. Nothing changes. Collective.

    Args:
        batch, seeds: this rank's slots of the step, as `Engine.train_step` had them.
    """
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, _repeat(engine, batch, seeds))
    samples = sorted({sample for rank in found for sample in rank.samples})
    return Diagnosis(_first(engine, found, samples), samples)


def _first(engine: Engine, found: list[_Found], samples: list[int]) -> str | None:
    for name in found[0].outputs:
        if not all(rank.outputs[name] for rank in found):
            return f"output of {name}"
    if samples:
        return "loss"
    # The backward pass comes from the head, and what is before a bad gradient in the model is bad because of it.
    for name, _ in reversed(list(engine.deepspeed.module.named_parameters())):
        if not all(rank.gradients.get(name, True) for rank in found):
            return f"gradient of {name}"
    return None


def _repeat(engine: Engine, batch: Batch, seeds: Tensor | None) -> _Found:
    found = _Found({}, {}, [])
    losses: list[Tensor] = []
    objective, module = engine.objective, engine.deepspeed.module

    def look_at_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        losses.append(objective(logits, labels, weights))
        return losses[-1]

    hooks = [part.register_forward_hook(_look_at_output(name, found)) for name, part in module.named_modules() if name]
    hooks += [parameter.register_hook(_look_at_gradient(name, found)) for name, parameter in module.named_parameters()]
    engine.objective = look_at_losses
    try:
        with torch.compiler.set_stance("force_eager"):  # hooks inside a compiled block would not be called
            engine.train_step(batch.images, batch.labels, batch.weights, batch.valid, seeds, lr=0.0)
    finally:
        engine.objective = objective
        for hook in hooks:
            hook.remove()
    bad = ~torch.cat(losses).isfinite().cpu() & batch.valid
    found.samples = batch.ids[bad].tolist()
    return found


def _look_at_output(name: str, found: _Found) -> Callable[..., None]:
    def look(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        found.outputs[name] = bool(output.isfinite().all()) and found.outputs.get(name, True)

    return look


def _look_at_gradient(name: str, found: _Found) -> Callable[[Tensor], Tensor]:
    def look(gradient: Tensor) -> Tensor:
        found.gradients[name] = bool(gradient.isfinite().all()) and found.gradients.get(name, True)
        return torch.full_like(gradient, torch.nan)

    return look
