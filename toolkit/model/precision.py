"""Chooses the number format that this machine computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def computes_in_bf16() -> bool:
    """Whether matrix products in bf16 are at least as fast as in fp32 here: on a GPU that supports it, or on a CPU with
    the instructions (AVX512-BF16, AMX) unless `ATEN_CPU_CAPABILITY` switches them off."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(has_products) and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def compute_dtype() -> torch.dtype:
    return torch.bfloat16 if computes_in_bf16() else torch.float32


@contextmanager
def fp32_by_onednn() -> Iterator[None]:
    """Within this context oneDNN computes the CPU's fp32 products where it can, instead of MKL, whose products use AVX2
    alone on processors of other makers than Intel and take twice as long.

    torch names the switch after bf16, with which oneDNN may compute such products; it does so only where there is AMX,
    so this context does nothing there.
    """
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    if not torch.cpu._is_amx_tile_supported():
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before
