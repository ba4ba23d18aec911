"""Identifies the machine: the facts that decide which bytes onnxruntime computes and packs.

Invariant: if their keys are equal, one process may reuse what another has computed. Imports neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import onnxruntime as ort

from toolkit.runs import folder_digest

CPU_FACTS = Path("/proc/cpuinfo")
NAMED = ("model name", "flags", "Features", "CPU part")
"""Lines of `CPU_FACTS` that decide which kernels run, on x86 and on ARM."""
TELLING_FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8")


def machine_key(folder: Path, *facts: str | int) -> str:
    """Digest an exported folder, this machine, the library, and the other facts that the caller's bytes depend on."""
    identity = [folder_digest(folder), ort.__version__, platform.machine(), platform.system(), _processor(), *facts]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def processor_name() -> str:
    """Name the processor for a table, with the instructions that decide which kernels run."""
    facts = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in _processor().splitlines())
    }
    flags = facts.get("flags", "").split()
    known = [flag for flag in TELLING_FLAGS if flag in flags]
    return f"{facts.get('model name') or platform.processor() or platform.machine()} ({', '.join(known) or 'no AVX2'})"


def _processor() -> str:
    """Describe the first core; a system without `CPU_FACTS` gives a shorter description."""
    if not CPU_FACTS.is_file():
        return platform.processor()
    first = CPU_FACTS.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition("\t")[0].rstrip() in NAMED)
