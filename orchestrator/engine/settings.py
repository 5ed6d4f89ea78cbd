"""The DeepSpeed settings that a job's `parallel` section stands for."""

from typing import Any

import torch

from orchestrator.job.sections import Parallel

PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
DEEPSPEED_NAMES = {"bf16": "bf16", "float32": "fp32"}
REDUCE_BUCKET = 50_000_000
"""Size of the buckets in which ZeRO 2 and 3 send gradients, in elements. A bucket is sent when it is full. DeepSpeed's
default of 500 million is three quarters of H/14, and hides little behind the backward pass (docs/performance.md)."""


def fused_clips(parallel: Parallel, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer clips while it reads the gradients, instead of DeepSpeed.

    PyTorch's fused optimizers can: they divide gradients by their `grad_scale`, and skip the step if `found_inf` is
    set. In these cases, gradients are also reduced whole, after the backward pass.

    Raises:
        ValueError: in float32 at stage 0 only the optimizer can clip and skip, and this one cannot.
    """
    fused = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
    setting = (parallel.precision, parallel.zero_stage)
    if setting == ("float32", 0) and not fused:
        raise ValueError(
            f"{type(optimizer).__name__} is not a fused optimizer of PyTorch, which float32 at parallel.zero_stage = 0 "
            "needs: use parallel.zero_stage: 1"
        )
    return fused and setting in [("float32", 0), ("bf16", 1)]


def deepspeed_config(
    parallel: Parallel, *, micro_batch: int, micro_batches: int, grad_clip: float | None
) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    bf16 runs at stages 1 to 3 accumulate gradients in float32. Stage 0 has no such accumulator in DeepSpeed and
    accumulates in bf16. `grad_clip` is None also if the optimizer clips (`fused_clips`).
    """
    bf16 = parallel.precision == "bf16"
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": grad_clip or 0.0,
        # immediate: stage 1 adds each gradient to the accumulator as soon as it is computed, and frees it
        "bf16": {"enabled": bf16, "immediate_grad_update": bf16},
        "communication_data_type": DEEPSPEED_NAMES[parallel.gradient_reduction or parallel.precision],
        "zero_optimization": {
            "stage": parallel.zero_stage,
            "reduce_bucket_size": REDUCE_BUCKET,
            "contiguous_gradients": True,
            "overlap_comm": torch.cuda.is_available(),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,  # the run has its own progress line
    }
    if bf16 and parallel.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
