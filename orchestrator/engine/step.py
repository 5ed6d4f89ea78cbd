"""The training step: a model, its objective and DeepSpeed. Needs torch.distributed, but neither Ray nor MLflow.

The gradient of a step is the mean over the valid samples of the global batch, however many workers share it:

    g = 1/V * sum over ranks r, micro-batches a, valid samples i of  d loss_i / d theta      V = valid samples

DeepSpeed divides by the number of micro-batches A in the backward pass and by the number of ranks W in the reduction,
so every micro-batch contributes  (A * W / V) * sum_i loss_i.  V is summed over the ranks on the device before the first
backward pass; the host does not wait for it.

A step is skipped if a loss or a gradient is not finite on any rank: weights, optimizer state and the optimizer's step
count stay the same on all ranks, and nothing of the gradient is left. One number decides, the norm of the reduced
gradient. A NaN or an infinity of any rank survives the sum over ranks, and a loss that is not finite makes its rank's
gradient NaN. At stages 1 to 3, and at all stages in bf16, DeepSpeed's own step reads that norm on the host and skips.
At stage 0 in float32 it does not look at the norm; there the fused optimizer gets the norm's verdict as `found_inf` and
skips on the device.

This file depends on DeepSpeed's insides (tests/orchestrator/engine/test_deepspeed_internals.py).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.engine.average import keep_average
from orchestrator.engine.cpu import keep_freed_memory
from orchestrator.engine.lean_imports import import_deepspeed, leave_out_compiler
from orchestrator.engine.optimizer import create_optimizer
from orchestrator.engine.phases import BACKWARD, FORWARD, OPTIMIZER, Phases
from orchestrator.engine.settings import PRECISIONS, deepspeed_config, fused_clips
from orchestrator.job.choices import SGD, Optimizer
from orchestrator.job.sections import Parallel

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (B, K), labels (B, L), weights (B, L)) -> loss of each sample (B,), float32."""


@dataclass(frozen=True)
class StepResult:
    """The results of a step, as tensors on the device for which the host has not waited.

    Attributes:
        loss_sum: () float32, this rank's sum of losses over its valid samples.
        valid: () float32, number of valid samples of the step, over all ranks.
        applied: () bool, the same on all ranks: False if the step was skipped.
    """

    loss_sum: Tensor
    valid: Tensor
    applied: Tensor


def normalise(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels 0..255, uint8 (B, 3, H, W), to [-1, 1] in `dtype` (authors' code: `value_range(-1, 1)`)."""
    return images.float().div_(127.5).sub_(1.0).to(dtype)


class Engine:
    """A DeepSpeed engine that trains on masked batches of fixed size.

    Args:
        model: takes (images, seeds) and returns logits; see `model.VisionTransformer`.
        objective: loss of each sample.
        decay_mask: parameter name -> whether weight decay applies.
        optimizer, parallel: the job's sections.
        micro_batch: samples per forward pass.
        local_batch: slots of this rank per step; padded with masked slots to a multiple of `micro_batch`.
        device: the model's device.

    Attributes:
        phases: the time of the steps, by phase.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: Objective,
        decay_mask: dict[str, bool],
        *,
        optimizer: Optimizer,
        parallel: Parallel,
        micro_batch: int,
        local_batch: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.dtype = PRECISIONS[parallel.precision]
        self.objective = objective
        self.phases = Phases(device)
        self.world_size = dist.get_world_size()
        self.micro_batch = min(micro_batch, local_batch)
        self.micro_batches = math.ceil(local_batch / self.micro_batch)
        self._grad_clip = optimizer.grad_clip

        deepspeed = import_deepspeed()
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if device.type == "cpu":
            keep_freed_memory()
        leave_out_compiler()

        # DeepSpeed makes one flat tensor of each parameter group, so the optimizer is created on the plain model.
        created = create_optimizer(model, optimizer, decay_mask)
        optimizer_clips = fused_clips(parallel, created)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model.to(device),
            optimizer=created,
            config=deepspeed_config(
                parallel,
                micro_batch=self.micro_batch,
                micro_batches=self.micro_batches,
                grad_clip=None if optimizer_clips else optimizer.grad_clip,
            ),
            dist_init_required=False,
        )
        self._float32_unsharded = optimizer_clips and parallel.precision == "float32"
        if optimizer_clips and parallel.precision == "bf16":
            from orchestrator.engine.bf16_optimizer import use_direct_accumulation

            use_direct_accumulation(self._engine.optimizer, optimizer.grad_clip)
        if optimizer_clips and self.world_size == 1:
            self._engine.enable_backward_allreduce = False  # it would copy whole gradients and back to reduce nothing
        self._forget_warm_up_step()
        if self._float32_unsharded and isinstance(optimizer, SGD):
            self._begin_momentum()
        if optimizer.ema is not None:
            keep_average(created, optimizer.ema)

    @property
    def deepspeed(self) -> Any:
        """The DeepSpeed engine, for code that reads or restores its state (`orchestrator.checkpoint.fragments`)."""
        return self._engine

    def train_step(
        self, images: Tensor, labels: Tensor, weights: Tensor, valid: Tensor, seeds: Tensor | None, *, lr: float
    ) -> StepResult:
        """Take one optimizer step on this rank's slots of the global batch; skip it if loss or gradient is not finite.

        Args:
            images: uint8 (n, 3, H, W), n at most `micro_batch * micro_batches`; `labels` (n, L), `weights` (n, L).
            valid: bool (n,), False for masked slots. Their contents have no effect.
            seeds: int64 (n,), one dropout seed per sample, or None.
            lr: learning rate of this step.
        """
        self._engine.train()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr

        valid_mask = self._on_device(valid)
        total = valid_mask.sum(dtype=torch.float32)
        dist.all_reduce(total)
        scale = self.micro_batches * self.world_size / total.clamp(min=1.0)

        loss_sum = torch.zeros((), device=self.device)
        for i in range(self.micro_batches):
            part = slice(i * self.micro_batch, (i + 1) * self.micro_batch)
            part_seeds = None if seeds is None else seeds[part]
            with self.phases.time(FORWARD):
                losses = self._losses(images[part], labels[part], weights[part], valid_mask[part], part_seeds)
                micro_sum = torch.where(valid_mask[part], losses, torch.zeros_like(losses)).sum()
                # An infinite loss can have a finite gradient. Make that NaN: 0 * inf and 0 * NaN are NaN.
                loss = micro_sum * (scale + 0.0 * micro_sum.detach())
            with self.phases.time(BACKWARD):
                self._engine.backward(loss)
            with self.phases.time(OPTIMIZER):
                if self._float32_unsharded and self._engine.is_gradient_accumulation_boundary():
                    self._clip_in_optimizer()
                self._engine.step()
            loss_sum += micro_sum.detach()
        return StepResult(loss_sum, total, self._applied())

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits in evaluation mode, float32 (n, K), of uint8 images (n, 3, H, W). Collective."""
        self._engine.eval()
        output: Tensor = self._engine(normalise(self._on_device(images), self.dtype))
        return output.float()

    def features(self, images: Tensor) -> Tensor:
        """What the head reads, in evaluation mode: float32 (n, F), of uint8 images (n, 3, H, W). Collective.

        The whole network runs, because ZeRO 3 gathers the weights of what runs within it.
        """
        found: list[Tensor] = []
        hook = self._engine.module.head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            self.logits(images)
        finally:
            hook.remove()
        return found[0].float()

    def gradient_norm(self) -> float:
        """Global L2 norm of the last step's gradient before clipping."""
        return float(self._norm if self._float32_unsharded else self._engine.get_global_grad_norm())

    def _on_device(self, x: Tensor) -> Tensor:
        """`x` on the model's device, copied to a GPU from pinned memory: the host would wait for any other copy."""
        if self.device.type == "cuda" and x.device.type == "cpu":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)

    def _losses(
        self, images: Tensor, labels: Tensor, weights: Tensor, valid_mask: Tensor, seeds: Tensor | None
    ) -> Tensor:
        images, labels, weights = (self._on_device(x) for x in (images, labels, weights))
        # Masked slots are black and have no labels. Masking their losses is not enough: the backward pass multiplies
        # the zero gradient of a masked loss with activations of the forward pass, and 0 * NaN is NaN.
        pixels = normalise(images * valid_mask[:, None, None, None], self.dtype)
        logits = self._engine(pixels, None if seeds is None else self._on_device(seeds))
        return self.objective(logits, labels, weights.masked_fill(~valid_mask[:, None], 0.0))

    def _clip_in_optimizer(self) -> None:
        """Let the fused optimizer clip the reduced gradient, or skip the step if its norm is not finite.

        The optimizer divides every gradient by `grad_scale` when it reads it. DeepSpeed would compute the norm a second
        time and write the gradient once more.
        """
        self._norm = torch.nn.utils.get_total_norm(p.grad for p in self._engine.module.parameters())
        optimizer = self._engine.basic_optimizer
        optimizer.found_inf = (~self._norm.isfinite()).float()
        if self._grad_clip:
            optimizer.grad_scale = (self._norm / self._grad_clip).clamp(min=1.0).nan_to_num(nan=1.0, posinf=1.0)

    def _applied(self) -> Tensor:
        if self._float32_unsharded:
            return self._norm.isfinite()
        return torch.full((), self._engine.was_step_applied(), device=self.device)

    def _begin_momentum(self) -> None:
        """Allocate SGD's momentum, with zeros. If SGD's first step is skipped, SGD allocates it without setting it."""
        for group in self._engine.basic_optimizer.param_groups:
            if group["momentum"] != 0:
                for parameter in group["params"]:
                    state = self._engine.basic_optimizer.state[parameter]
                    state["momentum_buffer"] = torch.zeros_like(parameter).detach()

    def _forget_warm_up_step(self) -> None:
        """Undo the step on zero gradients that ZeRO 3 and the bf16 stage 0 take to allocate optimizer state.

        It does not change the weights (the learning rate is 0), but Adam's bias correction would start at step 2.
        """
        for state in self._engine.basic_optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
