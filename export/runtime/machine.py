"""Identifies the machine: the facts that decide which bytes onnxruntime computes and packs.

Invariant: if their keys are equal, one process may reuse what another has computed. Imports neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import onnxruntime as ort

from toolkit.machine.processor import instructions
from toolkit.runs import folder_digest

CPU_FACTS = Path("/proc/cpuinfo")
NAMED = ("model name", "flags", "Features", "CPU part")
"""Lines of `CPU_FACTS` that decide which kernels run, on x86 and on ARM."""


def machine_key(folder: Path, *facts: str | int) -> str:
    """Digest an exported folder, this machine, the library, and the other facts that the caller's bytes depend on."""
    identity = [folder_digest(folder), ort.__version__, platform.machine(), platform.system(), _processor(), *facts]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def processor_name() -> str:
    """Name the processor for a table, with the instructions that decide which kernels run."""
    names = (line.partition(":")[2].strip() for line in _processor().splitlines() if line.startswith("model name"))
    name = next(names, "") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(instructions()) or 'no instructions for int8'})"


def _processor() -> str:
    """Describe the first core; a system without `CPU_FACTS` gives a shorter description."""
    if not CPU_FACTS.is_file():
        return platform.processor()
    first = CPU_FACTS.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition("\t")[0].rstrip() in NAMED)
