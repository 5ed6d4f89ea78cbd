"""The optimizer of the paper: decoupled weight decay on kernels only (ViT paper, Table 3; authors' code)."""

import torch

from orchestrator.job.choices import SGD, AdamW


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, mask: dict[str, bool]
) -> list[dict[str, list[torch.nn.Parameter] | float]]:
    """Split parameters into a decayed group (kernels) and one that is not (biases, norms, tokens, positions).

    Args:
        model: its trainable parameters are grouped, in the order of `named_parameters`.
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


def create_optimizer(model: torch.nn.Module, settings: AdamW | SGD, mask: dict[str, bool]) -> torch.optim.Optimizer:
    """AdamW or SGD as the job says. Its learning rate is 0 until the training loop sets that of the step."""
    groups = parameter_groups(model, settings.weight_decay, mask)
    # lr = 0: some ZeRO stages take a step on zero gradients while they build their state, which must not decay weights.
    # fused: one pass over memory; the others make temporaries as large as the whole flat partition, gigabytes of them.
    if isinstance(settings, AdamW):
        return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=True)
