"""Activation checkpointing by encoder block: less memory for more arithmetic.

    none       everything that the backward pass reads is kept
    selective  matrix products and attention are kept; norms, GELU, dropout and sums are recomputed
    full       only each block's input is kept; the block is recomputed up to the last value that the backward pass
               reads (11/9 of the FLOPs; 4/3 with dropout, whose mask comes last)

Dropout needs no saved random state, because its masks depend only on the samples' seeds (dropout.py). Modules are not
wrapped, so parameter names are the same in all modes.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

CheckpointMode = Literal["none", "selective", "full"]
MODES: tuple[CheckpointMode, ...] = get_args(CheckpointMode)

aten = torch.ops.aten
# The expensive operations of a block, under the names that the backends use.
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def require_mode(mode: str) -> None:
    """Raises `ValueError` unless `mode` is a checkpointing mode."""
    if mode not in MODES:
        raise ValueError(f"activation checkpointing: {mode!r} is not one of {', '.join(MODES)}")


def checkpointed(mode: CheckpointMode, function: Callable[..., Tensor], *inputs: Tensor | int | None) -> Tensor:
    """Returns function(*inputs) and keeps for the backward pass what `mode` says.

    Call it inside a block, not around it: the graph of a compiled block then includes the choice of what to keep.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return function(*inputs)
    # determinism_check="none": the check compares the tensors of both passes, but under ZeRO-3 a parameter may be
    # gathered in one pass and empty in the other.
    run = functools.partial(
        checkpoint, function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )
    if mode == "full":
        return run()
    return run(context_fn=functools.partial(create_selective_checkpoint_contexts, _policy))


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
