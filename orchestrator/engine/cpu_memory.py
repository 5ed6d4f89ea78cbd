"""Memory that is freed on a CPU stays with the process, and the next step finds it there.

A training step makes and frees the same large tensors again and again. glibc returns blocks of that size to the system,
which hands them out anew page by page, zeroed: an elementwise operation then runs at a fourth of its speed
(`benchmarks/kernels.py`). GPUs have PyTorch's caching allocator for this; CPUs have glibc's settings (mallopt(3)).

A thread other than the main one has a heap of its own, in pieces of 64 MiB that glibc gives back whatever is set. Ray
Train trains in such a thread, so its processes start with ONE_HEAP (docs/performance.md has what that is worth).
"""

import ctypes
import platform

# <malloc.h>
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""Environment of a process whose threads share the main thread's heap. glibc reads it when the process starts."""


def keep_freed_memory() -> None:
    """Keep what is freed, from now on, for the life of the process. Does nothing where the C library is another."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap, and not each from the system
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # and the heap does not shrink
