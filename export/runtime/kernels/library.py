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
"""The environment variable: a name of `IN_WORDS` runs our kernels of that instruction set, `THEIRS` onnxruntime's, as
on a processor that ours don't support."""
THEIRS, SCALAR = "onnxruntime", "scalar"
IN_WORDS = {
    "avx512vnni": "our own, for AVX-512 VNNI",
    "avxvnni": "our own, for AVX-VNNI",
    "avx2": "our own, for AVX2",
    "i8mm": "our own, for Arm's I8MM",
    "neon": "our own, for NEON with dot products",
    SCALAR: "our own in plain C, very slow and for tests alone",
}
"""The kernels of each instruction set, by the name of their folder beside this file."""
LEAST = {"x86_64": "AVX2", "amd64": "AVX2", "aarch64": "dot products (asimddp)", "arm64": "dot products (asimddp)"}
"""What a processor must have for our kernels, by what systems call its kind; others have none."""
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


def kernels_name() -> str:
    """Return the name of the kernels that compute here, as the environment names them."""
    return _chosen() or THEIRS


def kernels_in_words() -> str:
    """Say which kernels compute and which others the environment could choose, or why they are not our own."""
    if not kernels_library():
        return f"onnxruntime's: {_why_not()}"
    others = [name for name in (*kernels_here(), THEIRS) if name != _chosen()]
    return f"{IN_WORDS[_chosen()]} ({_chosen()}; others that run here: {', '.join(others)})"


@cache
def kernels_here() -> tuple[str, ...]:
    """Return the names of our kernels that this processor runs, the fastest first; empty if they were not compiled."""
    library = _loaded()
    if library is None:
        return ()
    names: list[str] = []
    while name := library.kernels_here(len(names)):
        names.append(name.decode())
    return tuple(names)


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
    least = LEAST.get(platform.machine().lower())
    if least is None:
        return f"ours are for x86-64 and arm64, not for {platform.machine()}"
    if kernels_here():  # those in plain C run, but only if they are asked for
        return f"ours need {least}, which this processor lacks"
    if _compiled() is None:
        remedy = "; install a C compiler, then the package again" if instructions() else ""
        return f"ours were not compiled when this was installed{remedy}"
    return "ours were compiled for another system or processor; install the package again"


def _compiled() -> Path | None:
    paths = (Path(__file__).with_name(name) for name in FILES)
    return next((path for path in paths if path.is_file()), None)


@cache
def _chosen() -> str:
    """Choose this process's kernels, once, and return the name of ours; empty for onnxruntime's."""
    wanted = os.environ.get(VARIABLE, "")
    ours = kernels_here()
    if wanted in IN_WORDS and not ours:
        compiled = "for another system or version" if _compiled() else "not at all"
        raise InputError(
            f"{VARIABLE} ({wanted!r}) needs our kernels, which were compiled {compiled} when this was installed; unset "
            "it, or install again with a C compiler"
        )
    if wanted not in ("", THEIRS, *ours):
        raise InputError(
            f"{VARIABLE} ({wanted!r}) must be one of the kernels that run on this processor "
            f"({', '.join((*ours, THEIRS))}); set one of them, or unset it for the fastest"
        )
    name = wanted or next((name for name in ours if name != SCALAR), "")
    if name in ours:
        choose(name)
        return name
    return ""


def choose(name: str) -> None:
    """Choose the kernels of all sessions that open from now on, by a name of `kernels_here`."""
    library = _loaded()
    assert library is not None and library.choose_kernels(name.encode()), name


@cache
def _loaded() -> ctypes.CDLL | None:
    """Load the compiled library; None if there is none that this system and these sources can use."""
    compiled = _compiled()
    if compiled is None:
        return None
    try:
        library = ctypes.CDLL(str(compiled))
        library.kernels_here.argtypes, library.choose_kernels.argtypes = [ctypes.c_size_t], [ctypes.c_char_p]
        library.kernels_here.restype = library.choose_kernels.restype = ctypes.c_char_p
    except (OSError, AttributeError):  # compiled for another system, or from other sources
        return None
    return library
