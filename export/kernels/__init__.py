"""Kernels of our own for onnxruntime: products of codes and attention over codes, in C.

    library.c                what onnxruntime loads: the operators and their domains
    ├── matmul_nbits.c           MatMulNBits, in place of the built-in one          → products.c
    ├── attention_over_codes.c   AttentionOverCodes, else a function of the graph   → attention.c
    └── onnxruntime_abi.h        the part of onnxruntime's C interface that they call

The library is compiled when the project is installed. It needs an x86 processor with AVX-512 VNNI and a compiler that
knows it; without either, and where it was left out, sessions run onnxruntime's own kernels on the same files.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MODULE = "export.kernels._library"


@cache
def kernels_library() -> Path | None:
    """The compiled library, where there is one and this processor can run it."""
    spec = find_spec(MODULE)
    if spec is None or spec.origin is None:
        return None
    try:
        return Path(spec.origin) if ctypes.CDLL(spec.origin).kernels_supported() else None
    except OSError:  # compiled for another system
        return None


@cache
def kernels_digest() -> str:
    """What tells the kernels that compute here from others; empty for onnxruntime's own."""
    library = kernels_library()
    return hashlib.sha256(library.read_bytes()).hexdigest() if library else ""
