"""What is freed stays, and lies in huge pages where the kernel has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from pathlib import Path
from toolkit.allocator import keep_freed_memory

def resident_kb(what):
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))

assert keep_freed_memory()
before = resident_kb("Rss:")
block = bytearray(256 << 20)
huge = resident_kb("AnonHugePages:")
del block
print(resident_kb("Rss:") - before, huge)
"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_stays_and_lies_in_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept_kb, huge_kb = map(int, done.stdout.split())
    assert kept_kb > 200 << 10
    if HUGE_PAGES.is_file() and "[never]" not in HUGE_PAGES.read_text():
        assert huge_kb > 0
