"""Finds the compiled kernels, where there are some and this processor runs them."""

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
