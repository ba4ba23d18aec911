"""Reads the small files of a folder that somebody else may have written: JSON of a bounded size, with the types asked for.

Invariant: only a regular file is opened, since a pipe would never end and a device never be full; what a file says is
refused in one line where it is not what its reader counts on.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from toolkit.errors import InputError

MOST_BYTES = 64 * 2**20
"""Of a JSON file. The index of a checkpoint of 671 billion parameters has 9 million, the questions of a large run 20."""

MOST_SHOWN = 40
"""Characters of a value in a message."""
WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}


def check_regular(path: Path) -> os.stat_result:
    """Facts of a regular file, or of the one that a link leads to. Raises `InputError` where there is none."""
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{path} must be a regular file, and is a folder, a pipe or a device; copy it again")
    return facts


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """A whole regular file. Raises `InputError` where it is none, or larger than `most_bytes`."""
    size_bytes = check_regular(path).st_size
    if size_bytes > most_bytes:
        raise InputError(f"{path} ({size_bytes} bytes) must have at most {most_bytes} bytes; get it again")
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise InputError(f"{path} must have at most {most_bytes} bytes, and grows; get it again")
    return content


def read_json(path: Path) -> Any:
    """Raises `InputError` where the file is not regular, too large or no JSON, or is nested too deeply to be read."""
    content = read_bytes(path, MOST_BYTES)
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be readable JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} must be readable JSON, and is nested too deeply; get it again") from error


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON file has a type such as `dict[str, list[int]]`. A number is no bool, an int may be a float."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if kind is None or kind is type(None):
        return value is None
    if isinstance(value, bool):
        return kind in (bool, Any)
    if kind is float:
        return isinstance(value, int | float)
    return kind is Any or isinstance(value, kind)


def check_type(value: Any, kind: Any, name: str) -> None:
    """Raises `InputError` where the value that a file gives `name` doesn't fit."""
    if not fits(value, kind):
        shown = repr(value)
        shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…"
        raise InputError(f"{name} ({shown}) must be {_in_words(kind)}; get the file again")


def _in_words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is list:
        return f"a list, each entry {_in_words(parts[0])}"
    if origin in (dict, Mapping):
        return "an object" + (f", each entry {_in_words(parts[1])}" if parts[1] is not Any else "")
    return WORDS.get(kind) or str(kind.__name__)
