"""Checks a row in our own form (`question`, `answer` and optional fields) and makes it a problem.

Optional fields are `history` (earlier messages with `role` and `content`), `family`, `split`, and `metadata`, whose
`tests` make it a code problem (`distill.verification.code.unit_tests`). A null counts as absent, as `datasets` writes
it. A number or a boolean as answer becomes its text (`True`), a list or an object its JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal

from distill.problems.conversations import from_messages, last_answer
from distill.problems.files import parse_json
from distill.problems.splits import SPLIT_WORDS, split_named
from distill.verification.code.unit_tests import TESTS, check_tests
from toolkit.errors import InputError
from toolkit.records import Problem, Split

ABSENT = object()
"""The value of a column that a row does not have."""
NEEDED = "each needs a question and an answer"
OWN_COLUMNS = ("id", "question", "answer", "family", "history", "metadata", "split")


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """Options for reading a user's problems."""

    question_field: str = ""
    answer_field: str = ""
    """The columns to read, inner ones with a dot (`reward.truth`); empty for those of the recognized form."""
    conflicts: Literal["refuse", "leave-out"] = "refuse"
    """What to do with a question whose rows give different answers."""


class LacksText(InputError):
    """A row has no question or no answer."""

    def __init__(self, where: str, fault: str) -> None:
        super().__init__(f"{where} is not a problem: {fault}; {NEEDED}")
        self.where, self.fault = where, fault


def named_columns(values: Mapping[str, Any], reading: ReadingOptions, where: str) -> dict[str, Any]:
    """Bring a row whose columns the user named into our own form. A column may hold a text or a conversation."""
    own = {key: values[key] for key in OWN_COLUMNS if key in values}
    names = {
        "--question-field": reading.question_field or "question",
        "--answer-field": reading.answer_field or "answer",
    }
    found = {option: _column(values, name) for option, name in names.items()}
    if missing := [option for option, value in found.items() if value is ABSENT]:
        near = [nearest[0] for option in missing if (nearest := get_close_matches(names[option], list(values), n=1))]
        lacks = " and ".join(f"no column {names[option]!r}" for option in missing)
        hint = f"; did you mean {' and '.join(map(repr, near))}?" if near else ""
        raise InputError(f"{' and '.join(missing)}: {where} has {lacks}; it has {', '.join(values)}{hint}")
    question, answer = found.values()
    if isinstance(question, list):
        own |= from_messages([*question, {"role": "assistant", "content": "?"}])
    else:
        own["question"] = question
    messages = isinstance(answer, list) and answer and isinstance(answer[0], dict) and "role" in answer[0]
    own["answer"] = last_answer(answer) if messages else answer
    return own


def _column(values: Mapping[str, Any], name: str) -> Any:
    """Return a column's value; `ABSENT` if there is no such column."""
    value: Any = values
    if name in values:
        return values[name]
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]
    return value


def problem_of(
    own: Mapping[str, Any], part_split: Split | None, where: str, names: Mapping[str, str] = MappingProxyType({})
) -> Problem:
    """Make a problem of a row in our own form; raises `InputError` naming the row and the wrong field, `LacksText` if
    it has no question or no answer.

    `names`: the columns of its question and answer, where they have other names.
    """
    texts = {key: _text_of(own.get(key), of_question=key == "question") or "" for key in ("question", "answer")}
    faults = [_fault(key, own, names.get(key, key)) for key, text in texts.items() if not text.strip()]
    if faults:
        raise LacksText(where, " and ".join(faults))
    family = "user" if own.get("family") in (None, "") else own["family"]
    if not isinstance(family, str):
        raise InputError(f"{where} is not a problem: its 'family' ({family!r:.200}) must be a text")
    metadata = _metadata(own.get("metadata"), where)
    if TESTS in own and check_tests(own[TESTS]) is None:
        raise InputError(f"{where} is not a problem: its 'tests' belong in its 'metadata'")
    try:
        history = _without_nulls(own.get("history") or [])
        split = _split(own.get("split"), part_split)
        return Problem.create(**texts, family=family, metadata=metadata, history=history, split=split)
    except InputError as error:
        raise InputError(f"{where} is not a problem: its {error}") from error


def _fault(key: str, own: Mapping[str, Any], column: str) -> str:
    """Say what is wrong with a row's question or answer, which is read from this column."""
    if key not in own:
        return f"it has no {key!r}"
    value = own[key]
    if value is None or (isinstance(value, str) and not value.strip()):
        return f"its {column!r} is empty"
    return f"its {column!r} ({value!r:.200}) must be a non-empty text"


def _text_of(value: Any, *, of_question: bool) -> str | None:
    """Return the text of a value; None if it has none."""
    if isinstance(value, str):
        return value
    if of_question and (isinstance(value, bool) or not isinstance(value, (int, float))):
        return None
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str) if value else None
    if isinstance(value, (bool, int, date, Decimal)) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return None


def _metadata(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = parse_json(value, f"{where}: its 'metadata'")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a problem: its 'metadata' ({value!r:.200}) must be an object")
    metadata = {key: item for key, item in value.items() if item is not None}
    if TESTS in metadata:
        metadata[TESTS] = _tests(metadata[TESTS])
        if wrong := check_tests(metadata[TESTS]):
            raise InputError(f"{where} is not a problem: the 'tests' of its metadata {wrong}")
    texts: dict[str, Any] = json.loads(json.dumps(metadata, default=str))  # a date of a parquet file becomes its text
    return texts


def _tests(tests: Any) -> Any:
    """Drop the null keys that `datasets` adds to a test because another test has them; a call may return null."""
    if not isinstance(tests, list):
        return tests
    return [
        {key: value for key, value in test.items() if value is not None or (key == "returns" and test.get("call"))}
        if isinstance(test, dict)
        else test
        for test in tests
    ]


def _without_nulls(history: Any) -> Any:
    if not isinstance(history, list):
        return history
    return [
        {key: value for key, value in said.items() if value is not None} if isinstance(said, dict) else said
        for said in history
    ]


def _split(named: Any, part_split: Split | None) -> Split | None:
    """Return the split that a row names, or else its part's; a row must not contradict its part."""
    own = split_named(named) if isinstance(named, str) else None
    if part_split is not None:
        if own not in (None, part_split):
            raise InputError(f"split ({named}) contradicts the row's part of the data set ({part_split}); move the row")
        return part_split
    if named is not None and own is None:
        raise InputError(f"split ({named!r}) is unknown; use one of {', '.join(SPLIT_WORDS)}, or leave it out")
    return own
