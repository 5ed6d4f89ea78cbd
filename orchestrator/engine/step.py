"""The training step: a model, its objective and DeepSpeed. Needs torch.distributed, but neither Ray nor MLflow.

The gradient of a step is the mean over the valid samples of the global batch, however many workers share it:

    g = 1/V * sum over ranks r, micro-batches a, valid samples i of  d loss_i / d theta      V = valid samples

DeepSpeed divides by the number of micro-batches A when it runs backward and by the number of ranks W when it
reduces, so every micro-batch contributes  (A * W / V) * sum_i loss_i.  V is summed over the ranks on the device before
the first backward; nothing waits for it on the host.

A step with a loss or a gradient that is not finite, on any rank, is not applied: weights, optimizer state and the
optimizer's step count stay as they are on all ranks, and nothing of its gradient is left. The verdict is one number,
the norm of the reduced gradient. A NaN or an infinity of any rank survives the sum over ranks, and a loss that is not
finite makes its rank's gradient NaN. At stages 1 to 3, and in bf16 at all, DeepSpeed's own step reads that norm on the
host and skips. At stage 0 in float32 it does not look; there the norm is handed to the fused optimizer as `found_inf`,
which skips on the device.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.engine.cpu import keep_freed_memory
from orchestrator.engine.lean_imports import import_deepspeed, leave_out_compiler
from orchestrator.engine.optimizer import create_optimizer
from orchestrator.engine.phases import BACKWARD, FORWARD, OPTIMIZER, Phases
from orchestrator.engine.settings import PRECISIONS, deepspeed_config, fused_clips
from orchestrator.job.choices import SGD, Optimizer
from orchestrator.job.sections import Parallel

# (logits (B, K), labels (B, L), weights (B, L)) -> loss of each sample (B,), float32
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepResult:
    """What a step leaves on the device, as unsynchronised tensors.

    Attributes:
        loss_sum: () float32, this rank's sum of losses over its valid samples.
        valid: () float32, valid samples of the whole step, over all ranks.
        applied: () bool, the same on all ranks: False for a step that was skipped, because it was not finite.
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
        micro_batch: samples a forward pass.
        local_batch: slots of this rank a step; padded with masked slots to a multiple of `micro_batch`.
        device: where the model lives.

    Attributes:
        phases: the time of the steps, split.
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
        deepspeed = import_deepspeed()
        # A CPU all-reduce for inference, which training never calls; building it takes minutes of g++ on a new machine,
        # and a lock that a killed build leaves behind would stop every later start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self.phases = Phases(device)
        self.dtype = PRECISIONS[parallel.precision]
        self.micro_batch = min(micro_batch, local_batch)
        self.micro_batches = math.ceil(local_batch / self.micro_batch)
        self.objective = objective
        self.world_size = dist.get_world_size()
        leave_out_compiler()
        created = create_optimizer(model, optimizer, decay_mask)
        optimizer_clips = fused_clips(parallel, created)
        # DeepSpeed ranks a flat optimizer state per parameter group; the client optimizer is built on the plain model.
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
        self._grad_clip = optimizer.grad_clip
        if optimizer_clips and parallel.precision == "bf16":
            from orchestrator.engine.bf16_optimizer import use_direct_accumulation

            use_direct_accumulation(self._engine.optimizer, optimizer.grad_clip)
        if optimizer_clips and self.world_size == 1:  # nothing to reduce: it would copy whole gradients and back
            self._engine.enable_backward_allreduce = False
        self._forget_warm_up_step()
        if self._float32_unsharded and isinstance(optimizer, SGD):
            self._begin_momentum()

    @property
    def deepspeed(self) -> Any:
        """The DeepSpeed engine, for what reads or restores its state (`orchestrator.checkpoint.fragments`)."""
        return self._engine

    def train_step(
        self, images: Tensor, labels: Tensor, weights: Tensor, valid: Tensor, seeds: Tensor | None, *, lr: float
    ) -> StepResult:
        """One optimizer step on this rank's slots of the global batch, if its loss and its gradient are finite.

        Args:
            images: uint8 (n, 3, H, W), n at most `micro_batch * micro_batches`; `labels` (n, L), `weights` (n, L).
            valid: bool (n,), False for masked slots, which contribute nothing, whatever is in them.
            seeds: int64 (n,), one dropout seed a sample, or None.
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
            of_part = None if seeds is None else seeds[part]
            with self.phases.time(FORWARD):
                losses = self._losses(images[part], labels[part], weights[part], valid_mask[part], of_part)
                micro_sum = torch.where(valid_mask[part], losses, torch.zeros_like(losses)).sum()
                # 0 * NaN and 0 * inf are NaN: a loss can be infinite with a finite gradient, and must spoil it
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
        """Evaluation-mode logits, float32 (n, K), of uint8 images (n, 3, H, W); called equally often on all ranks."""
        self._engine.eval()
        output: Tensor = self._engine(normalise(self._on_device(images), self.dtype))
        return output.float()

    def gradient_norm(self) -> float:
        """Global L2 norm of the last step's gradient before clipping."""
        return float(self._norm if self._float32_unsharded else self._engine.get_global_grad_norm())

    def _on_device(self, x: Tensor) -> Tensor:
        """`x` where the model is. To a GPU by way of pinned memory: a copy from elsewhere makes the host wait."""
        if self.device.type == "cuda" and x.device.type == "cpu":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)

    def _losses(
        self, images: Tensor, labels: Tensor, weights: Tensor, valid_mask: Tensor, seeds: Tensor | None
    ) -> Tensor:
        images, labels, weights = (self._on_device(x) for x in (images, labels, weights))
        # A masked slot goes in black and without labels: hiding its loss alone would not do, since the backward pass
        # multiplies the hidden loss's zero gradient with what the forward pass left, and 0 * NaN is NaN.
        pixels = normalise(images * valid_mask[:, None, None, None], self.dtype)
        logits = self._engine(pixels, None if seeds is None else self._on_device(seeds))
        return self.objective(logits, labels, weights.masked_fill(~valid_mask[:, None], 0.0))

    def _clip_in_optimizer(self) -> None:
        """Clip the reduced gradient to its norm, and skip one that is not finite, without a pass over it.

        The fused optimizer divides every gradient by `grad_scale` as it reads it. DeepSpeed would compute the norm a
        second time, and write the gradient once more.
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
        """Give SGD its momentum, at zero. It would allocate it in its first step, unset if that one is skipped."""
        for group in self._engine.basic_optimizer.param_groups:
            if group["momentum"] != 0:
                for parameter in group["params"]:
                    state = self._engine.basic_optimizer.state[parameter]
                    state["momentum_buffer"] = torch.zeros_like(parameter).detach()

    def _forget_warm_up_step(self) -> None:
        """Undo the step on zero gradients that ZeRO 3 and the bf16 stage 0 take to allocate optimizer state.

        It leaves the weights alone (the learning rate is 0), but Adam's bias correction would start at step 2.
        """
        for state in self._engine.basic_optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
