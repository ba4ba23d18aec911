"""Finds how many cores and how much memory this process may use, within what a container allows.

Linux limits a container by nested control groups, but still tells the processes inside about the whole machine: a model
would then run on more threads than it has processors, or be killed by the kernel.

    version 2   /sys/fs/cgroup/<group>/         cpu.max             memory.max, memory.current
    version 1   /sys/fs/cgroup/<kind>/<group>/  cpu.cfs_quota_us    memory.limit_in_bytes, memory.usage_in_bytes

Source: the kernel's documentation, admin-guide/cgroup-v1 and admin-guide/cgroup-v2.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
"""Its lines hold a number, kinds (none in version 2) and a group, separated by colons."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    total_bytes: int
    available_bytes: int


def physical_cores() -> int:
    """Return the number of cores that this process may use, each counted once whatever its number of threads."""
    known: int | None = psutil.cpu_count(logical=False)
    if not hasattr(os, "sched_getaffinity"):
        return known or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(topology.read_text(encoding="utf-8") if topology.is_file() else str(cpu))
    return min(len(siblings), known or len(siblings), processors_allowed() or len(siblings))


def usable_processors() -> int:
    """Return the number of processors that this process may use, the threads of one core counted each."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, processors_allowed() or allowed)


def processors_allowed() -> int | None:
    """Return how many processors' time the control groups allow, rounded up; None if they set no limit."""
    allowed = []
    for folder in _folders("cpu"):
        match [
            *_words(folder / "cpu.max"),
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]:
            case [int() as quota, int() as period, *_] if quota > 0 and period > 0:
                allowed.append(quota / period)
    return math.ceil(min(allowed)) if allowed else None


def memory() -> Memory:
    """Return the machine's memory, or the least that a control group allows if that is less."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for folder in _folders("memory"):
        limits = [*_words(folder / "memory.max"), *_words(folder / "memory.limit_in_bytes")]
        used = [*_words(folder / "memory.current"), *_words(folder / "memory.usage_in_bytes")]
        match [*limits, *used]:
            case [int() as limit, int() as taken] if limit < total:
                total = limit
                available = min(available, max(0, limit - taken + _given_back(folder)))
    return Memory(total_bytes=total, available_bytes=available)


def _given_back(folder: Path) -> int:
    """Return the bytes of cached files that a group counts as used but frees when they are needed."""
    words = _words(folder / "memory.stat")
    names = ("inactive_file", "total_inactive_file")
    found = (count for name, count in zip(words[::2], words[1::2], strict=False) if name in names)
    return max((count for count in found if isinstance(count, int)), default=0)


def _folders(kind: str) -> Iterator[Path]:
    """Yield the folders of this process's groups and their parents; in a container its own is often the root."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, group = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        if kinds and kind not in kinds.split(","):
            continue
        root = GROUPS / kinds if kinds else GROUPS
        parts = [part for part in group.split("/") if part not in ("", "..")]
        yield from (root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1))


def _words(path: Path) -> list[int | str]:
    """Read the words of a small file, numbers as numbers; none if there is no such file."""
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
    return [int(word) if word.lstrip("-").isdecimal() and len(word) < 20 else word for word in words]
