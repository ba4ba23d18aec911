"""Measures the most memory that this process has held."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil


def peak_memory_bytes() -> int:
    """Return the peak resident memory, mapped files included.

    On Linux it is read from /proc, because getrusage also counts what the parent had before exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        text = status.read_text(encoding="utf-8", errors="replace")  # the program's name may be in any encoding
        line = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # exists only on Unix

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
