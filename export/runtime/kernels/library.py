"""Finds the compiled kernels and chooses among them: our own if they were compiled, run on this processor and are not
switched off, and otherwise onnxruntime's."""

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
"""The names that the compiled library may have, beside this file; no Python version is in them, as it uses none."""
VARIABLE = "TOOLKIT_KERNELS"
"""The environment variable: `THEIRS` runs onnxruntime's kernels, as on a processor that ours don't support; `SCALAR`
runs ours in plain C, which tests compare the fast ones with."""
THEIRS, SCALAR = "onnxruntime", "scalar"
IN_WORDS = {"avx512vnni": "our own, for AVX-512 VNNI", SCALAR: "our own in plain C, very slow and for tests alone"}
"""The kernels of each instruction set, by the name of their folder beside this file."""
X86 = ("x86_64", "AMD64")
INSTRUCTIONS = "avx512_vnni"
"""Linux's name for the instructions that our fast kernels use."""
THREE_BITS = b"MatMul3Bits"
"""The operator of a graph that only our kernels compute directly."""


@cache
def kernels_library() -> Path | None:
    """Return the library that sessions of this process register; None if onnxruntime's kernels compute everything.

    Raises `InputError` if the environment asks for kernels that do not exist here.
    """
    return _compiled() if _chosen() else None


@cache
def kernels_digest() -> str:
    """Digest the kernels that compute here; empty for onnxruntime's own."""
    library = kernels_library()
    return hashlib.sha256(_chosen().encode() + library.read_bytes()).hexdigest() if library else ""


def kernels_in_words() -> str:
    """Say which kernels compute and, if they are not our own, why."""
    return IN_WORDS[_chosen()] if kernels_library() else f"onnxruntime's: {_why_not()}"


def what_is_slower(model_path: Path) -> str:
    """Say in one line why our fast kernels don't compute a graph and what that costs; empty if they do."""
    if kernels_library():
        slow = f"{model_path.parent} runs on our kernels in plain C, very slowly and for tests ({VARIABLE}={SCALAR})"
        return slow if _chosen() == SCALAR else ""
    line = f"{model_path.parent} runs on onnxruntime's kernels, which are slower ({_why_not()})"
    if model_path.is_file() and THREE_BITS in model_path.read_bytes():
        line += f"; its weights of three bits {WIDENED}; export it again without --fast for this machine"
    return line


WIDENED = "are widened at each start, which takes seconds and several times the memory, and is no faster than four bits"
"""What happens to three bits in onnxruntime's kernels, as the end of a sentence."""


def _why_not() -> str:
    """Say why onnxruntime's kernels compute everything."""
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
    """Choose this process's kernels, once, and return the name of ours; empty for onnxruntime's."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", THEIRS, SCALAR):
        raise InputError(
            f"{VARIABLE} ({wanted!r}) must be {THEIRS!r} or {SCALAR!r}, or unset for our own kernels where they run"
        )
    compiled = _compiled()
    name = choose(compiled, wanted) if compiled and wanted != THEIRS else ""
    if wanted == SCALAR and not name:
        raise InputError(
            f"{VARIABLE} ({wanted!r}) needs our kernels, which were not compiled when this was installed; unset it, or "
            "install again with a C compiler"
        )
    return name


def choose(library: Path, name: str) -> str:
    """Choose the kernels of all sessions that open from now on, by name, or the fastest ones if the name is empty.

    Returns their name; empty if this processor runs none of them.
    """
    try:
        choose_kernels = ctypes.CDLL(str(library)).choose_kernels
    except (OSError, AttributeError):  # compiled for another system, or from other sources
        return ""
    choose_kernels.restype = ctypes.c_char_p
    return (choose_kernels(name.encode()) or b"").decode()
