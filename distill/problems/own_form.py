"""A row in our own form, checked and made a problem: `question`, `answer`, and optionally the other fields of one.

Other fields are `history` (what was said before: messages of `role` and `content`), `family`, `split`, and `metadata`,
whose `tests` make it a code problem (`distill.verification.code.unit_tests`). A null stands for an absent field, as
`datasets` writes it. An answer that is a number or a boolean is its text (`True`), a list or an object its JSON text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, Literal

from distill.problems.conversations import from_messages, last_answer
from distill.problems.files import parse_json
from distill.problems.splits import SPLIT_WORDS, split_named
from distill.verification.code.unit_tests import TESTS, check_tests
from toolkit.errors import InputError
from toolkit.records import Problem, Split

OWN_COLUMNS = ("id", "question", "answer", "family", "history", "metadata", "split")


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How a user's problems are read."""

    question_field: str = ""
    answer_field: str = ""
    """Columns to take, inner ones with a dot (`reward.truth`); empty for those of the form that is recognized."""
    conflicts: Literal["refuse", "leave-out"] = "refuse"
    """What becomes of a question that stands there with answers that differ."""


def named_columns(values: Mapping[str, Any], reading: ReadingOptions, where: str) -> dict[str, Any]:
    """Our own form of a row whose columns the user named. A column may hold a text or a conversation."""
    own = {key: values[key] for key in OWN_COLUMNS if key in values}
    question = _column(values, reading.question_field or "question", where, "--question-field")
    answer = _column(values, reading.answer_field or "answer", where, "--answer-field")
    if isinstance(question, list):
        own |= from_messages([*question, {"role": "assistant", "content": "?"}])
    else:
        own["question"] = question
    messages = isinstance(answer, list) and answer and isinstance(answer[0], dict) and "role" in answer[0]
    own["answer"] = last_answer(answer) if messages else answer
    return own


def _column(values: Mapping[str, Any], name: str, where: str, option: str) -> Any:
    value: Any = values
    if name in values:
        return values[name]
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            nearest = get_close_matches(name, list(values), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise InputError(f"{option} ({name}) must be one of the columns of {where}: {', '.join(values)}{hint}")
        value = value[part]
    return value


def problem_of(own: Mapping[str, Any], part_split: Split | None, where: str) -> Problem:
    """The problem of a row in our own form. Raises `InputError` naming the row and the field that is wrong."""
    texts = {}
    for key in ("question", "answer"):
        text = _text_of(own.get(key), of_question=key == "question")
        if text is None or not text.strip():
            raise InputError(
                f"{where} is no problem: its {key!r} ({own.get(key)!r:.200}) must be a text that is not empty"
            )
        texts[key] = text
    family = "user" if own.get("family") in (None, "") else own["family"]
    if not isinstance(family, str):
        raise InputError(f"{where} is no problem: its 'family' ({family!r:.200}) must be a text")
    metadata = _metadata(own.get("metadata"), where)
    if TESTS in own and check_tests(own[TESTS]) is None:
        raise InputError(
            f"{where} is no problem: its 'tests' must stand in its 'metadata', where code problems have them"
        )
    try:
        history = _without_nulls(own.get("history") or [])
        split = _split(own.get("split"), part_split)
        return Problem.create(**texts, family=family, metadata=metadata, history=history, split=split)
    except InputError as error:
        raise InputError(f"{where} is no problem: its {error}") from error


def _text_of(value: Any, *, of_question: bool) -> str | None:
    """The text of a value; None where it has none."""
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
        raise InputError(f"{where} is no problem: its 'metadata' ({value!r:.200}) must be an object")
    metadata = {key: item for key, item in value.items() if item is not None}
    if TESTS in metadata:
        metadata[TESTS] = _tests(metadata[TESTS])
        if wrong := check_tests(metadata[TESTS]):
            raise InputError(f"{where} is no problem: its metadata's 'tests' {wrong}")
    texts: dict[str, Any] = json.loads(json.dumps(metadata, default=str))  # a date of a parquet file is its text
    return texts


def _tests(tests: Any) -> Any:
    """Tests without the keys that `datasets` adds to each, null, because another test has them; a call may return
    null."""
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
    """The split that a row says, or else its part. A part's split is the data set's: what a row says must not
    differ."""
    own = split_named(named) if isinstance(named, str) else None
    if part_split is not None:
        if own not in (None, part_split):
            raise InputError(
                f"split ({named}) must be that of the part in which it stands ({part_split}); move the row"
            )
        return part_split
    if named is not None and own is None:
        raise InputError(f"split ({named!r}) must be one of {', '.join(SPLIT_WORDS)}, or left out")
    return own
