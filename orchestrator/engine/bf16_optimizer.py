"""ZeRO 1 in bf16, with a third less memory traffic than DeepSpeed's own optimizer.

Bytes per parameter that one step moves besides the network's arithmetic (AdamW, one worker, one micro-batch):

                                        DeepSpeed 0.19.8                here
    gradients, bf16, to float32 sums    18: cast, then add              6: copy; later micro-batches add
    norm                                 4                              4
    clipping                             8: a pass of its own           4: the fused optimizer, which writes them back
    AdamW                               28                             28
    weights to bf16                      6                              6
    sums to zero                         8: after the step, twice       0: the next copy overwrites them
                                        72                             48

This file depends on DeepSpeed's insides (tests/orchestrator/engine/test_deepspeed_internals.py).
"""

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor


class DirectAccumulationOptimizer(BF16_Optimizer):
    """DeepSpeed's optimizer, but the first gradient of a step is copied to the sums instead of added to zeros."""

    @torch.no_grad()
    def _update_hp_grad(self, lp: Tensor, group_idx: int, param_idx: int, clear_lp_grads: bool) -> None:
        """Add a gradient to its sum as soon as it is computed; the caller frees it (`immediate_grad_update`)."""
        if lp.grad is None:
            return

        total = self.fp32_groups_gradients[group_idx][param_idx]
        has_gradient = self.fp32_groups_has_gradients[group_idx]
        gradient = lp.grad.view(total.shape)
        if has_gradient[param_idx]:
            total.add_(gradient)
        else:
            total.copy_(gradient)
            has_gradient[param_idx] = True
        lp._hp_grad = total  # type: ignore[attr-defined]  # DeepSpeed's own accessors look there

    def backward_epilogue(self, **options: Any) -> None:
        """Zero the sums without a gradient in this step: they still hold the last step's. DeepSpeed reduces next."""
        for totals, has_gradient in zip(self.fp32_groups_gradients, self.fp32_groups_has_gradients, strict=True):
            for i, total in enumerate(totals):
                if not has_gradient[i]:
                    total.zero_()
                    has_gradient[i] = True

    def clear_hp_grads(self) -> None:
        """Mark all sums as empty, without writing zeros to them."""
        self.fp32_groups_has_gradients = [[False] * len(totals) for totals in self.fp32_groups_gradients]


def use_direct_accumulation(optimizer: BF16_Optimizer, grad_clip: float | None) -> None:
    """Turn the optimizer that DeepSpeed has created into the one above.

    Args:
        optimizer: sums each gradient in float32 as it is computed, and steps a fused optimizer of torch. DeepSpeed does
            not clip.
        grad_clip: norm to which the fused optimizer clips; None: it does not clip.
    """
    optimizer.__class__ = DirectAccumulationOptimizer
    if grad_clip:

        def clip(fused: Any, *_: object) -> None:
            """Called between the norm and the step. A norm that is not finite has no step."""
            norm = torch.as_tensor(optimizer._global_grad_norm, dtype=torch.float32)
            fused.grad_scale = (norm / grad_clip).clamp(min=1.0)

        optimizer.optimizer.register_step_pre_hook(clip)
