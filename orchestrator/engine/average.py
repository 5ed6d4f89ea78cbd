"""The average of the weights over the steps (Polyak; ViT paper, Table 5: 0.9999 for the ImageNet headline).

    e_0 = w_0,    e_t = d e_(t-1) + (1 - d) w_t    after each step t that is applied, without debiasing

It is one more state of the optimizer, beside its moments: so every ZeRO stage shards it, and checkpoints carry it to
any number of workers. DeepSpeed calls the optimizer of torch for the steps that it applies; hooks of that optimizer
update the average. Where the device decides whether a step is applied (float32 at stage 0), it decides here, too, and
the host does not wait.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

EMA = "ema"  # the state's key, in the optimizer and in checkpoints


def keep_average(optimizer: "Optimizer", decay: float) -> None:
    """Keep the average of what the optimizer updates, from its next step on.

    Call it when DeepSpeed has taken its first step on zero gradients. The average begins as the weights before the next
    step: those at step 0, or in a run that continues those of the checkpoint, which then holds the average as well.

    Args:
        optimizer: of torch, which DeepSpeed steps.
        decay: d.
    """
    begun: dict[int, Tensor] = {}  # AdamW allocates its state only if there is none at all: ours comes after it

    def before(stepped: Any, *_: object) -> None:
        for weight in _updated(stepped):
            if EMA not in stepped.state.get(weight, {}):
                begun[id(weight)] = weight.detach().clone()

    def after(stepped: Any, *_: object) -> None:
        found_inf = getattr(stepped, "found_inf", None)
        share = 1.0 - decay if found_inf is None else (1.0 - decay) * (1.0 - found_inf)
        for weight in _updated(stepped):
            state = stepped.state[weight]
            if EMA not in state:
                state[EMA] = begun.pop(id(weight))
            state[EMA].lerp_(weight.detach(), share)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _updated(optimizer: "Optimizer") -> "Iterator[Tensor]":
    """What this step updates: DeepSpeed shows some stages' optimizer one group at a time."""
    for group in optimizer.param_groups:
        yield from (weight for weight in group["params"] if weight.grad is not None)
