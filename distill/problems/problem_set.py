"""From a user's rows to problems: nothing is merged, left out or ignored without a word.

rows ── of a known form? ── an answer to compare? ── a question of its own? ──> problems, each in its split
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distill.problems.conversations import LeftOut
from distill.problems.files import FilePart, FileRow
from distill.problems.merging import MergedProblems, ProblemRow, merge
from distill.problems.own_form import OWN_COLUMNS, ReadingOptions, named_columns, problem_of
from distill.problems.published import FORMS, form_of
from distill.problems.sources import parts_of
from distill.problems.splits import SPLIT_WORDS, split_named, split_of
from toolkit.errors import InputError
from toolkit.records import SPLITS, Problem, Split
from toolkit.terminal import counted, say

_MISSING_WORDS = ("nan", "none", "null", "n/a", "na", "<na>", "undefined")
"""Texts that programs write where an answer is missing."""


@dataclass(kw_only=True)
class _RowCounts:
    """What was met in the rows, for the summary."""

    rows: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    missing: dict[str, str] = field(default_factory=dict)
    """Place → answer of rows whose answer looks like a missing one."""


def read_problems(place: Path, reading: ReadingOptions | None = None) -> list[Problem]:
    """Read a user's problems, and say on stderr how many, of which form and split, and what was merged or left out.

    `place` is a file (JSONL, JSON, CSV, TSV, parquet), a folder of them, a folder that `save_to_disk` wrote, or the id
    of a data set on the Hugging Face hub. The forms of rows are those of `distill.problems.published` and our own
    (`distill.problems.own_form`). Raises `InputError` naming the line or row that is none, and where none is left.
    """
    reading = reading or ReadingOptions()
    parts, notes = parts_of(place)
    splits, said = _splits_of(parts, place)
    seen = _RowCounts()
    found = [one for part in parts for one in _found(part, splits.get(part.name), reading, seen)]
    merged = merge(found, leave_conflicts_out=reading.conflicts == "leave-out")
    lines = [*notes, *said, _summary(place, seen, merged), *_remarks(seen, merged)]
    for line in lines:
        say(f"problems: {line}")
    if not merged.problems:
        raise InputError(f"{place} must hold at least one problem; it holds none{_reasons(seen, merged)}")
    return merged.problems


def _splits_of(parts: Sequence[FilePart], place: Path) -> tuple[dict[str, Split], list[str]]:
    """The split that each part's name says, and what must be said about names that say none."""
    names = list(dict.fromkeys(part.name for part in parts))
    splits = {name: split for name in names if (split := split_named(name))}
    if not splits:
        said = f"the parts of {place} ({', '.join(names)}) name no splits; the hash of each question decides"
        return {}, [said] if any(names) else []
    if strange := [name for name in names if name not in splits]:
        raise InputError(
            f"{place} must name each part after a split, as it does {', '.join(map(repr, splits))}, and does not "
            f"{', '.join(map(repr, strange))}; known words are {', '.join(SPLIT_WORDS)}"
        )
    if set(splits.values()) == {"train"}:
        return {}, [f"{place} has a train split alone; the hash of each question keeps a tenth of it for testing"]
    return splits, []


def _found(part: FilePart, split: Split | None, reading: ReadingOptions, seen: _RowCounts) -> Iterator[ProblemRow]:
    for row in part.rows:
        seen.rows += 1
        try:
            form, used, own = _own_values(row, reading)
            problem = problem_of(own, split, row.where)
        except LeftOut as reason:
            seen.left_out[str(reason)] += 1
            continue
        seen.forms[form] += 1
        given = str(own.get("id") or "")
        if not given.startswith(problem.id):
            used = tuple(column for column in used if column != "id")
        seen.unused.update(column for column, value in row.values.items() if value is not None and column not in used)
        if problem.answer.strip().lower() in _MISSING_WORDS:
            seen.missing[row.where] = problem.answer
        yield ProblemRow(problem=problem, where=row.where, id=given)


def _own_values(row: FileRow, reading: ReadingOptions) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """The name of a row's form, the columns that it uses, and the row in our own form."""
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
            return "question and answer", OWN_COLUMNS, plain  # a field is missing, which its check names
        raise InputError(
            f"{row.where} is no problem: its columns with a value ({', '.join(values)}) must be those of a known form "
            f"({', '.join(dict.fromkeys(form.name for form in FORMS))}); name "
            "them with --question-field and --answer-field"
        )
    try:
        own = form.read(plain)
    except InputError as error:
        raise InputError(f"{row.where} is no problem: its {error}") from error
    return form.name, tuple(lower.get(column, column) for column in form.uses), own


def _refuse_misspelt(row: FileRow) -> None:
    given = {column.lower() for column, value in row.values.items() if value is not None}
    for column in row.values:
        nearest = get_close_matches(column, ("question", "answer"), n=1)
        if nearest and column.lower() not in OWN_COLUMNS and nearest[0] not in given:
            raise InputError(
                f"{row.where} is no problem: it has {column!r} and no {nearest[0]!r}; rename it, or name it with "
                f"--{nearest[0]}-field"
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
        remarks.append(f"differing from another one in case or white space alone, and kept apart: {merged.variants}")
    if seen.unused:
        remarks.append("not used: " + ", ".join(_unused(column, count) for column, count in seen.unused.items()))
    if seen.missing:
        where, answer = next(iter(seen.missing.items()))
        remarks.append(f"answers that look like missing ones: {len(seen.missing)}, such as {answer!r} in {where}")
    return remarks


def _unused(column: str, count: int) -> str:
    nearest = get_close_matches(column, OWN_COLUMNS, n=1, cutoff=0.75)
    hint = f"; did you mean {nearest[0]!r}?" if nearest and nearest[0] != column else ""
    return f"{column!r} (rows: {count}{hint})"
