"""GPUs by name: their memory, and their peak in bf16 (`toolkit.model.flops`, from their data sheets)."""

from __future__ import annotations

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
    """A GPU as its data sheet has it."""

    name: str
    memory_bytes: int
    flops_per_s: float
    """In bf16, without sparsity."""


def device(name: str) -> Device:
    """Return a GPU by its name, in any case; raises `InputError`, which names the nearest, if it is not known."""
    known = {known.lower(): known for known in _MEMORY_GB}
    found = known.get(" ".join(name.lower().split()))
    if found is None:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]]!r}?" if near else f"known ones are {', '.join(_MEMORY_GB)}"
        raise InputError(f"there is no data sheet of the device {name!r:.60} here; {hint}")
    flops = data_sheet_flops("H100" if found == "H200" else found)  # one processor, another memory
    assert flops
    return Device(name=found, memory_bytes=_MEMORY_GB[found] * GB, flops_per_s=flops)
