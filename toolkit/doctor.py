"""Looks at this machine: what it has, and what each command still needs, with the remedy.

Nothing heavy is imported: versions come from package metadata, instructions from the operating system.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from toolkit.models import cache_folder
from toolkit.terminal import visible

DISTRIBUTION = "reasoning-edge"
VERBS_OF_EXTRA = {
    "chat": "verify, bench, chat",
    "distill": "pull, teach, traces, distill, eval, report, demo",
    "export": "export, demo",
    "serve": "serve",
}
INSTRUCTIONS = ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "asimddp", "i8mm", "bf16")
"""Linux's names for the instructions that int8 products and bf16 training use (x86-64, then arm64)."""
DEMO_DISK_BYTES = 5e9
DEMO_MEMORY_BYTES = 8e9
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's: what was looked at, what was found, and the remedy where something is missing."""

    subject: str
    found: str
    remedy: str = ""

    @property
    def is_good(self) -> bool:
        return not self.remedy


def examine() -> list[Finding]:
    """All findings about this machine and this installation."""
    return [*_machine(), *(_extra(name) for name in VERBS_OF_EXTRA), _accelerator(), _browser(), *_missing_tools()]


def to_text(findings: list[Finding]) -> str:
    """One line a finding: a sign, the subject, what was found, the remedy."""
    width = max(len(finding.subject) for finding in findings)
    return "\n".join(
        visible(f"{'✓' if f.is_good else '✗'} {f.subject:{width}}  {f.found}{'  →  ' + f.remedy if f.remedy else ''}")
        for f in findings
    )


def to_facts(findings: list[Finding]) -> dict[str, Any]:
    return {"findings": [asdict(finding) for finding in findings], "good": all(f.is_good for f in findings)}


def instructions() -> list[str]:
    """Those of `INSTRUCTIONS` that this processor has; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    flags = set(line.group(1).split()) if line else set()
    return [name for name in INSTRUCTIONS if name in flags]


def missing_requirements(extra: str) -> list[str]:
    """Names of the distributions of an extra that are not installed."""
    missing = []
    for requirement in metadata.requires(DISTRIBUTION) or []:
        name = re.match(r"[\w.-]+", requirement)
        if name and f'extra == "{extra}"' in requirement and not _version(name.group()):
            missing.append(name.group())
    return missing


def _machine() -> Iterator[Finding]:
    python = platform.python_version()
    yield Finding(
        subject="python",
        found=f"{python} in {sys.prefix}",
        remedy="" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
    )
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    known = instructions()
    yield Finding(
        subject="processor",
        found=f"{platform.machine()}, {cores} cores, {', '.join(known) or 'instructions unknown'}",
    )
    memory = psutil.virtual_memory()
    yield Finding(
        subject="memory",
        found=f"{_gigabytes(memory.total)}, {_gigabytes(memory.available)} free",
        remedy="" if memory.available >= DEMO_MEMORY_BYTES else f"demo takes up to {_gigabytes(DEMO_MEMORY_BYTES)}",
    )
    free_bytes = shutil.disk_usage(Path.cwd()).free
    yield Finding(
        subject="disk",
        found=f"{_gigabytes(free_bytes)} free here; cache in {cache_folder()}",
        remedy="" if free_bytes >= DEMO_DISK_BYTES else f"demo takes up to {_gigabytes(DEMO_DISK_BYTES)}",
    )


def _extra(name: str) -> Finding:
    missing = missing_requirements(name)
    return Finding(
        subject=f"[{name}]",
        found=f"for {VERBS_OF_EXTRA[name]}: {'lacks ' + ', '.join(missing) if missing else 'all installed'}",
        remedy=f"pip install '{DISTRIBUTION}[{name}]'" if missing else "",
    )


def _accelerator() -> Finding:
    versions = [f"{name} {version}" for name in ("torch", "transformers", "onnxruntime") if (version := _version(name))]
    gpu = "NVIDIA GPU" if shutil.which("nvidia-smi") else "no GPU, and none is needed"
    return Finding(subject="engines", found=f"{', '.join(versions) or 'none'}; {gpu}")


def _browser() -> Finding:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return Finding(subject="browser", found=found or "no chromium (only the page test needs one)")


def _missing_tools() -> Iterator[Finding]:
    if not _version("reasoning-gym") and not shutil.which("cc"):
        yield Finding(
            subject="compiler",
            found="no cc, which a dependency of [distill] needs",
            remedy="install a C compiler (apt-get install gcc python3-dev)",
        )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
