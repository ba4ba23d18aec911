"""JSON that anybody may have written: its value, or one line that says why there is none.

Refused are what is no regular file (a pipe may never end) or larger than its reader allows, bytes that are no UTF-8,
text that is no JSON, nesting deeper than `MOST_NESTED`, and numbers of more digits than Python reads. NaN and Infinity,
which RFC 8259 does not have and Python writes, are read where the reader asks for `constants`. Half a surrogate pair is
legal JSON and comes through: whoever needs whole text looks for it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

MOST_NESTED = 100
"""Levels of lists and objects. Protocol buffers allow as many, and what walks a value recursively has room for them."""

MOST_BYTES = 2**28
"""Of a file of JSON, and of a line that is a record. The index of a checkpoint of 671 billion parameters has 9 million,
the questions of a large run more."""

BOM = "\ufeff"

Pairs = Callable[[list[tuple[str, Any]]], Any]


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


def read_json(path: Path, *, limit_bytes: int = MOST_BYTES, constants: bool = False) -> Any:
    """The value of a JSON file of at most so many bytes. Raises `InputError` as the module says."""
    return parse_json(read_bytes(path, limit_bytes), str(path), constants=constants)


def parse_json(text: str | bytes, where: str, *, constants: bool = False, object_of: Pairs | None = None) -> Any:
    """The value of a JSON text, which an error calls `where`; `object_of` makes an object of its pairs.

    Raises `InputError` as the module says, and for a `ValueError` of `object_of`.
    """
    try:
        text = text.decode().removeprefix(BOM) if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=None if constants else _refuse, object_pairs_hook=object_of)
    except RecursionError:
        raise _too_deep(where) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.rstrip() else ""  # of one line, `where` is all that can be said
        raise InputError(f"{where} must be JSON: {error.msg} at {line}column {error.colno}") from error
    except ValueError as error:
        raise InputError(f"{where} must be JSON: {str(error).partition('; use sys.')[0]}") from error
    if text.count("[") + text.count("{") > MOST_NESTED and _is_too_deep(value):
        raise _too_deep(where)
    return value


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_NESTED):
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level = [inner for part in parts for inner in part if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def _too_deep(where: str) -> InputError:
    return InputError(f"{where} must be JSON of at most {MOST_NESTED} levels, and is nested deeper")
