"""Merges the questions of a data set's rows into problems on disk, however many rows there are.

    rows ── add ──> scratch file, one line a row ── merge_into ──> problems.jsonl, one line a problem

In memory a row has 16 bytes and a distinct one a few dozen more. Rows whose questions have the same id, up to case and
white space, are merged together by `distill.problems.merging`, as the rows of a file of problems are.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.problems.merging import ProblemRow, merge
from distill.problems.splits import split_of
from toolkit.records import Problem, number_of, record_line


class ImportedProblems:
    """The problems of the rows that were added."""

    def __init__(self, scratch: Path) -> None:
        self._rows = scratch.open("wb+")
        self._ids, self._starts = array("Q"), array("Q")
        self._seen: set[int] = set()
        self.merged: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.without_reference = 0
        self._exact: np.ndarray = np.empty(0, dtype=np.uint64)
        self._places: np.ndarray = np.empty(0, dtype=np.uint64)

    def __len__(self) -> int:
        """Return how many problems are left after merging."""
        return len(self._exact)

    def add(self, row: ProblemRow) -> None:
        """Take in one row; an exact repetition of an earlier one is only counted."""
        values = vars(row.problem)
        digest = number_of(json.dumps([values, row.id], sort_keys=True))
        if digest in self._seen:
            self.merged["equal to another row"] += 1
            return
        self._seen.add(digest)
        self._ids.append(number_of(row.problem.id))
        self._starts.append(self._rows.tell())
        line = json.dumps({"problem": values, "where": row.where, "id": row.id}, ensure_ascii=False)
        self._rows.write(line.encode(errors="backslashreplace") + b"\n")

    def merge_into(self, path: Path, *, leave_conflicts_out: bool) -> None:
        """Write one problem for each question, in the order of the rows.

        Raises `InputError` naming two rows that answer one question differently, unless conflicts are left out.
        """
        ids, starts = (np.frombuffer(each, dtype=np.uint64) for each in (self._ids, self._starts))
        self._rows.flush()
        exact, places = array("Q"), array("Q")
        with path.open("wb") as file:
            for rows in _groups(ids):
                found = [self._row(int(starts[row])) for row in rows]
                for problem in self._merged(found, leave_conflicts_out=leave_conflicts_out):
                    exact.append(number_of(problem.exact_text))
                    places.append(file.tell())
                    file.write(record_line(problem))
                    self.splits[split_of(problem)] += 1
                    self.without_reference += not problem.answer.strip()
        self._seen.clear()
        order = np.argsort(np.frombuffer(exact, dtype=np.uint64)) if exact else np.empty(0, dtype=np.int64)
        self._exact = np.array(exact, dtype=np.uint64)[order]
        self._places = np.array(places, dtype=np.uint64)[order]

    def find(self, asked: Problem) -> tuple[int, int] | None:
        """Return the number of a question's problem, and where its line is; None if merging left it out."""
        exact = np.uint64(number_of(asked.exact_text))
        number = int(np.searchsorted(self._exact, exact))
        if number == len(self._exact) or self._exact[number] != exact:
            return None
        return number, int(self._places[number])

    def close(self) -> None:
        self._rows.close()

    def _row(self, start: int) -> ProblemRow:
        self._rows.seek(start)
        values: dict[str, Any] = json.loads(self._rows.readline())
        return ProblemRow(problem=Problem(**values["problem"]), where=values["where"], id=values["id"])

    def _merged(self, found: list[ProblemRow], *, leave_conflicts_out: bool) -> list[Problem]:
        if len(found) == 1 and found[0].id in ("", found[0].problem.id):
            return [found[0].problem]
        merged = merge(_with_references(found), leave_conflicts_out=leave_conflicts_out)
        self.merged += merged.merged
        self.left_out += merged.left_out
        return merged.problems


def _groups(ids: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each id, in the order of the ids' first rows."""
    if not len(ids):
        return []
    order = np.argsort(ids, kind="stable")
    bounds = np.flatnonzero(np.diff(ids[order])) + 1
    groups = np.split(order, bounds)
    return sorted(groups, key=lambda rows: int(rows[0]))


def _with_references(found: list[ProblemRow]) -> list[ProblemRow]:
    """Give a question without a reference that of an equal question, if one has it."""
    known = {row.problem.exact_text: row.problem.answer for row in reversed(found) if row.problem.answer.strip()}
    return [
        row
        if row.problem.answer.strip()
        else replace(row, problem=replace(row.problem, answer=known.get(row.problem.exact_text, "")))
        for row in found
    ]
