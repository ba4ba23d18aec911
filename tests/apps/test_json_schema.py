"""A schema is enforced completely, or refused by a keyword's name before the first token; none fails later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.server.grammar import Grammar, Vocabulary
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat

LINK = {"type": "object", "properties": {"next": {"$ref": "#/$defs/link"}}, "required": ["next"]}
REFUSED: dict[str, tuple[Any, str]] = {
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {}}}, r"patternProperties \(at #\)"),
    "inside": ({"anyOf": [{"properties": {"a": {"not": {}}}}]}, r"not \(at #/anyOf/0/properties/a\)"),
    "definitions": ({"$defs": {"a": {"if": {}}}}, r"if \(at #/\$defs/a\)"),
    "items": ({"type": "array", "items": {"uniqueItems": True}}, r"uniqueItems \(at #/items\)"),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "propertyNames": ({"propertyNames": {}}, "propertyNames"),
    "nullable": ({"type": "string", "nullable": True}, "nullable"),
    "contentEncoding": ({"type": "string", "contentEncoding": "base64"}, "contentEncoding"),
    "the library's own switch": ({"type": "string", "x-guidance": {"lenient": True}}, "x-guidance"),
    "a keyword that nobody knows": ({"type": "string", "maxLenght": 5}, "maxLenght"),
    "what an older draft means": (
        {"type": "array", "prefixItems": [{"const": 1}], "additionalItems": False},
        r"additionalItems \(at #\)",
    ),
    "oneOf": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
    "an unknown format": ({"type": "string", "format": "phone"}, "phone"),
    "an unknown type": ({"type": "what"}, "what"),
    "no value": ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum"),
    "an endless value": ({"$ref": "#/$defs/link", "$defs": {"link": LINK}}, "cannot be followed"),
    "a loop": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "allows no next token"),
    "another file": ({"$ref": "http://example.invalid/x.json"}, "example.invalid"),
    "a pattern of too many states": (
        {"type": "string", "pattern": "^(a|aa)*(b|bb){1000}.{500}c.{500}$"},
        "too many expressions",
    ),
    "a pattern that looks ahead": ({"type": "string", "pattern": "^(?!a)"}, "look-ahead"),
    "half a surrogate pair": ({"const": "\ud800"}, "cannot be followed"),
}
FOLLOWED: dict[str, Any] = {
    "names that are keywords": {"type": "object", "properties": {"not": {"type": "integer"}}, "required": ["not"]},
    "values that are no schemas": {"enum": [{"not": 1}], "default": {"not": 1}, "examples": [{"if": 1}]},
    "true": {"type": "object", "properties": {"a": True}, "required": ["a"]},
    "a list": {"type": "array", "prefixItems": [{"type": "integer"}], "items": False, "minItems": 1},
    "a tree": {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
    },
    "a pattern": {"type": "string", "pattern": "^[a-z]{3}$", "title": "Three"},
    "a format": {"type": "string", "format": "date"},
}


@pytest.fixture(scope="module")
def vocabulary(tiny_student: Path) -> Vocabulary:
    chat_format = ChatFormat.from_folder(tiny_student)
    return Vocabulary(chat_format.tokenizer, 320, chat_format.stop_ids)


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_is_half_supported_is_refused_by_name(vocabulary: Vocabulary, name: str) -> None:
    schema, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        Grammar.of_schema(vocabulary, json.dumps(schema))
    assert str(caught.value).isprintable() and "<state>" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_schema_that_is_followed_leads_to_a_value_whatever_is_drawn(
    vocabulary: Vocabulary, tiny_student: Path, name: str
) -> None:
    chat_format = ChatFormat.from_folder(tiny_student)
    stop = min(chat_format.stop_ids)
    grammar = Grammar.of_schema(vocabulary, json.dumps(FOLLOWED[name]))
    for seed in range(4):
        generator, drawn, answer = np.random.default_rng(seed), list[int](), grammar.copy()
        while not drawn or drawn[-1] not in chat_format.stop_ids:
            logits_V = generator.random(320, dtype=np.float32)
            logits_V[stop] += len(drawn) / 50  # an answer comes to its end
            drawn.append(int(answer.masked(logits_V).argmax()))
            if drawn[-1] not in chat_format.stop_ids:
                answer.take(drawn[-1])
            assert len(drawn) < 2000
        json.loads(chat_format.decode(drawn))
