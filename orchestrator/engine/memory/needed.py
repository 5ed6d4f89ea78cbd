"""A worker's memory besides activations, by arithmetic: state, and DeepSpeed's buffers for its exchange.

This file depends on DeepSpeed's insides (tests/orchestrator/engine/test_deepspeed_internals.py).
"""

import math

import torch

from model.layers.recompute import CheckpointMode
from orchestrator.engine.settings import deepspeed_config
from orchestrator.job.sections import Parallel

ACTIVATION_SHARE = 0.85  # of a device's memory, for state and activations; the rest is for workspaces and fragments
HEAP: dict[CheckpointMode, float] = {"none": 1.5, "selective": 1.5, "full": 5.5}
"""Growth of a CPU worker as a multiple of its activations. Large blocks of many sizes leave holes in a heap that is not
returned to the system (`engine/cpu.py`), and more holes if most blocks live briefly. Measured: 1.2 to 1.4 without
checkpointing, 1.3 with selective, and with full checkpointing 2.0 (B/16 in bf16) to 5.3 (S/16 in float32)."""

# DeepSpeed's defaults, in elements
ALL_REDUCE_ELEMENTS = 500_000_000  # MEMORY_OPT_ALLREDUCE_SIZE: gradients that stage 1 in bf16 reduces at once
GATHERED_ELEMENTS = 1_000_000_000  # stage3_max_live_parameters: weights that ZeRO 3 keeps gathered


def state_bytes(parameters: int, parallel: Parallel, world_size: int, *, averaged: bool = False) -> int:
    """Weights, gradients and AdamW state of one rank, in bytes; with `averaged`, also the average of the weights.

    float32 master weights and two moments are 12 bytes per parameter. The ranks share them from ZeRO 1 on, gradients
    from ZeRO 2 on, and the weights of the forward pass at ZeRO 3 (Rajbhandari et al., "ZeRO", section 3).

    bf16 runs hold weights of 2 bytes and gradients of 2 and, from stage 1 on, a float32 accumulator of 4, which at
    stage 1 replaces the gradients. float32 runs hold weights of 4 bytes and gradients of 4; at stage 0 they have no
    separate master weights, and at stage 2 the gradients stay whole. The average takes 4 bytes, shared like the
    moments.
    """
    stage, bf16 = parallel.zero_stage, parallel.precision == "bf16"
    working = 2 if bf16 else 4
    gradients = (2, 4, 6, 6)[stage] if bf16 else 4
    optimizer = (12 if bf16 or stage else 8) + (4 if averaged else 0)
    shards = [world_size if stage >= needed else 1 for needed in (3, 2 if bf16 else 3, 1)]
    each = zip((working, gradients, optimizer), shards, strict=True)
    return sum(math.ceil(size * parameters / shard) for size, shard in each)


def exchange_bytes(parameters: int, parallel: Parallel, device: torch.device) -> tuple[int, int]:
    """DeepSpeed's buffers for the exchange of gradients and weights, in bytes, as counted in DeepSpeed 0.19.8.

    Returns:
        Bytes besides activations: the buckets that receive gradients during the backward pass (stages 2 and 3, and 1 in
        float32; two if the exchange is overlapped), and the weights that ZeRO 3 has gathered, once as they arrived and
        once by parameter. DeepSpeed's defaults release few of these before the backward pass needs them again.

        Bytes in place of activations and gathered weights, at the end of the backward pass: a bucket's gradients in
        float32 and in the type that is sent; at stage 0, a float32 copy of all gradients.
    """
    stage, size = parallel.zero_stage, 2 if parallel.precision == "bf16" else 4
    sent = 2 if (parallel.gradient_reduction or parallel.precision) == "bf16" else 4
    if stage == 0:
        return 0, 4 * parameters
    if stage == 1 and parallel.precision == "bf16":  # reduces its accumulator once it is complete
        return 0, (4 + (sent if sent == 2 else 0)) * min(ALL_REDUCE_ELEMENTS, parameters)

    zero = deepspeed_config(parallel, micro_batch=1, micro_batches=1, grad_clip=None)["zero_optimization"]
    bucket = zero["reduce_bucket_size"]
    filled = min(bucket, parameters)
    # A CPU allocates the pages of a bucket as it fills; a GPU allocates the whole bucket.
    buckets = size * (filled if device.type == "cpu" else bucket) * (2 if zero["overlap_comm"] and stage < 3 else 1)
    gathered = 2 * size * min(GATHERED_ELEMENTS, parameters) if stage == 3 else 0
    return buckets + gathered, max(0, (4 + size) * filled - gathered)


def held_memory(activations: int, checkpointing: CheckpointMode, device: torch.device) -> int:
    """Bytes that a worker's memory grows by, for so many bytes of activations at once."""
    return int(HEAP[checkpointing] * activations) if device.type == "cpu" else activations
