"""Reconstructs the command that started this process, with which an interrupted run can be resumed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path


def command() -> str:
    program = Path(sys.argv[0])
    is_ours = program.stem == "toolkit" or program.parts[-2:] == ("toolkit", "__main__.py")  # of python -m toolkit
    return shlex.join(["toolkit", *sys.argv[1:]] if is_ours else sys.orig_argv)
