"""Whether values that came from a file are of the types that a dataclass names.

A count is a whole number that eight bytes hold, a measure a finite one: what is neither (true, 10^400, Infinity) would
fail far from the line that holds it. Types are those of our records: texts, numbers, literals, lists, dictionaries,
other records (which come as dictionaries), and unions of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

Check = Callable[[Any], bool]
END = 2**63
"""Behind the largest number of eight bytes."""


@cache
def field_checks(kind: type) -> dict[str, Check]:
    """By its fields' names, what tells whether a value is of the field's type."""
    return {name: _check(annotation) for name, annotation in get_type_hints(kind).items()}


def _check(annotation: Any) -> Check:
    arguments = get_args(annotation)
    match get_origin(annotation) or annotation:
        case kind if kind is Any:
            return lambda value: True
        case kind if kind in (NoneType, None):
            return lambda value: value is None
        case kind if kind is Literal:
            return lambda value: value in arguments
        case kind if kind in (Union, UnionType):
            choices = tuple(map(_check, arguments))
            return lambda value: any(check(value) for check in choices)
        case kind if kind is list:
            (of_item,) = map(_check, arguments)
            return lambda value: isinstance(value, list) and all(map(of_item, value))
        case kind if kind is dict:
            of_key, of_value = map(_check, arguments)
            return lambda value: (
                isinstance(value, dict) and all(map(of_key, value)) and all(map(of_value, value.values()))
            )
        case kind if kind is int:
            return lambda value: type(value) is int and -END <= value < END
        case kind if kind is float:
            return lambda value: (
                math.isfinite(value) if type(value) is float else type(value) is int and -END <= value < END
            )
        case kind if is_typeddict(kind):
            return lambda value: isinstance(value, dict)
        case kind if is_dataclass(kind):
            return lambda value: isinstance(value, (dict, kind))
        case kind:
            assert kind in (str, bool), f"{kind} is a type of no record so far"
            return lambda value: isinstance(value, kind)
