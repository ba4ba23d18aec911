"""The machine that a model runs on: what of it decides the bytes that onnxruntime computes and packs.

Invariant: equal keys mean that one process may take over what another has computed. Imports neither torch nor onnx.
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
"""Lines of `CPU_FACTS` that tell which kernels run, on x86 and on ARM."""
TELLING_FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8")


def machine_key(folder: Path, *facts: str | int) -> str:
    """A digest of an exported folder, of this machine and library, and of what else the caller's bytes depend on."""
    identity = [folder_digest(folder), ort.__version__, platform.machine(), platform.system(), _processor(), *facts]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def processor_name() -> str:
    """What a table names it by, with those of its instructions that decide which kernels run."""
    facts = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in _processor().splitlines())
    }
    flags = facts.get("flags", "").split()
    known = [flag for flag in TELLING_FLAGS if flag in flags]
    return f"{facts.get('model name') or platform.processor() or platform.machine()} ({', '.join(known) or 'no AVX2'})"


def _processor() -> str:
    """The first core's kind; a system without `CPU_FACTS` says it in fewer words."""
    if not CPU_FACTS.is_file():
        return platform.processor()
    first = CPU_FACTS.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition("\t")[0].rstrip() in NAMED)
