"""Advice to the kernel changes no result, whether the kernel accepts it or not."""

from __future__ import annotations

import errno
import mmap

import pytest

from toolkit.machine.advice import advise


def test_advice_that_the_kernel_refuses_or_the_system_lacks_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *given: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    pages = Refusing(-1, mmap.PAGESIZE)
    advise(pages, "MADV_HUGEPAGE")
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    advise(pages, "MADV_HUGEPAGE")
    assert pages[:2] == b"\0\0"
