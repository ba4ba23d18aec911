"""What the process does with memory that it has freed: keeps it for the next loop, or gives it back to the system.

glibc gives every large block back to the kernel when it is freed, and takes it back, page by page and zeroed, at the
next allocation of the same size. A loop over tensors of some megabytes then spends most of its time in page faults. Of
many small blocks it keeps what lies below the last one that is in use, which may be nearly all.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # parameters of mallopt(3), from glibc's malloc.h
TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Let this process' heap keep what it frees; returns whether the C library knows how (glibc does).

    Costs memory: the heap stays at its peak, a little more with fragmentation. Call it before the first large tensor.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all([mallopt(name, value) == 1 for name, value in settings])


def give_freed_memory_back() -> None:
    """Return what the heap holds and nothing uses to the system, where the C library knows how."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Any:
    """A function of the C library; None where it has none of the name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
