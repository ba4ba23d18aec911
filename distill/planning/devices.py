"""GPUs by name: their memory, and their peak in bf16 (`toolkit.model.flops`, from their data sheets).

A GPU without a data sheet here is known by its memory alone, such as 24GB; its speed is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from toolkit.errors import InputError
from toolkit.model.flops import data_sheet_flops

GB = 10**9
UTILISATION = 0.35
"""The share of the peak that a trainer reaches: torchtitan's Llama 3.1 8B on 8 H100 by FSDP2 makes 5,762 tokens/s a GPU
without and 6,667 with compilation (its page on performance), which are 28 and 33 % of 989 TFLOP/s, attention aside."""
_MEMORY_GB: Mapping[str, int] = MappingProxyType(
    {"RTX 4090": 24, "L40S": 48, "A100 40GB": 40, "A100 80GB": 80, "H100 PCIe": 80, "H100": 80, "H200": 141}
)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU as its data sheet has it, or its memory alone."""

    name: str
    memory_bytes: int
    flops_per_s: float | None
    """In bf16, without sparsity; None if it is not known."""


def device(name: str) -> Device:
    """Return a GPU by its name, in any case, by a part of it, or by its memory; raises `InputError`, which names the
    nearest, if it is not known."""
    words = " ".join(name.lower().split())
    if size := re.fullmatch(r"([1-9]\d{0,3}) ?gb", words):
        return Device(name=f"GPU of {size[1]} GB", memory_bytes=int(size[1]) * GB, flops_per_s=None)
    known = {known.lower(): known for known in _MEMORY_GB}
    parts = [full for full in known if words in full]
    found = known.get(words) or (known[parts[0]] if len(parts) == 1 else None)
    if found is None:
        near = parts or get_close_matches(words, known, n=1)
        hint = f"known ones are {', '.join(_MEMORY_GB)}; any other is named by its memory, such as 24GB"
        if near:
            hint = f"did you mean {' or '.join(repr(known[each]) for each in near)}, or its memory alone, such as 24GB?"
        raise InputError(f"there is no data sheet of the device {name!r:.60} here; {hint}")
    flops = data_sheet_flops("H100" if found == "H200" else found)  # one processor, another memory
    assert flops
    return Device(name=found, memory_bytes=_MEMORY_GB[found] * GB, flops_per_s=flops)
