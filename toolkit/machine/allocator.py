"""Makes the process keep freed memory for its next use, or give it back to the system.

glibc gives every large block back to the kernel when it is freed, and takes it back, page by page and zeroed, at the
next allocation of the same size. A loop over tensors of some megabytes then spends most of its time in page faults. Of
small blocks it keeps everything below the last one in use, which may be nearly all of them.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # parameters of mallopt(3), from glibc's malloc.h
TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Let this process's heap keep what it frees; returns whether the C library can do that (glibc can).

    It costs memory: the heap stays at its peak, plus some fragmentation. Call it before the first large tensor.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all([mallopt(name, value) == 1 for name, value in settings])


def give_freed_memory_back() -> None:
    """Return unused memory of the heap to the system, if the C library can do that."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """Return a function of the C library; None if it has none of the name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
