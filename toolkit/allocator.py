"""Keeps freed memory in the process, in huge pages, so that a training or decoding loop does not pay for it again.

glibc gives every large block back to the kernel when it is freed, and takes it back, page by page and zeroed, at the
next allocation of the same size. A loop over tensors of some megabytes then spends most of its time in page faults.
Kept, the heap grows in pieces of many sizes to several gigabytes, and in pages of 4 KiB the processor looks up
addresses instead of computing: so the heap lies in huge pages, where the kernel has them on request.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # parameters of mallopt(3), from glibc's malloc.h
TOP_PAD_BYTES = 64 << 20
HUGE_PAGE_BYTES = 2 << 20
MADV_HUGEPAGE = 14  # madvise(2)


def keep_freed_memory() -> bool:
    """Let this process' heap keep what it frees; returns whether the C library knows how (glibc does).

    Costs memory: the heap stays at its peak, a little more with fragmentation. Call it before the first large tensor.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))
    known = all([libc.mallopt(name, value) == 1 for name, value in settings])
    _ask_for_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return known


def _ask_for_huge_pages(libc: ctypes.CDLL, reserve_bytes: int) -> None:
    """Let the heap reach over the reserve, and advise the kernel about it. Memory is taken only when it is used."""
    for name, argument in (("sbrk", ctypes.c_ssize_t), ("malloc", ctypes.c_size_t), ("free", ctypes.c_void_p)):
        function = getattr(libc, name)
        function.argtypes, function.restype = [argument], ctypes.c_void_p
    start = libc.sbrk(0)
    libc.free(libc.malloc(reserve_bytes))
    end = libc.sbrk(0)
    start = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    if end > start:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_HUGEPAGE)  # advice: may be refused
