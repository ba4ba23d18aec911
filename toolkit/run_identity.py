"""Tells which run a partial folder is for, with which command it resumes, and in what two runs differ."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.json_files import read_json
from toolkit.terminal import listed

MARKER = "stage.json"
"""The file in a partial folder that holds the key of its run and the fields below."""
COMMAND, DIRECTORY, NAMES = "command", "directory", "names"
"""The command that began a run, where it was given, and what a person calls the run's inputs."""
LEFT_OUT = object()
"""Stands for a value that a run does not record, since it is the default."""
MOST_TOLD = 80
"""The most characters of a value in a message."""


def command() -> str:
    """Return the command that started this process, with which an interrupted run can be resumed."""
    program = Path(sys.argv[0])
    is_ours = program.stem == "toolkit" or program.parts[-2:] == ("toolkit", "__main__.py")  # of python -m toolkit
    return shlex.join(["toolkit", *sys.argv[1:]] if is_ours else sys.orig_argv)


def marker_text(key: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return what the marker of a run that this process begins holds."""
    return json.dumps({**key, COMMAND: command(), DIRECTORY: os.getcwd(), NAMES: dict(names)})


def read_marker(folder: Path) -> Any:
    """Read what a partial folder's marker holds; None if it cannot be read."""
    try:
        return read_json(folder / MARKER)
    except InputError:
        return None


def key_in(marker: Any) -> Any:
    """Return the key of the run that a marker names."""
    if not isinstance(marker, dict):
        return marker
    return {name: marker[name] for name in marker if name not in (COMMAND, DIRECTORY, NAMES)}


def digest_of(value: Any, digits: int = 8) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def difference(found: Any, key: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Describe the first fact in which a manifest or a marker differs from a run's key, with both values, and name the
    others.

    A digest of an input is told with the name of that input, as far as `names` or the other run's record has it.
    """
    facts = found if isinstance(found, dict) else {}
    their_names = facts.get(NAMES)
    differing = [each for field, expected in key.items() for each in _differences(field, facts.get(field), expected)]
    if not differing:
        return None
    (where, was, now), *others = differing
    before = _told(where, was, their_names if isinstance(their_names, dict) else {})
    also = listed([other for other, _, _ in others])
    more = f", and {also} {'differs' if len(others) == 1 else 'differ'} too" if others else ""
    return f"its {where} ({before}) must equal this run's ({_told(where, now, names)}){more}"


def _differences(where: str, found: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(expected, dict):
        pairs = {key: (found.get(key, LEFT_OUT), expected.get(key, LEFT_OUT)) for key in found.keys() | expected.keys()}
        return [each for key in sorted(pairs) for each in _differences(f"{where}.{key}", *pairs[key])]
    is_same = found == expected or all(value is None or value is LEFT_OUT for value in (found, expected))
    return [] if is_same else [(where, found, expected)]


def _told(where: str, value: Any, names: Mapping[str, str]) -> str:
    if value is LEFT_OUT:
        return "left out"
    field, _, name = where.partition(".")
    if field == "inputs" and name in names:
        return f"{names[name]}, digest {value!r}"
    shown = repr(value)
    return shown if len(shown) <= MOST_TOLD else f"{shown[:MOST_TOLD]}…"
