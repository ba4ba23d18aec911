"""Advises the kernel about mapped pages, which changes speed and memory but no result, so a refusal is no error.

Kernels refuse what they were built without: those of a Raspberry Pi have no huge pages and return EINVAL.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Literal

Advice = Literal["MADV_HUGEPAGE", "MADV_DONTNEED"]


def advise(pages: mmap.mmap, advice: Advice) -> None:
    """Tell the system how pages will be used, if it knows this advice and accepts it."""
    if hasattr(mmap, advice):
        with suppress(OSError):
            pages.madvise(getattr(mmap, advice))
