"""Lists the project's own modules for the tests of the house."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("toolkit", "distill", "export", "apps", "benchmarks")
ROOF = ("toolkit.__main__", "toolkit.cli")
"""The modules that call all stages, and that nothing below imports."""


@cache
def module_files() -> dict[str, Path]:
    """Return every module's dotted name and file."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path): path for path in paths}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
