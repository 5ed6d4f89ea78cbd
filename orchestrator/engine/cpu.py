"""The threads that compute on a CPU, and the smallest numbers that they compute with (docs/performance.md)."""

import torch


def compute_with(threads: int) -> None:
    """Let that many threads do what the calling thread computes, and take numbers below 1.2e-38 for zero.

    A CPU may take two hundred times as long for those (IEEE 754 calls them subnormal; `benchmarks/kernels.py`), and
    training makes them: probabilities of attention and of classes come as near to zero as one likes, and gradients are
    products of them. In float32 and bf16 a parameter cannot tell them from zero. GPUs do not slow down for them.

    Call it before the thread computes anything: OpenMP's threads take the setting over when they are started.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # False where the CPU cannot
