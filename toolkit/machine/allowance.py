"""What of this machine this process may use: its cores and its memory, within what a container allows.

Linux bounds a container by control groups, each within the one above it, and tells a process inside of the whole
machine all the same: a model then runs on more threads than it has processors, or is ended by the kernel.

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
"""Lines of a number, kinds (none in version 2) and a group, with colons between them."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    total_bytes: int
    available_bytes: int


def physical_cores() -> int:
    """Cores that this process may use, each counted once however many threads it runs."""
    known: int | None = psutil.cpu_count(logical=False)
    if not hasattr(os, "sched_getaffinity"):
        return known or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(topology.read_text(encoding="utf-8") if topology.is_file() else str(cpu))
    return min(len(siblings), known or len(siblings), processors_allowed() or len(siblings))


def processors_allowed() -> int | None:
    """How many processors' time the control groups allow, rounded up; None where they set no bound."""
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
    """The machine's memory, or the least that a control group allows where that is less."""
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
    """Bytes of files that a group counts as used, and gives back when they are needed."""
    words = _words(folder / "memory.stat")
    names = ("inactive_file", "total_inactive_file")
    found = (count for name, count in zip(words[::2], words[1::2], strict=False) if name in names)
    return max((count for count in found if isinstance(count, int)), default=0)


def _folders(kind: str) -> Iterator[Path]:
    """Where this process' groups stand, and those that these are within; in a container its own is often the root."""
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
    """The words of a small file, numbers as such; none where there is no such file."""
    try:
        words = path.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
    return [int(word) if word.lstrip("-").isdecimal() and len(word) < 20 else word for word in words]
