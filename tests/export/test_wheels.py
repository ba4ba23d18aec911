"""Wheels are built for the platforms that are checked, and a library that does not fit its platform is told why.

Building all of them takes minutes and a network: `make wheels`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.wheels import CALLED, PLATFORMS, ROOT, faults

LINUX = PLATFORMS["manylinux_2_28_aarch64"]
GOOD = {
    "architecture": "AARCH64",
    "least": "GLIBC_2.27",
    "imported": ["libc.so.6", "libm.so.6"],
    "exported": sorted(CALLED),
}


def targets() -> dict[str, str]:
    """Read the platforms of setup.py, which builds when it is imported."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    [value] = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TARGETS"
    ]
    found: dict[str, str] = ast.literal_eval(value)
    return found


def test_each_platform_that_can_be_built_is_checked() -> None:
    assert list(targets()) == list(PLATFORMS)


def test_a_platform_that_is_not_known_is_refused_in_one_line() -> None:
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TOOLKIT_WHEEL": "amiga"}, capture_output=True, text=True, check=False
    )
    names = ", ".join(targets())
    said = f"TOOLKIT_WHEEL ('amiga') must be one of {names}; unset it for a wheel of this machine\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_a_library_that_fits_its_platform_has_no_faults() -> None:
    assert faults(LINUX, Path("_library.so"), GOOD) == []


@pytest.mark.parametrize(
    "file, changed, said",
    [
        ("_library.dll", {}, "its name is _library.dll, not _library.so"),
        ("_library.so", {"architecture": "X86_64"}, "it is for X86_64, not AARCH64"),
        ("_library.so", {"exported": ["RegisterCustomOps"]}, "it does not offer choose_kernels, kernels_here"),
        ("_library.so", {"imported": ["libgomp.so.1"]}, "it needs libgomp.so.1"),
        ("_library.so", {"least": "GLIBC_2.34"}, "it needs GLIBC_2.34, newer than GLIBC_2.28"),
    ],
)
def test_a_library_that_does_not_is_told_why(file: str, changed: dict[str, object], said: str) -> None:
    assert faults(LINUX, Path(file), GOOD | changed) == [said]
