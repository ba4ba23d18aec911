"""Keeps freed memory in the process, so that a training or decoding loop does not pay for the same pages again.

glibc gives every large block back to the kernel when it is freed, and takes it back, page by page and zeroed, at the
next allocation of the same size. A loop over tensors of some megabytes then spends most of its time in page faults.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # parameters of mallopt(3), from glibc's malloc.h
TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Let this process' heap keep what it frees; returns whether the C library knows how (glibc does).

    Costs memory: the heap stays at its peak, a little more with fragmentation. Call it before the first large tensor.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD_BYTES))
    return all([mallopt(name, value) == 1 for name, value in settings])
