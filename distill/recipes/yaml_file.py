"""Reads a YAML file of one mapping, and refuses what would be read otherwise than it looks.

PyYAML's safe loader reads YAML 1.1. Of two equal keys it would take the last one without a word, and an alias can make
a small file huge; both are errors here, as are keys that are not texts (`no:` is a boolean in YAML 1.1), and numbers of
other bases that look like decimal ones (010 is 8 there, and 1:30 is 90).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import ScalarNode

from toolkit.errors import InputError

MOST_BYTES = 1_000_000
TEXT = "tag:yaml.org,2002:str"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")
"""Numbers that YAML 1.1 reads in base 8 or 60."""


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise _Refused(f"an alias (*{event.anchor}) is not read; write the values out, or use base", event)
        node: Any = super().compose_node(parent, index)
        if isinstance(node, ScalarNode) and node.tag in NUMBERS and OTHER_BASE.fullmatch(node.value):
            meant = "base 60" if ":" in node.value else "base 8"
            raise _Refused(f"{node.value[:40]} is a number in {meant}; write it in decimals, or in quotes", node)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != TEXT:
                raise _Refused(f"the key {str(key.value)[:40]!r} is not a text; put it into quotes", key)
            if key.value in seen:
                raise _Refused(f"the key {key.value[:40]!r} stands twice in one mapping; leave one out", key)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class _Refused(yaml.YAMLError):
    def __init__(self, problem: str, at: Any) -> None:
        super().__init__(problem)
        self.problem, self.problem_mark = problem, at.start_mark


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the file's mapping; raises `InputError` naming the line at which it is none."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} has more than {MOST_BYTES:,} bytes, so it is no recipe; give another file")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give another file") from error
    value = parsed(text, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no mapping of keys to values; write lines such as max_tokens: 512")
    return value


def parsed(text: str, source: str) -> Any:
    """Return the value of a YAML text; raises `InputError` naming `source` and the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}" if mark else source
        problem = " ".join((getattr(error, "problem", None) or str(error)).split())
        raise InputError(f"{place} is not YAML that is read here: {problem}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # of dates and numbers that there are not
        raise InputError(f"{source} is not YAML that is read here: {error}") from error


def text_of(values: dict[str, Any]) -> str:
    """Return a mapping as YAML, from which `parsed` reads equal values."""
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text
