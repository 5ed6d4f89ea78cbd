"""Settings of a process that computes on a CPU: threads, very small numbers, freed memory.

Memory: a training step allocates and frees the same large tensors again and again. glibc returns blocks of that size to
the system, which hands them out again page by page, zeroed: an elementwise operation then runs at a fourth of its speed
(`benchmarks/kernels.py`). GPUs have PyTorch's caching allocator for this; CPUs have glibc's settings (mallopt(3)).

A thread other than the main one has its own heap, in pieces of 64 MiB that glibc returns whatever the settings. Ray
Train trains in such a thread, so its processes start with ONE_HEAP (docs/performance.md has the gain).
"""

import ctypes
import platform

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Environment of a process in which all threads share the main thread's heap. glibc reads it at the start."""


def set_cpu_threads(threads: int) -> None:
    """Set the number of threads that compute for the calling thread; they flush subnormal numbers to zero.

    A CPU may take two hundred times as long for numbers below 1.2e-38 (IEEE 754 calls them subnormal;
    `benchmarks/kernels.py`), and training produces them: probabilities of attention and of classes can be arbitrarily
    small, and gradients are products of them. In float32 and bf16 a parameter cannot tell them from zero. GPUs do not
    slow down for them.

    Call it before the thread computes anything: OpenMP's threads inherit the setting when they start.
    """
    import torch  # here: the driver reads ONE_HEAP and needs no torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # False if the CPU cannot


def keep_freed_memory() -> None:
    """Keep freed memory in this process from now on. Does nothing with a C library other than glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap instead of from the system, one by one
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # and the heap does not shrink
