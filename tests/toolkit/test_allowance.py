"""A container's limits count as the machine's, as far as the kernel tells them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from toolkit.machine import allowance
from toolkit.machine.allowance import memory, physical_cores, processors_allowed, usable_processors

GB = 10**9
V2 = {
    "memory.max": f"{2 * GB}\n",
    "memory.current": f"{GB}\n",
    "memory.stat": f"anon {GB // 2}\ninactive_file {GB // 4}\n",
    "cpu.max": "150000 100000\n",
}
V1 = {
    "memory/memory.limit_in_bytes": f"{2 * GB}\n",
    "memory/memory.usage_in_bytes": f"{GB}\n",
    "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GB // 4}\n",
    "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
UNBOUNDED = {
    "memory.max": "max\n",
    "memory.current": "5\n",
    "cpu.max": "max 100000\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    "memory/memory.usage_in_bytes": "5\n",
    "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
}
OWN = "9:name=systemd:/a\n4:memory:/a/b\n1:cpu,cpuacct:/a/b\n0::/a/b\n"


def place(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, str], own: str | None = OWN) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    monkeypatch.setattr(allowance, "GROUPS", folder)
    monkeypatch.setattr(allowance, "OWN_GROUPS", folder / "own")
    if own is not None:
        (folder / "own").write_text(own)


def inside(files: dict[str, str], group: str) -> dict[str, str]:
    """Write the files of nested control groups."""
    return {str(Path(name).parent / group / Path(name).name): content for name, content in files.items()}


@pytest.mark.parametrize("files", [V2, V1, inside(V2, "a"), inside(V1, "a/b"), inside(V2, "a") | UNBOUNDED])
def test_the_least_that_a_group_allows_counts(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, tmp_path, files)
    assert processors_allowed() == 2 and physical_cores() <= 2
    found = memory()
    assert found.total_bytes == 2 * GB
    assert found.available_bytes == min(GB + GB // 4, psutil.virtual_memory().available) or found.available_bytes < GB


def test_half_a_processor_is_one_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch, tmp_path, {"cpu.max": "50000 100000\n"})
    assert usable_processors() == physical_cores() == 1


@pytest.mark.parametrize("files", [UNBOUNDED, {}, dict.fromkeys(V2 | V1, "\xff what 5"), dict.fromkeys(V2 | V1, "")])
@pytest.mark.parametrize("own", [OWN, None, "", "nonsense\n::\n1:2", "0::/../../etc\n"])
def test_what_bounds_nothing_or_cannot_be_read_leaves_the_machine(
    files: dict[str, str], own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, tmp_path, files, own)
    assert processors_allowed() is None and 1 <= physical_cores() <= (os.cpu_count() or 1)
    assert memory().total_bytes == psutil.virtual_memory().total
