"""Which JSON schemas are followed to the letter; any other is refused by the name of its keyword, before a token is
drawn.

llguidance passes over keywords that it does not know, and fails in mid-answer at some that it half knows
(`patternProperties`), so the keywords are counted here that tests have found to hold.
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
"""Keywords that say nothing of what is valid."""
KNOWN = frozenset((*BY_NAME, *IN_LISTS, *SINGLE, *PLAIN, *ANNOTATIONS))


def check_keywords(schema: Any) -> None:
    """Raises `InputError` for the first keyword that is not followed."""
    waiting = [("#", schema)]
    while waiting:
        place, part = waiting.pop()
        if not isinstance(part, dict):
            continue  # true or false, or what llguidance refuses
        for name in part:
            if name not in KNOWN:
                raise InputError(
                    f"the JSON schema's {ascii(name)[1:-1]} (at {ascii(place)[1:-1]}) is not supported; leave it out"
                )
        if "additionalItems" in part and not isinstance(part.get("items"), list):
            raise InputError(
                f"the JSON schema's additionalItems (at {ascii(place)[1:-1]}) must "
                "stand beside a list of items; leave it out"
            )
        waiting += [(f"{place}/{path}", inner) for path, inner in _parts(part)]


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas inside one, each with its path."""
    for keyword, value in schema.items():
        if keyword in BY_NAME and isinstance(value, dict):
            yield from ((f"{keyword}/{name}", inner) for name, inner in value.items())
        elif keyword in (*IN_LISTS, *SINGLE) and isinstance(value, list):
            yield from ((f"{keyword}/{i}", inner) for i, inner in enumerate(value))
        elif keyword in SINGLE:
            yield keyword, value
