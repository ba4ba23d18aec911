"""Checks that values from a file have the types that a dataclass declares.

An int must fit into eight bytes and a float must be finite: anything else (true, 10^400, Infinity) would fail far from
the line that holds it. The types are those of our records: texts, numbers, literals, lists, dictionaries, other records
(which come as dictionaries), and unions of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from toolkit.errors import InputError

Check = Callable[[Any], bool]
END = 2**63
"""One more than the largest integer of eight bytes."""
MOST_SHOWN = 40
"""The most characters of a value in a message."""
WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The numbers that a field of a configuration may hold, as part of its annotation."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def hold(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {value:g}" for word, value in words.items() if math.isfinite(value))


Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(least=0)]
Share = Annotated[float, Bounds(least=0, most=1)]
ShareBelow1 = Annotated[float, Bounds(least=0, below=1)]
Count = Annotated[int, Bounds(least=1, below=10**12)]
CountOr0 = Annotated[int, Bounds(least=0, below=10**12)]


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the types that a class declares, by the names of its fields."""
    return get_type_hints(kind)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type such as `dict[str, list[int]]`. A whole number is a float too; true is no number."""
    return _check(kind)(value)


def check_type(value: Any, kind: Any, name: str) -> None:
    """Raise `InputError` if the value that a file gives for `name` does not have the type."""
    if not fits(value, kind):
        shown = repr(value)
        shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…"
        raise InputError(f"{name} ({shown}) must be {in_words(kind)}; get the file again")


def in_words(kind: Any) -> str:
    """Describe a type for a message: `dict[str, list[int]]` is an object, each entry a list, each entry a whole
    number."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(in_words, parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is list:
        return f"a list, each entry {in_words(parts[0])}"
    if origin is dict:
        return "an object" + (f", each entry {in_words(parts[1])}" if parts[1] is not Any else "")
    return WORDS.get(kind) or f"an object ({kind.__name__})"


@cache
def _check(annotation: Any) -> Check:
    arguments = get_args(annotation)
    match get_origin(annotation) or annotation:
        case kind if kind is Any:
            return lambda value: True
        case kind if kind in (NoneType, None):
            return lambda value: value is None
        case kind if kind is Literal:  # readers judge the value: an older or newer writer may know other words
            kinds = tuple({type(argument) for argument in arguments})
            return lambda value: isinstance(value, kinds)
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
