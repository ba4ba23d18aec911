"""Checks the values that a recipe gives for the fields of its dataclasses, whose annotations say what they may hold.

Values are kept flat, each under its dotted name (`train.learning_rate`), so that one recipe is laid over another by
joining two mappings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from distill.recipes.other_names import OTHER_NAMES, OTHER_VALUES
from distill.recipes.yaml_file import parsed
from toolkit.errors import InputError
from toolkit.field_types import MOST_SHOWN, Within, fits, in_words

Flat = dict[str, Any]


@cache
def annotations_of(kind: type, prefix: str = "") -> Mapping[str, Any]:
    """Return the annotation of each field by its dotted name; the fields of a section have names of two parts."""
    sections = sections_of(kind)
    found: dict[str, Any] = {}
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        if name in sections:
            found |= annotations_of(sections[name], f"{prefix}{name}.")
        else:
            found[prefix + name] = annotation
    return found


def sections_of(kind: type) -> Mapping[str, Any]:
    """Return the sections of a recipe: fields that are a dataclass, or one or None."""
    found = {}
    for name, annotation in get_type_hints(kind).items():
        for part in get_args(annotation) or (annotation,):
            if is_dataclass(part):
                found[name] = part
    return found


def assembled(kind: type, flat: Mapping[str, Any]) -> Any:
    """Make a recipe of the values by their dotted names; a section of which none is given has its default.

    Raises `InputError` for values that do not go together.
    """
    values = {name: value for name, value in flat.items() if "." not in name}
    for name, section in sections_of(kind).items():
        given = {key.partition(".")[2]: value for key, value in flat.items() if key.startswith(f"{name}.")}
        if given:  # a section with defaults of its own knows how to read itself
            values[name] = section.from_dict(given) if hasattr(section, "from_dict") else section(**given)
    return kind(**values)


def flattened(values: Mapping[str, Any], known: Mapping[str, Any], source: str, prefix: str = "") -> Flat:
    """Return the values of a file by their dotted names, checked.

    Raises `InputError` naming the first wrong one.
    """
    sections = {name.rpartition(".")[0] for name in known}
    flat: Flat = {}
    for key, value in values.items():
        name = prefix + key
        if name in sections:
            if not isinstance(value, dict) or not value:
                raise InputError(
                    f"{source}: {name} ({_shown(value)}) is a section; write its keys below it, indented, such as "
                    f"{next(other for other in known if other.startswith(f'{name}.')).rpartition('.')[2]}"
                )
            found = flattened(value, known, source, f"{name}.")
        else:
            refuse_unknown(name, known, source)
            found = {name: checked(value, known[name], name, source)}
        if twice := found.keys() & flat.keys():
            raise InputError(f"{source}: {min(twice)} is given twice; leave one out")
        flat |= found
    return flat


def refuse_unknown(name: str, known: Iterable[str], source: str) -> None:
    """Raise `InputError`, which names the nearest key or section, unless `name` is known."""
    names = list(known)
    if name in names:
        return
    if below := next((other for other in names if other.startswith(f"{name}.")), None):
        raise InputError(f"{source}: {name} is a section; name one of its keys, such as {below}")
    key = name.rpartition(".")[2]
    if key in OTHER_NAMES:
        raise InputError(f"{source}: {name} is unknown; here it is {OTHER_NAMES[key]}")
    if within := [other for other in names if other.startswith(f"{name}.")]:
        raise InputError(f"{source}: {name} is unknown as a key, for it is a section; name a key of it, as {within[0]}")
    by_key = {other.rpartition(".")[2]: other for other in reversed(names)}
    all_names = [*names, *{section for other in names if (section := other.rpartition(".")[0])}]
    near = by_key.get(key) or next(iter(get_close_matches(name, all_names, n=1)), None)
    near = near or next((by_key[other] for other in get_close_matches(key, by_key, n=1)), None)
    remedy = f"did you mean {near}?" if near else "leave it out; docs/reference/knobs.md lists all"
    raise InputError(f"{source}: {name} is unknown; {remedy}")


def checked(value: Any, annotation: Any, name: str, source: str) -> Any:
    """Return the value as the field holds it; raises `InputError` if it has another type or is out of range."""
    bounds = None
    if get_origin(annotation) is Annotated:
        annotation, bounds = get_args(annotation)[:2]
    where = f"{source}: {name} ({_shown(value)})"
    if get_origin(annotation) is tuple:
        if not isinstance(value, list):
            raise InputError(f"{where} must be a list; write [{'' if value is None else _shown(value).strip(chr(39))}]")
        return tuple(checked(item, get_args(annotation)[0], name, source) for item in value)
    if get_origin(annotation) is Literal:
        choices = [str(choice) for choice in get_args(annotation)]
        if value not in get_args(annotation) or isinstance(value, bool):
            near = get_close_matches(str(value), choices, n=1)
            hint = f"did you mean {near[0]}?" if near else _quoting(value)
            if (ours := OTHER_VALUES.get(str(value))) in choices:
                hint = f"here it is {ours}"
            allowed = ", ".join(choice or "''" for choice in choices)
            raise InputError(f"{where} must be one of {allowed}; {hint}")
        return value
    if not fits(value, annotation):
        raise InputError(f"{where} must be {in_words(annotation)}; {_remedy(value, annotation)}")
    if isinstance(bounds, Within) and not bounds.hold(value):
        raise InputError(f"{where} must be {in_words(annotation)} {bounds}; change it")
    return float(value) if annotation is float else value


def as_given(text: str, annotation: Any, source: str) -> Any:
    """Return the value that a text of a command line means: YAML, but that numbers may be written as 1e-4, and that a
    text is what it is (`no`, a path with a `#`) unless it is in quotes."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    is_text = annotation is str or get_origin(annotation) is Literal
    if is_text and text.strip()[:1] not in ("'", '"'):
        return text.strip()
    value = parsed(text, source)
    return float(value) if annotation is float and _is_number(value) else value


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]}…"


def _remedy(value: Any, annotation: Any) -> str:
    if annotation is float and _is_number(value):
        return f"YAML 1.1 reads {value} as a text; write {_with_dot(value)}"
    if annotation is int and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    if annotation in (int, float, bool) and isinstance(value, str) and re.fullmatch(r"-?\d+|true|false", value):
        return "write it without quotes"
    return _quoting(value) if annotation is str else "change it"


def _quoting(value: Any) -> str:
    """Return a remedy for a word that YAML 1.1 took for a boolean, a number or nothing."""
    if isinstance(value, bool):
        return "YAML 1.1 takes yes, no, on and off for true and false; put the word into quotes"
    return "change it" if isinstance(value, (str, list, dict)) else "put it into quotes"


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value)) and "_" not in value
    except ValueError:
        return False


def _with_dot(number: str) -> str:
    """Return a number as YAML 1.1 reads numbers: 1e-5 is 1.0e-5 there, and an exponent has a sign."""
    digits, _, exponent = number.strip().lower().partition("e")
    digits = digits if "." in digits else f"{digits}.0"
    return f"{digits}e{exponent if exponent[:1] in '+-' else f'+{exponent}'}" if exponent else digits
