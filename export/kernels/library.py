"""Finds the compiled kernels, where there are some, this processor runs them, and the user does not want onnxruntime's."""

from __future__ import annotations

import ctypes
import hashlib
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from toolkit.errors import InputError

MODULE = "export.kernels._library"
VARIABLE = "TOOLKIT_KERNELS"
"""In the environment: `THEIRS` lets onnxruntime's kernels compute everything, as on a processor that ours don't know."""
THEIRS = "onnxruntime"


@cache
def kernels_library() -> Path | None:
    """The library that sessions of this process register; None where onnxruntime's kernels compute everything.

    Raises `InputError` where the environment asks for kernels that nobody has.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", THEIRS):
        raise InputError(f"{VARIABLE} ({wanted!r}) must be {THEIRS!r}, or unset for our own kernels where they run")
    compiled = _compiled()
    return compiled if compiled and not wanted and _runs_here(compiled) else None


@cache
def kernels_digest() -> str:
    """What tells the kernels that compute here from others; empty for onnxruntime's own."""
    library = kernels_library()
    return hashlib.sha256(library.read_bytes()).hexdigest() if library else ""


def kernels_in_words() -> str:
    """Which kernels compute, and why where they are not our own."""
    if kernels_library():
        return "our own, for AVX-512 VNNI"
    compiled = _compiled()
    if not compiled:
        return "onnxruntime's: ours were not compiled here"
    return f"onnxruntime's: {'ours need AVX-512 VNNI' if not _runs_here(compiled) else f'{VARIABLE}={THEIRS}'}"


def _compiled() -> Path | None:
    spec = find_spec(MODULE)
    return Path(spec.origin) if spec and spec.origin else None


def _runs_here(library: Path) -> bool:
    try:
        return bool(ctypes.CDLL(str(library)).kernels_supported())
    except OSError:  # compiled for another system
        return False
