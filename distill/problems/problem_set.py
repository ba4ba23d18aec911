"""Turns a user's rows into problems, and reports whatever is merged, left out or ignored.

rows ── known form? ── comparable answer? ── new question? ──> problems, each in its split
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distill.problems.conversations import LeftOut
from distill.problems.files import FilePart, FileRow
from distill.problems.merging import MergedProblems, ProblemRow, merge
from distill.problems.own_form import NEEDED, OWN_COLUMNS, LacksText, ReadingOptions, named_columns, problem_of
from distill.problems.published import FORMS, form_of
from distill.problems.sources import parts_of
from distill.problems.splits import SPLIT_WORDS, split_named, split_of
from toolkit.errors import InputError
from toolkit.records import SPLITS, Problem, Split
from toolkit.terminal import counted, listed, say

_MISSING_WORDS = ("nan", "none", "null", "n/a", "na", "<na>", "undefined")
"""Texts that programs write for a missing answer."""


@dataclass(kw_only=True)
class _RowCounts:
    """Counts of rows by form, fate and unused column, for the summary."""

    rows: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)
    """Answers that look like missing ones, by the place of their row."""
    lacking: list[LacksText] = field(default_factory=list)
    """Rows without a question or an answer, which are refused together."""


def read_problems(place: Path, reading: ReadingOptions | None = None) -> list[Problem]:
    """Read a user's problems, and report on stderr how many there are, their form and split, and what was left out.

    `place` is a file (JSONL, JSON, CSV, TSV, parquet), a folder of them, a folder that `save_to_disk` wrote, or the id
    of a data set on the Hugging Face hub. Rows have a form of `distill.problems.published` or our own
    (`distill.problems.own_form`). Raises `InputError` naming a line or row that is not a problem, or if none is left.
    """
    reading = reading or ReadingOptions()
    parts, notes = parts_of(place)
    splits, said = splits_of(parts, place)
    seen = _RowCounts()
    found = [one for part in parts for one in _found(part, splits.get(part.name), reading, seen)]
    if seen.lacking:
        raise _refusal(seen.lacking)
    merged = merge(found, leave_conflicts_out=reading.conflicts == "leave-out")
    lines = [*notes, *said, _summary(place, seen, merged), *_remarks(seen, merged)]
    for line in lines:
        say(f"problems: {line}")
    if not merged.problems:
        raise InputError(f"{place} holds no problem{_reasons(seen, merged)}; each needs a question and an answer")
    return merged.problems


def splits_of(parts: Sequence[FilePart], place: Path) -> tuple[dict[str, Split], list[str]]:
    """Return the split that each part's name means, and remarks about names that mean none."""
    names = list(dict.fromkeys(part.name for part in parts))
    splits = {name: split for name in names if (split := split_named(name))}
    if not splits:
        said = f"no part of {place} ({', '.join(names)}) is named after a split; the hash of each question decides"
        return {}, [said] if any(names) else []
    if strange := [name for name in names if name not in splits]:
        raise InputError(
            f"{place} has parts named after splits ({', '.join(map(repr, splits))}) and others "
            f"({', '.join(map(repr, strange))}); name all after splits ({', '.join(SPLIT_WORDS)})"
        )
    if set(splits.values()) == {"train"}:
        return {}, [f"{place} has only a train split; the hash of each question keeps a tenth of it for testing"]
    return splits, []


def _found(part: FilePart, split: Split | None, reading: ReadingOptions, seen: _RowCounts) -> Iterator[ProblemRow]:
    names = {"question": reading.question_field or "question", "answer": reading.answer_field or "answer"}
    for row in part.rows:
        seen.rows += 1
        try:
            if is_without_reference(row.values):
                raise LeftOut("without a reference")
            form, used, own = _own_values(row, reading)
            problem = problem_of(own, split, row.where, names)
        except LeftOut as reason:
            seen.left_out[str(reason)] += 1
            continue
        except LacksText as refused:
            seen.lacking.append(refused)
            continue
        seen.forms[form] += 1
        given = str(own.get("id") or "")
        if not given.startswith(problem.id):
            used = tuple(column for column in used if column != "id")
        seen.unused.update(column for column, value in row.values.items() if value is not None and column not in used)
        if problem.answer.strip().lower() in _MISSING_WORDS:
            seen.missing[row.where] = problem.answer
        yield ProblemRow(problem=problem, where=row.where, id=given)


def _refusal(lacking: Sequence[LacksText]) -> InputError:
    """Name the first row without a question or an answer, and how many such rows there are."""
    first, *others = lacking
    if not others:
        return first
    places = listed([row.where for row in lacking])
    return InputError(
        f"{first.where} is not a problem: {first.fault}; {len(lacking)} rows lack a question or an answer ({places}); "
        f"{NEEDED}"
    )


def is_without_reference(values: Mapping[str, Any]) -> bool:
    """Return whether a row is a problem of a run whose traces were published without a reference.

    Nobody else writes all of these fields; a user's row with an empty answer lacks something.
    """
    return values.get("answer") == "" and {"id", "family", "metadata", "history"} <= values.keys()


def _own_values(row: FileRow, reading: ReadingOptions) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """Return the name of a row's form, the columns that the form uses, and the row in our own form."""
    values = {column: value for column, value in row.values.items() if value is not None}
    if reading.question_field or reading.answer_field:
        named = (reading.question_field or "question", reading.answer_field or "answer")
        used = (*OWN_COLUMNS, *(name if name in values else name.split(".")[0] for name in named))
        return f"{named[0]} and {named[1]}", used, named_columns(row.values, reading, row.where)
    lower = {column.lower(): column for column in values}
    if len(lower) < len(values):
        lower = {column: column for column in values}
    plain = {name: values[column] for name, column in lower.items()}
    form = form_of(plain)
    if form is None:
        _refuse_misspelt(row)
        columns = {column.lower() for column in row.values}
        if {"question", "answer"} <= columns or (columns & {"question", "answer"} and columns <= {*OWN_COLUMNS}):
            every = {column.lower(): value for column, value in row.values.items()}
            return "question and answer", OWN_COLUMNS, every  # the check of the fields names what is missing or empty
        raise InputError(
            f"{row.where} has no known form: its columns with a value are {', '.join(values)}; known forms are "
            f"{', '.join(dict.fromkeys(form.name for form in FORMS))}; name the columns with --question-field and "
            "--answer-field"
        )
    try:
        own = form.read(plain)
    except InputError as error:
        raise InputError(f"{row.where} is not a problem: its {error}") from error
    return form.name, tuple(lower.get(column, column) for column in form.uses), own


def _refuse_misspelt(row: FileRow) -> None:
    given = {column.lower() for column, value in row.values.items() if value is not None}
    meant = {}
    for column in row.values:
        nearest = get_close_matches(column, ("question", "answer"), n=1)
        if nearest and column.lower() not in OWN_COLUMNS and nearest[0] not in given:
            meant[nearest[0]] = column
    if meant:
        raise InputError(
            f"{row.where} is not a problem: it has "
            + ", and ".join(f"{column!r} but no {name!r}" for name, column in meant.items())
            + "; rename the columns, or name them with "
            + " and ".join(f"--{name}-field" for name in meant)
        )


def _summary(place: Path, seen: _RowCounts, merged: MergedProblems) -> str:
    problems = merged.problems
    forms = ", ".join(f"{name} ({count})" if len(seen.forms) > 1 else name for name, count in seen.forms.items())
    counts = Counter(map(split_of, problems))
    own = sum(problem.split is not None for problem in problems)
    whose = "by the data set's own splits" if own == len(problems) else "by the hash of the question"
    if 0 < own < len(problems):
        whose = f"{own} by the data set's own splits, the others by the hash of the question"
    splits = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
    text = f"{len(problems)} of {counted(seen.rows, 'row')} in {place}"
    if problems:
        text += f", read as {forms}; {splits} ({whose})"
    return text + _reasons(seen, merged)


def _reasons(seen: _RowCounts, merged: MergedProblems) -> str:
    text = ""
    for what, counts in (("merged", merged.merged), ("left out", seen.left_out + merged.left_out)):
        if counts:
            text += f"; {what}: " + ", ".join(f"{reason} ({count})" for reason, count in counts.items())
    return text


def _remarks(seen: _RowCounts, merged: MergedProblems) -> list[str]:
    remarks = []
    if merged.variants:
        remarks.append(f"kept although they differ from another one only in case or white space: {merged.variants}")
    if seen.unused:
        remarks.append("unused columns: " + ", ".join(_unused(column, count) for column, count in seen.unused.items()))
    if seen.missing:
        where, answer = next(iter(seen.missing.items()))
        remarks.append(f"answers that look missing: {len(seen.missing)}, for example {answer!r} in {where}")
    return remarks


def _unused(column: str, count: int) -> str:
    nearest = get_close_matches(column, OWN_COLUMNS, n=1, cutoff=0.75)
    hint = f"; did you mean {nearest[0]!r}?" if nearest and nearest[0] != column else ""
    return f"{column!r} (rows: {count}{hint})"


def problems_digest(problems: Sequence[Problem]) -> str:
    """Return a digest of a test set that does not depend on the order of its problems."""
    lines = sorted(json.dumps(problem.to_dict(), sort_keys=True) for problem in problems)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
