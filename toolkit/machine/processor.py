"""Finds out what this machine's processor can do, as far as Linux tells."""

from __future__ import annotations

import re
from pathlib import Path

INSTRUCTIONS = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "asimddp", "i8mm", "bf16")
"""Linux's names for the instructions that int8 products and bf16 training use (x86-64, then arm64)."""


def instructions() -> list[str]:
    """Return those of `INSTRUCTIONS` that this processor has; empty if the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    flags = set(line.group(1).split()) if line else set()
    return [name for name in INSTRUCTIONS if name in flags]
