"""Advice to the kernel about mapped pages. It changes speed and memory, never a result, so no refusal is an error.

Kernels refuse what they were built without: those of a Raspberry Pi know no large pages and answer EINVAL.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Literal

Advice = Literal["MADV_HUGEPAGE", "MADV_DONTNEED"]


def advise(pages: mmap.mmap, advice: Advice) -> None:
    """Say how pages will be used, to a system that has a word for it and takes it."""
    if hasattr(mmap, advice):
        with suppress(OSError):
            pages.madvise(getattr(mmap, advice))
