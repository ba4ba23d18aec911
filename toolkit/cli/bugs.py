"""Turns an unforeseen exception into one line for the user and a file with the traceback for a bug report."""

from __future__ import annotations

import platform
import shlex
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.machine.doctor import DISTRIBUTION
from toolkit.machine.user_folders import cache_folder

FOLDER = "bugs"
SECRETS = ("--api-key",)
"""Options whose values are left out of the file."""


class Bug(ToolkitError):
    """The toolkit itself is wrong. Exit 70, as `EX_SOFTWARE` of BSD's sysexits.h."""

    exit_code = 70

    @classmethod
    def of(cls, error: BaseException) -> Bug:
        """Return the error for an unforeseen exception; it names the file that the traceback was written to."""
        first = (str(error).strip().splitlines() or ["no message"])[0]
        what = f"this is a bug in the toolkit, not in your input: {type(error).__name__}: {first}"
        try:
            path = _write(error)
        except OSError:
            return cls(f"{what}; report it with what --debug shows")
        return cls(f"{what}; report it with {path}, which has the command and the traceback")


def _write(error: BaseException) -> Path:
    folder = cache_folder() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{type(error).__name__}.txt"
    facts = [
        shlex.join(_without_secrets(sys.argv)),
        f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}, Python {platform.python_version()}, {platform.platform()}",
        "".join(traceback.format_exception(error)),
    ]
    path.write_text("\n".join(facts), encoding="utf-8")
    return path


def _without_secrets(words: list[str]) -> list[str]:
    hidden = []
    for before, word in zip(["", *words], words, strict=False):
        name, equals, _ = word.partition("=")
        hidden.append("…" if before in SECRETS else f"{name}=…" if equals and name in SECRETS else word)
    return hidden
