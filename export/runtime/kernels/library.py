"""Finds the compiled kernels, where there are some, this processor runs them, and the user does not want
onnxruntime's."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from functools import cache
from pathlib import Path

from toolkit.errors import InputError
from toolkit.machine.processor import instructions

FILES = ("_library.so", "_library.dll")
"""Beside this file, one of them where it was compiled; no Python's name is in it, since it uses nothing of Python's."""
VARIABLE = "TOOLKIT_KERNELS"
"""In the environment: `THEIRS` lets onnxruntime's kernels compute everything, as on a processor that ours don't know,
and `SCALAR` ours in plain C, which tests compare the fast ones with."""
THEIRS, SCALAR = "onnxruntime", "scalar"
IN_WORDS = {"avx512vnni": "our own, for AVX-512 VNNI", SCALAR: "our own in plain C, very slow and for tests alone"}
"""The folders beside this file, each of which holds the kernels of an instruction set."""
X86 = ("x86_64", "AMD64")
INSTRUCTIONS = "avx512_vnni"
"""Linux's name for what ours are written for."""
THREE_BITS = b"MatMul3Bits"
"""In a graph: the operator that only ours compute as it is."""


@cache
def kernels_library() -> Path | None:
    """The library that sessions of this process register; None where onnxruntime's kernels compute everything.

    Raises `InputError` where the environment asks for kernels that nobody has.
    """
    return _compiled() if _chosen() else None


@cache
def kernels_digest() -> str:
    """What tells the kernels that compute here from others; empty for onnxruntime's own."""
    library = kernels_library()
    return hashlib.sha256(_chosen().encode() + library.read_bytes()).hexdigest() if library else ""


def kernels_in_words() -> str:
    """Which kernels compute, and why where they are not our own."""
    return IN_WORDS[_chosen()] if kernels_library() else f"onnxruntime's: {_why_not()}"


def what_is_slower(model_path: Path) -> str:
    """One line for who opens a graph: why our fast kernels don't compute it, and what that costs; empty where they
    do."""
    if kernels_library():
        slow = f"{model_path.parent}: our kernels in plain C compute, for tests and very slowly ({VARIABLE}={SCALAR})"
        return slow if _chosen() == SCALAR else ""
    line = f"{model_path.parent}: onnxruntime's kernels compute, which is slower ({_why_not()})"
    if model_path.is_file() and THREE_BITS in model_path.read_bytes():
        line += f"; its weights of three bits {WIDENED}; export it again without --fast for this machine"
    return line


WIDENED = "are widened at each start, which takes seconds and several times the memory, and is no faster than four bits"
"""What onnxruntime's kernels do with three bits."""


def _why_not() -> str:
    """Why onnxruntime's kernels compute everything."""
    if os.environ.get(VARIABLE):
        return f"{VARIABLE}={THEIRS} switches ours off"
    known = instructions()
    if platform.machine() not in X86 or (known and INSTRUCTIONS not in known):
        return "ours need AVX-512 VNNI, which this processor lacks"
    if _compiled() is None:
        remedy = "; install a C compiler, then the package again" if known else ""
        return f"ours were not compiled when this was installed{remedy}"
    return "ours were compiled for another system or processor; install the package again"


def _compiled() -> Path | None:
    paths = (Path(__file__).with_name(name) for name in FILES)
    return next((path for path in paths if path.is_file()), None)


@cache
def _chosen() -> str:
    """The name of those of ours that compute in this process, which are chosen once; empty for onnxruntime's."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", THEIRS, SCALAR):
        raise InputError(
            f"{VARIABLE} ({wanted!r}) must be {THEIRS!r} or {SCALAR!r}, or unset for our own kernels where they run"
        )
    compiled = _compiled()
    name = choose(compiled, wanted) if compiled and wanted != THEIRS else ""
    if wanted == SCALAR and not name:
        raise InputError(f"{VARIABLE} ({wanted!r}) needs our kernels, which were not compiled when this was installed")
    return name


def choose(library: Path, name: str) -> str:
    """Let sessions that open from now on compute with the kernels of a name, or with the fastest that run here.

    Returns their name; empty where this processor runs none of those.
    """
    try:
        choose_kernels = ctypes.CDLL(str(library)).choose_kernels
    except (OSError, AttributeError):  # compiled for another system, or from other sources
        return ""
    choose_kernels.restype = ctypes.c_char_p
    return (choose_kernels(name.encode()) or b"").decode()
