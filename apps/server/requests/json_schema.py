"""Refuses JSON schemas with keywords that are not enforced, before a token is drawn.

llguidance ignores keywords that it does not know, and fails in the middle of an answer on some that it half knows
(`patternProperties`), so this module lists the keywords that tests have found to be enforced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toolkit.errors import InputError

BY_NAME = ("properties", "$defs", "definitions")
"""Keywords whose values are schemas by name."""
IN_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "additionalItems")
"""Keywords whose value is a schema; `items` may be a list of them."""
PLAIN = (
    *("type", "enum", "const", "$ref", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
ANNOTATIONS = (
    *("$schema", "$id", "$anchor", "$comment", "title", "description", "default", "example", "examples"),
    *("deprecated", "readOnly", "writeOnly"),
)
"""Keywords that do not affect what is valid."""
KNOWN = frozenset((*BY_NAME, *IN_LISTS, *SINGLE, *PLAIN, *ANNOTATIONS))


def check_keywords(schema: Any) -> None:
    """Raise `InputError` for the first keyword that is not enforced."""
    waiting = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        if not isinstance(part, dict):
            continue  # true, false, or something that llguidance refuses
        for name in part:
            if name not in KNOWN:
                raise InputError(
                    f"the JSON schema's {ascii(name)[1:-1]} (at {ascii(place)[1:-1]}) is not supported; leave it out"
                )
        if "additionalItems" in part and not isinstance(part.get("items"), list):
            raise InputError(
                f"the JSON schema's additionalItems (at {ascii(place)[1:-1]}) needs a list of items beside it; "
                "leave it out"
            )
        waiting += [(f"{place}/{path}", inner) for path, inner in _parts(part)]


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas inside one, each with its path."""
    for keyword, value in schema.items():
        if keyword in BY_NAME and isinstance(value, dict):
            yield from ((f"{keyword}/{name}", inner) for name, inner in value.items())
        elif keyword in (*IN_LISTS, *SINGLE) and isinstance(value, list):
            yield from ((f"{keyword}/{i}", inner) for i, inner in enumerate(value))
        elif keyword in SINGLE:
            yield keyword, value
