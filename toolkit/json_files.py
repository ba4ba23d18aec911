"""JSON that anybody may have written: its value, or one line that says why there is none.

Refused are what is no regular file (a pipe may never end) or larger than its reader allows, bytes that are no UTF-8,
text that is no JSON, nesting deeper than `MOST_NESTED`, and numbers of more digits than Python reads. NaN and Infinity,
which RFC 8259 does not have and Python writes, are read where the reader asks for `constants`. Half a surrogate pair is
legal JSON and comes through: whoever needs whole text looks for it.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

MOST_NESTED = 100
"""Levels of lists and objects. Protocol buffers allow as many, and what walks a value recursively has room for them."""

BOM = "\ufeff"

Pairs = Callable[[list[tuple[str, Any]]], Any]


def read_json(path: Path, *, limit_bytes: int, constants: bool = False) -> Any:
    """The value of a JSON file of at most so many bytes. Raises `InputError` as the module says."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} must be a regular file; it is a folder, a pipe or a device")
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > limit_bytes:
        raise InputError(
            f"{path} ({path.stat().st_size} bytes) must have at most {limit_bytes} bytes to be read as JSON"
        )
    return parse_json(content, str(path), constants=constants)


def parse_json(text: str | bytes, where: str, *, constants: bool = False, object_of: Pairs | None = None) -> Any:
    """The value of a JSON text, which an error calls `where`; `object_of` makes an object of its pairs.

    Raises `InputError` as the module says, and for a `ValueError` of `object_of`.
    """
    try:
        text = text.decode().removeprefix(BOM) if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=None if constants else _refuse, object_pairs_hook=object_of)
    except RecursionError:
        raise _too_deep(where) from None
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
