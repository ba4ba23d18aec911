"""Makes separate environments for programs whose dependencies conflict with ours.

<home>/          made by venv
└── ready        the installed requirements, written last
"""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def interpreter(home: Path, requirements: Sequence[str]) -> Path:
    """Return the Python of an environment with these packages; it is made once, and again if they change."""
    ready, python, wanted = home / "ready", home / "bin/python", "\n".join(requirements)
    if not ready.is_file() or ready.read_text(encoding="utf-8") != wanted:
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
        ready.write_text(wanted, encoding="utf-8")
    return python
