"""Finds each problem's most frequent answer by the verdicts' own comparison, with or without a reference.

Answers of equal text are counted without reading them. Where a problem has several texts, one of each is read again and
compared (`distill.verification.verdicts.same_answer`). Of classes of one size the one that came first counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.curation.at_size.measured_pieces import MeasuredPiece
from distill.curation.at_size.problem_table import ProblemTable
from distill.curation.at_size.workers import Tools, run_all
from distill.curation.reasons import KEPT
from distill.verification.verdicts import compares_answers, same_answer
from toolkit.formats.thought_forms import without_thoughts
from toolkit.json_files import parse_json
from toolkit.records import Problem, Trace

PROBLEMS_AT_ONCE = 200
Line = tuple[Path, int, int]
"""A line: its file, its place there, its bytes."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One problem's different answers: where one line with each is, and how many traces give it."""

    problem: int
    lines: list[Line]
    counts: list[int]


def in_majority(
    facts: np.ndarray, piece_of: np.ndarray, pieces: Sequence[MeasuredPiece], problems: Path, *, processes: int
) -> np.ndarray:
    """Return for each trace whether it gives its problem's most frequent answer; `piece_of`: the piece of each trace.

    Only traces without a fault have a vote.
    """
    votes = np.flatnonzero((facts["problem"] >= 0) & (facts["fault"] == KEPT))
    order = votes[np.lexsort((votes, facts["answer"][votes], facts["problem"][votes]))]
    problem, answer = facts["problem"][order], facts["answer"][order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (problem[1:] != problem[:-1]) | (answer[1:] != answer[:-1])
    groups = np.flatnonzero(is_first)
    """The first vote of each different text."""
    counts = np.diff(np.append(groups, len(order)))
    group_of = np.cumsum(is_first) - 1
    of_problem = problem[groups]
    starts = np.flatnonzero(np.diff(of_problem, prepend=-1))
    ends = np.append(starts[1:], len(groups))
    wins = np.ones(len(groups), dtype=bool)
    several = np.flatnonzero(ends - starts > 1)
    members, tasks = [], []
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        found = sorted(range(start, end), key=lambda group: int(order[groups[group]]))  # as they come in the files
        rows = [int(order[groups[group]]) for group in found]
        members.append(found)
        tasks.append(
            Texts(
                problem=int(of_problem[start]),
                lines=[line_of(facts, row, pieces[piece_of[row]]) for row in rows],
                counts=[int(counts[group]) for group in found],
            )
        )
    chunks = [tasks[i : i + PROBLEMS_AT_ONCE] for i in range(0, len(tasks), PROBLEMS_AT_ONCE)]
    tools = Tools(prepare=prepare, given=(problems,), release=release)
    chosen = [
        winners for chunk in run_all(most_frequent, chunks, processes=processes, tools=tools) for winners in chunk
    ]
    for found, winners in zip(members, chosen, strict=True):
        wins[found] = False
        wins[[found[i] for i in winners]] = True
    is_in = np.zeros(len(facts), dtype=bool)
    is_in[order] = wins[group_of]
    return is_in


def line_of(facts: np.ndarray, row: int, measured: MeasuredPiece) -> Line:
    """Return where a trace's line is."""
    return measured.piece.shard.path, measured.begin + int(facts["start"][row]), int(facts["bytes"][row])


def trace_at(line: Line) -> Trace:
    """Read one trace again."""
    path, place, size = line
    with path.open("rb") as file:
        file.seek(place)
        return Trace(**parse_json(file.read(size), str(path), constants=True))


_tables: list[ProblemTable] = []


def prepare(problems: Path) -> None:
    """Open the problems in this process."""
    release()
    _tables[:] = [ProblemTable(problems)]


def release() -> None:
    """Close the problems in this process."""
    for table in _tables:
        table.close()
    _tables.clear()


def most_frequent(problems: list[Texts]) -> list[list[int]]:
    """Return for each problem which of its texts mean the most frequent answer."""
    return [_winners(texts, _tables[0].problem(texts.problem)) for texts in problems]


def _winners(texts: Texts, problem: Problem) -> list[int]:
    answers = [without_thoughts(trace_at(line).answer) for line in texts.lines]
    classes: list[list[int]] = []
    for i, answer in enumerate(answers):
        others = classes if compares_answers(problem) else []
        same = next((c for c in others if same_answer(problem, answers[c[0]], answer)), None)
        if same is None:
            classes.append([i])
        else:
            same.append(i)
    return max(classes, key=lambda c: sum(texts.counts[i] for i in c))
