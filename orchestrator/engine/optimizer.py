"""The optimizers of the paper, with weight decay on kernels only (ViT paper, Table 3; authors' code)."""

from typing import Any

import torch

from orchestrator.job.choices import Optimizer
from orchestrator.job.tables import OPTIMIZERS


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, mask: dict[str, bool]
) -> list[dict[str, list[torch.nn.Parameter] | float]]:
    """Split parameters into a decayed group (kernels) and one without decay (biases, norms, tokens, positions).

    Args:
        model: its trainable parameters are split, in the order of `named_parameters`.
        weight_decay: decay of the first group.
        mask: parameter name -> whether it decays (`model.decay_mask`).
    """
    decayed = [p for name, p in model.named_parameters() if p.requires_grad and mask[name]]
    plain = [p for name, p in model.named_parameters() if p.requires_grad and not mask[name]]
    groups: list[dict[str, list[torch.nn.Parameter] | float]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(model: torch.nn.Module, settings: Optimizer, mask: dict[str, bool]) -> torch.optim.Optimizer:
    """The optimizer that the job names. Its learning rate is 0 until the training loop sets that of the step."""
    groups = parameter_groups(model, settings.weight_decay, mask)
    for group in groups:
        # Some ZeRO stages take a step on zero gradients to allocate their state; it must not decay weights.
        group["lr"] = 0.0
    optimizer: torch.optim.Optimizer = OPTIMIZERS.bound(settings)(groups)
    return optimizer


# fused: one pass over memory. Other variants allocate temporaries as large as the whole flat partition: gigabytes.


def adamw(groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def sgd(groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
