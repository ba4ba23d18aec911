"""Examines this machine: what it has, what it can run, and what each command still needs, with the remedy.

    ✓ found      ✗ missing, with the remedy      – not installed, and not needed by what is installed

An extra counts as wanted if its key package is installed, so a machine that only chats lacks nothing for training. If
no extra is complete, all are wanted. Nothing heavy is imported: versions come from package metadata, instructions from
the operating system.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from toolkit.figures.tables import columns
from toolkit.machine.allowance import memory, physical_cores
from toolkit.machine.browsers import find_browser
from toolkit.machine.processor import instructions
from toolkit.machine.user_folders import cache_folder
from toolkit.terminal import counted

DISTRIBUTION = "reasoning-edge"
VERBS_OF_EXTRA = {
    "chat": "verify, bench, chat",
    "distill": "pull, teach, traces, recipes, plan, distill, eval, quantize, report, demo",
    "export": "export, demo",
    "serve": "verify, bench, serve",
}
KEY_PACKAGE = {"chat": "gradio", "distill": "trl", "export": "onnx", "serve": "llguidance"}
"""The package that shows that an extra is wanted."""
DEMO_DISK_BYTES = 5e9
DEMO_MEMORY_BYTES = 8e9
BYTES_A_PARAMETER = 0.65
"""Resident bytes of an int4 model and a cache of some hundred positions: 1.1 GB for 1.7B (docs/explanation/int4.md)."""
BESIDE_MODEL_BYTES = 0.5e9
"""Memory of the process that runs a model, beside the model."""
MODEL_SIZES = (135e6, 360e6, 600e6, 1.7e9, 4e9, 8e9, 14e9, 32e9, 70e9)
"""Parameters of models in common sizes."""
DRIVER_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's: a subject, what was found, and the remedy if something is missing."""

    subject: str
    found: str
    remedy: str = ""
    is_needed: bool = True
    """Whether the installed parts need what the remedy installs."""

    @property
    def is_good(self) -> bool:
        return not (self.remedy and self.is_needed)

    @property
    def sign(self) -> str:
        if not self.remedy:
            return "✓"
        return "✗" if self.is_needed else "–"


def examine() -> list[Finding]:
    """Return all findings about this machine and this installation."""
    missing = {name: missing_requirements(name) for name in VERBS_OF_EXTRA}
    needed = {name for name in missing if all(missing.values()) or _version(KEY_PACKAGE[name])}
    return [
        *_machine(trains="distill" in needed),
        *(_extra(name, missing[name], is_needed=name in needed) for name in missing),
        _accelerator(),
        _browser(),
        *_missing_tools(is_needed="distill" in needed),
    ]


def to_text(findings: list[Finding]) -> str:
    """Format each finding as one line: a sign, the subject, what was found, the remedy."""
    rows = [(f"{f.sign} {f.subject}", f"{f.found}{'  →  ' + f.remedy if f.remedy else ''}") for f in findings]
    return columns(rows)


def to_facts(findings: list[Finding]) -> dict[str, Any]:
    return {"findings": [asdict(finding) for finding in findings], "good": all(f.is_good for f in findings)}


def missing_requirements(extra: str) -> list[str]:
    """Return the distributions of an extra that are not installed, or in a version that does not fit."""
    missing = []
    for requirement in map(Requirement, metadata.requires(DISTRIBUTION) or []):
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": extra}) or marker.evaluate({"extra": ""}):
            continue
        if not _version(requirement.name):
            missing.append(requirement.name)
        elif found := _version_that_does_not_fit(requirement):
            missing.append(f"{requirement.name} {requirement.specifier} ({found} is installed)")
    return missing


def largest_model(memory_bytes: float) -> float:
    """Return the parameters of the largest common model whose int4 export fits into so much memory; 0 if none does."""
    room = memory_bytes - BESIDE_MODEL_BYTES
    return max((size for size in MODEL_SIZES if size * BYTES_A_PARAMETER <= room), default=0.0)


def _machine(*, trains: bool) -> Iterator[Finding]:
    """Examine Python, processor, memory and disk; `trains`: whether the demo is meant to run here."""
    python = platform.python_version()
    yield Finding(
        subject="python",
        found=f"{python} in {sys.prefix}",
        remedy="" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
    )
    known = instructions()
    yield Finding(
        subject="processor",
        found=f"{platform.machine()}, {counted(physical_cores(), 'core')}, "
        f"{', '.join(known) or 'instructions unknown'}",
    )
    allowed = memory()
    largest = largest_model(allowed.available_bytes)
    runs = f"runs int4 models of up to {largest / 1e9:g} billion parameters" if largest else "too little for a model"
    lacks_memory = trains and allowed.available_bytes < DEMO_MEMORY_BYTES
    yield Finding(
        subject="memory",
        found=f"{_gigabytes(allowed.total_bytes)}, {_gigabytes(allowed.available_bytes)} free: {runs}",
        remedy=f"demo takes up to {_gigabytes(DEMO_MEMORY_BYTES)}" if lacks_memory else "",
    )
    free_bytes = shutil.disk_usage(Path.cwd()).free
    lacks_disk = trains and free_bytes < DEMO_DISK_BYTES
    yield Finding(
        subject="disk",
        found=f"{_gigabytes(free_bytes)} free here; cache in {cache_folder()}",
        remedy=f"demo takes up to {_gigabytes(DEMO_DISK_BYTES)}" if lacks_disk else "",
    )


def _extra(name: str, missing: list[str], *, is_needed: bool) -> Finding:
    state = "all installed" if not missing else f"lacks {', '.join(missing)}" if is_needed else "not installed"
    return Finding(
        subject=f"[{name}]",
        found=f"for {VERBS_OF_EXTRA[name]}: {state}",
        remedy=f"pip install '{DISTRIBUTION}[{name}]'" if missing else "",
        is_needed=is_needed,
    )


def _accelerator() -> Finding:
    versions = [f"{name} {version}" for name in ("torch", "transformers", "onnxruntime") if (version := _version(name))]
    return Finding(subject="engines", found=f"{', '.join(versions) or 'none'}; {_gpus()}")


def _gpus() -> str:
    """Ask the driver for its GPUs; its program may be installed without one."""
    program = shutil.which("nvidia-smi")
    if not program:
        return "no NVIDIA GPU (none is needed)"
    try:
        done = subprocess.run(
            [program, "--list-gpus"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=DRIVER_TIMEOUT_S,
            check=False,
        )
        names = re.findall(r"^GPU \d+: (.*?)(?: \(UUID|$)", done.stdout.decode(errors="replace"), flags=re.MULTILINE)
    except (OSError, subprocess.TimeoutExpired):
        names = []
    return ", ".join(names) or "no NVIDIA GPU that the driver finds (none is needed)"


def _browser() -> Finding:
    return Finding(
        subject="browser",
        found=find_browser()
        or "none of the Chromium family, so the chat opens in a browser tab, not in a window of its own",
    )


def _missing_tools(*, is_needed: bool) -> Iterator[Finding]:
    if is_needed and not _version("reasoning-gym") and not shutil.which("cc"):
        yield Finding(
            subject="compiler",
            found="no cc, which a dependency of [distill] is compiled with",
            remedy="install a C compiler (apt-get install gcc python3-dev)",
        )


def _version_that_does_not_fit(requirement: Requirement) -> str:
    """Return the installed version if it does not fit the requirement; empty if it fits."""
    try:
        found = metadata.version(requirement.name)
        return "" if requirement.specifier.contains(found, prereleases=True) else found
    except metadata.PackageNotFoundError:
        return ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
