"""Turns a problem, one of its traces and the trace's verdict into a row of a data set, and a row back into them.

Every field of problem and trace stands in a column of its own and comes back as it was, to the byte. Metadata, whose
keys differ from problem to problem, are one JSON text. The columns are described once, for the schema of the parquet
files and for the data set's card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.problems.splits import split_of
from distill.verification.code.unit_tests import TESTS, check_tests
from toolkit.errors import InputError
from toolkit.formats.message_fields import whole
from toolkit.records import Problem, Trace, Verdict


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its type in the words of `datasets`, and what a reader of the card wants to know."""

    name: str
    dtype: str
    """`string`, `int64`, `bool`, or `messages` for a list of messages."""
    meaning: str


COLUMNS = tuple(
    Column(name=name, dtype=dtype, meaning=meaning)
    for name, dtype, meaning in (
        ("problem_id", "string", "hash of the question and of what was said before it"),
        ("question", "string", "the question, as the teacher was asked"),
        ("history", "messages", "what was said before the question: a system prompt, earlier turns; mostly empty"),
        ("reference_answer", "string", "the answer by which the trace was verified; null if there is none"),
        ("reasoning", "string", "the teacher's thought"),
        ("answer", "string", "what the teacher answered after its thought"),
        ("correct", "bool", "whether the answer means the reference; null if nothing could be compared"),
        ("verifier", "string", "what compared the two, and its version"),
        ("finish_reason", "string", "why the turn ended; only one that ended with `stop` is whole"),
        ("closed", "bool", "whether the thought was closed"),
        ("prompt_tokens", "int64", "as the teacher's server counted; null if it did not"),
        ("reasoning_tokens", "int64", "the same of the thought"),
        ("completion_tokens", "int64", "the same of thought and answer"),
        ("teacher", "string", "name@digest of the model that answered"),
        ("sample", "int64", "number of the answer among those to the same question, from 0"),
        ("split", "string", "train, validation or test"),
        ("split_by", "string", "`data set` if the problem's source has splits, else `hash`, that of the question"),
        ("family", "string", "the problem's kind or source"),
        ("metadata", "string", "further facts of the problem, as JSON"),
        ("request_hash", "string", "hash of all that shaped the answer: teacher, prompt, sampling, seed"),
    )
)
OWN_ROW = ("problem_id", "question", "reasoning", "answer", "finish_reason", "closed", "sample", "teacher", "split_by")
"""Columns by which a row that we exported is known."""
_OF_TRACE = ("reasoning", "answer", "finish_reason", "closed", "sample", "teacher")
_COUNTS = ("prompt_tokens", "reasoning_tokens", "completion_tokens")
BY_DATA_SET, BY_HASH = "data set", "hash"


def row_of(problem: Problem, trace: Trace, verdict: Verdict | None) -> dict[str, Any]:
    """Return the row of a trace; half surrogate pairs, which UTF-8 has not, become U+FFFD."""
    row: dict[str, Any] = {name: getattr(trace, name) for name in (*_OF_TRACE, *_COUNTS, "request_hash")}
    row |= {
        "problem_id": problem.id,
        "question": problem.question,
        "history": [{name: whole(said[name]) for name in ("role", "content")} for said in problem.history],
        "reference_answer": problem.answer or None,
        "correct": None if verdict is None else verdict.correct,
        "verifier": None if verdict is None else f"{verdict.verifier} {verdict.version}",
        "split": split_of(problem),
        "split_by": BY_HASH if problem.split is None else BY_DATA_SET,
        "family": problem.family,
        "metadata": json.dumps(problem.metadata, ensure_ascii=False),
    }
    return {column.name: _whole(row[column.name]) for column in COLUMNS}


def trace_in(row: Mapping[str, Any]) -> Trace:
    """Return the trace of a row; raises `InputError` naming a column whose value it cannot have."""
    if isinstance(row["sample"], int) and not 0 <= row["sample"] < 2**31:
        raise InputError(f"sample ({row['sample']}) must be the number of a sample, from 0")
    values = {name: row[name] for name in _OF_TRACE} | {name: row.get(name) for name in _COUNTS}
    return Trace.from_dict({**values, "problem_id": row["problem_id"], "request_hash": row.get("request_hash") or ""})


def problem_in(row: Mapping[str, Any]) -> Problem:
    """Return the problem of a row; raises `InputError` as `trace_in` does."""
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise InputError(f"question ({row['question']!r:.80}) must be a text that is not empty")
    try:
        metadata = dict(json.loads(row.get("metadata") or "{}"))
    except (ValueError, TypeError) as error:
        raise InputError(f"metadata ({row['metadata']!r:.80}) must be a JSON object: {error}") from error
    if TESTS in metadata and (wrong := check_tests(metadata[TESTS])):
        raise InputError(f"metadata has tests that {wrong}")
    return Problem.from_dict(
        {
            "id": row["problem_id"],
            "family": row.get("family") or "user",
            "question": row["question"],
            "answer": row.get("reference_answer") or "",
            "metadata": metadata,
            "history": row.get("history") or [],
            "split": row.get("split") if row["split_by"] == BY_DATA_SET else None,
        }
    )


def _whole(value: Any) -> Any:
    return whole(value) if isinstance(value, str) else value
