"""Makes separate environments for programs whose dependencies conflict with ours.

<home>/          made by venv
└── ready        the installed requirements and the Python that they were installed for, written last
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from toolkit.errors import InputError, shortage

ELSEWHERE = ("PIP_TARGET", "PIP_USER", "PIP_PREFIX")
"""Variables that make pip install into other places than the environment that it runs in."""


def is_made(home: Path, requirements: Sequence[str]) -> bool:
    """Whether an environment holds exactly these packages, for the Python that asks."""
    ready = home / "ready"
    return (
        python_of(home).is_file() and ready.is_file() and ready.read_text(encoding="utf-8") == ready_text(requirements)
    )


def interpreter(home: Path, requirements: Sequence[str], *, module: str = "") -> Path:
    """Return the Python of an environment with these packages; it is made once, and again if they change.

    `module`: what must be importable there. Raises `InputError` if that cannot be, or pip cannot install the packages.
    """
    python = python_of(home)
    if is_made(home, requirements):
        return python
    try:
        venv.create(home, with_pip=True, clear=True, symlinks=os.name != "nt")
    except subprocess.CalledProcessError as error:
        raise shortage(_text(error.output), home) or InputError(
            f"{sys.executable} cannot make an environment in {home}: {_last_line(error.output)}; use a Python that has "
            "ensurepip (Debian and Ubuntu: python3-venv)"
        ) from error
    pip: list[str | Path] = [
        python,
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *requirements,
    ]
    _run(pip, home, f"pip cannot install {', '.join(requirements)} into {home}")
    if module:
        _run([python, "-I", "-c", f"import {module}"], home, f"{module} was installed into {home}, but does not work")
    (home / "ready").write_text(ready_text(requirements), encoding="utf-8")
    return python


def python_of(home: Path) -> Path:
    return home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ready_text(requirements: Sequence[str]) -> str:
    return "\n".join([*requirements, f"Python {platform.python_version()} of {sys.base_prefix}"])


def _run(command: Sequence[str | Path], home: Path, trouble: str) -> None:
    """Run a program of an environment; raises `InputError`, which begins with `trouble`, if it fails."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name not in ELSEWHERE
    }
    done = subprocess.run(command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise shortage(_text(done.stderr), home) or InputError(
            f"{trouble}: {_last_line(done.stderr)}; mend that and run the same command again"
        )


def _text(said: bytes | None) -> str:
    return (said or b"").decode("utf-8", "replace")


def _last_line(said: bytes | None) -> str:
    return (_text(said).strip().splitlines() or ["it does not say why"])[-1]
