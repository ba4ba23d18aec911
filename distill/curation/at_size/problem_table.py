"""Keeps problems on disk, where every process finds one by its id without holding all of them.

problems.jsonl    one line per problem, as in a run folder
problems.npz      ids: numbers of ids, sorted · rows: of these ids · by row, starts: of the lines · tests: whether of
                  the test split · programs: whether the answer is a program
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from distill.problems.splits import split_of
from distill.verification.verdicts import check_gradable
from toolkit.figures.ledger import PROBLEMS
from toolkit.records import Problem, number_of, record_line, stream_records

INDEX = "problems.npz"
REMEMBERED = 4_096


class ProblemTable:
    """The problems of a folder that `write_problems` wrote."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / INDEX, allow_pickle=False) as index:
            self._ids, self._rows, self._starts = index["ids"], index["rows"], index["starts"]
            self.tests: np.ndarray = index["tests"]
        self._file = os.open(folder / PROBLEMS, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._read = lru_cache(maxsize=REMEMBERED)(self._read_row)

    def __len__(self) -> int:
        return len(self.tests)

    def find(self, problem_id: str) -> tuple[int, Problem] | None:
        """Return the row and the problem of an id; None if no problem has it."""
        number = np.uint64(number_of(problem_id))
        place = int(np.searchsorted(self._ids, number))
        if place == len(self._ids) or self._ids[place] != number:
            return None
        row = int(self._rows[place])
        return row, self._read(row)

    def problem(self, row: int) -> Problem:
        return self._read(row)

    def close(self) -> None:
        os.close(self._file)

    def _read_row(self, row: int) -> Problem:
        start, end = int(self._starts[row]), int(self._starts[row + 1])
        os.lseek(self._file, start, os.SEEK_SET)
        return Problem(**json.loads(os.read(self._file, end - start)))


def write_problems(folder: Path, problems: Iterable[Problem]) -> str:
    """Write a table of problems, the first of each id, and return its digest; raises `InputError` if one cannot be
    graded here."""
    seen: set[int] = set()
    starts, tests, ids = [0], [], []
    digest = hashlib.sha256()
    with (folder / PROBLEMS).open("wb") as file:
        for problem in problems:
            number = number_of(problem.id)
            if number in seen:
                continue
            seen.add(number)
            line = record_line(problem)
            file.write(line)
            digest.update(line)
            ids.append(number)
            starts.append(starts[-1] + len(line))
            tests.append(split_of(problem) == "test")
            check_gradable([problem])
    numbers = np.array(ids, dtype=np.uint64)
    rows = np.argsort(numbers, kind="stable").astype(np.int32)
    np.savez(
        folder / INDEX,
        ids=numbers[rows],
        rows=rows,
        starts=np.array(starts, dtype=np.int64),
        tests=np.array(tests, dtype=bool),
    )
    return digest.hexdigest()[:16]


def problems_in(files: Iterable[Path]) -> Iterator[Problem]:
    """Yield the problems of files in the toolkit's own form, one by one. Raises `InputError` naming a wrong line."""
    for path in files:
        yield from stream_records(path, Problem, torn_end=True)
