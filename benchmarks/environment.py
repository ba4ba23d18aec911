"""Environments of their own for programs whose versions don't go together with ours.

<home>/          what venv makes
└── ready        what was installed, written last
"""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def interpreter(home: Path, requirements: Sequence[str]) -> Path:
    """The Python of an environment that holds these packages: made once, and anew where others are asked for."""
    ready, python, wanted = home / "ready", home / "bin/python", "\n".join(requirements)
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python
