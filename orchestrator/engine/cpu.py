"""How a process computes on a CPU: its threads, its smallest numbers, and the memory that it frees.

Memory: a training step makes and frees the same large tensors again and again. glibc returns blocks of that size to
the system, which hands them out again page by page, zeroed: an elementwise operation then runs at a fourth of its speed
(`benchmarks/kernels.py`). GPUs have PyTorch's caching allocator for this; CPUs have glibc's settings (mallopt(3)).

A thread other than the main one has a heap of its own, in pieces of 64 MiB that glibc gives back whatever is set. Ray
Train trains in such a thread, so its processes start with ONE_HEAP (docs/performance.md gives the speed-up).
"""

import ctypes
import platform

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Environment of a process whose threads share the main thread's heap. glibc reads it when the process starts."""


def set_cpu_threads(threads: int) -> None:
    """Let that many threads do what the calling thread computes, and take numbers below 1.2e-38 for zero.

    A CPU may take two hundred times as long for those (IEEE 754 calls them subnormal; `benchmarks/kernels.py`), and
    training makes them: probabilities of attention and of classes come as near to zero as one likes, and gradients are
    products of them. In float32 and bf16 a parameter cannot tell them from zero. GPUs do not slow down for them.

    Call it before the thread computes anything: OpenMP's threads take the setting over when they are started.
    """
    import torch  # here: the driver reads ONE_HEAP and needs no torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # False where the CPU cannot


def keep_freed_memory() -> None:
    """Keep what is freed, from now on, for the life of the process. Does nothing where the C library is another."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap, and not each from the system
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # and the heap does not shrink
