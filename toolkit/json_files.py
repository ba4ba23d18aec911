"""Reads JSON that anybody may have written, or says in one line why it cannot be read.

It refuses anything but a regular file (a pipe may never end), a file larger than its reader allows, bytes that are not
UTF-8, text that is not JSON, nesting deeper than `MOST_NESTED`, and numbers of more digits than Python reads. NaN and
Infinity, which RFC 8259 lacks and Python writes, are read if the reader asks for `constants`. Half a surrogate pair is
legal JSON and passes: whoever needs whole text must look for it.
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
"""The most levels of lists and objects. Protocol buffers allow as many, and recursive functions have room for them."""

MOST_BYTES = 2**28
"""The largest JSON file, and the longest line that is a record. The index of a checkpoint of 671 billion parameters has
9 million bytes, the questions of a large run more."""

BOM = "\ufeff"

Pairs = Callable[[list[tuple[str, Any]]], Any]


def check_regular(path: Path) -> os.stat_result:
    """Return the facts of a regular file, or of the one that a link leads to. Raises `InputError` if it is not one."""
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{path} must be a regular file, not a folder, a pipe or a device; copy it again")
    return facts


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Read a whole regular file. Raises `InputError` if it is not one, or is larger than `most_bytes`."""
    size_bytes = check_regular(path).st_size
    if size_bytes > most_bytes:
        raise InputError(f"{path} has {size_bytes} bytes, more than the {most_bytes} that are read; get it again")
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most_bytes:
        raise InputError(f"{path} grows beyond the {most_bytes} bytes that are read; get it again")
    return content


def read_json(path: Path, *, limit_bytes: int = MOST_BYTES, constants: bool = False) -> Any:
    """Read the value of a JSON file of at most `limit_bytes`. Raises `InputError` for what the module refuses."""
    return parse_json(read_bytes(path, limit_bytes), str(path), constants=constants)


def parse_json(text: str | bytes, where: str, *, constants: bool = False, object_of: Pairs | None = None) -> Any:
    """Parse a JSON text, which errors call `where`; `object_of` makes an object from its pairs.

    Raises `InputError` for what the module refuses, and for a `ValueError` of `object_of`.
    """
    try:
        text = text.decode().removeprefix(BOM) if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=None if constants else _refuse, object_pairs_hook=object_of)
    except RecursionError:
        raise _too_deep(where) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.rstrip() else ""  # a single line is named by `where`
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
    return InputError(f"{where} must be JSON of at most {MOST_NESTED} levels; it is nested deeper")
