"""Makes separate environments for programs whose dependencies conflict with ours.

<home>/          made by venv
└── ready        the installed requirements, written last
"""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def is_made(home: Path, requirements: Sequence[str]) -> bool:
    """Whether an environment holds exactly these packages."""
    ready = home / "ready"
    return ready.is_file() and ready.read_text(encoding="utf-8") == "\n".join(requirements)


def interpreter(home: Path, requirements: Sequence[str]) -> Path:
    """Return the Python of an environment with these packages; it is made once, and again if they change.

    Raises `subprocess.CalledProcessError` if pip cannot install them; what it says is on stderr.
    """
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not is_made(home, requirements):
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        (home / "ready").write_text("\n".join(requirements), encoding="utf-8")
    return python
