"""Lists a run's traces: all, those that are not trained on, or the requests without an answer.

Listing only reads, and also works for unfinished runs. Dropped traces are those that curation recorded; before
curation, those that are incomplete or unfit (`distill.verification.wholeness`), right or wrong. Beside what a trace
answers stands what its problem expects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from distill.collecting.outcomes import FAILED
from distill.curate import DROPPED, Dropped
from distill.store.failure import Failure
from distill.store.sharded_store import TraceStore
from distill.teachers.trace_store import store_of
from distill.verification.wholeness import incomplete, unfit
from toolkit.answers.final_answer import find_final_answer
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES
from toolkit.figures.tables import columns
from toolkit.records import Problem, Record, Trace, read_records
from toolkit.runs import partial_of
from toolkit.terminal import visible

What = Literal["all", "failed", "dropped"]
R = TypeVar("R", bound=Record)
LONGEST = 72
"""Most characters of a quoted line."""
TABLE_WIDTH, MOST_INNER, LEAST_LAST = 100, 16, 20
"""Characters of a table's row, of an inner cell that may be cut, and of the last one where long ids leave no room."""


@dataclass(frozen=True, kw_only=True)
class ListedTrace(Record):
    """One trace or failed request."""

    problem_id: str
    sample: int
    reason: str
    question: str
    """The first line of the question."""
    expected: str
    """The first line of the problem's own answer."""
    said: str
    """The first line of the final answer, of a thought without one, or of what the server said instead."""


def listing(run: Path, what: What) -> list[ListedTrace]:
    """Return the rows of a run folder; raises `InputError` if it is not one."""
    folder = next((folder for folder in (run, partial_of(run)) if (folder / PROBLEMS).is_file()), None)
    if folder is None:
        raise InputError(
            f"{run} is not a run folder of toolkit traces or toolkit distill, finished or not; name the --out of one"
        )
    problems = {problem.id: problem for problem in read_records(folder / PROBLEMS, Problem)}
    store = None if (folder / TRACES).is_file() else TraceStore(store_of(folder, run))
    all_traces = store.traces.records() if store else _records(folder / TRACES, Trace)
    traces = {(t.problem_id, t.sample): t for t in all_traces if t.problem_id in problems}
    if what == "failed":
        all_failures = store.failures.records() if store else _records(folder / FAILED, Failure)
        failures = {(f.problem_id, f.sample): f for f in all_failures if f.problem_id in problems}
        found = [(f.problem_id, f.sample, f.reason, f.message) for key, f in failures.items() if key not in traces]
    elif what == "dropped":
        dropped = _dropped(folder, problems, traces)
        found = [(p, sample, reason, _said(traces[p, sample])) for p, sample, reason in dropped]
    else:
        found = [(t.problem_id, t.sample, t.finish_reason, _said(t)) for t in traces.values()]
    return [
        ListedTrace(
            problem_id=problem_id,
            sample=sample,
            reason=reason,
            question=_first_line(problems[problem_id].question),
            expected=_first_line(problems[problem_id].answer),
            said=_first_line(said),
        )
        for problem_id, sample, reason, said in found
    ]


def table(rows: list[ListedTrace], what: What) -> str:
    """Format the rows for a terminal, below a head; an inner cell or the last one is cut to fit the table's width."""
    if not rows:
        return "none"
    ends = ["question", "the server said"] if what == "failed" else ["expected", "answered", "question"]
    cells = [["problem", "sample", "reason", *ends]]
    for row in rows:
        *inner, last = [row.question, row.said] if what == "failed" else [row.expected, row.said, row.question]
        cells.append([row.problem_id, str(row.sample), row.reason, *(_cut(text, MOST_INNER) for text in inner), last])
    used = sum(max(map(len, column)) + 2 for column in list(zip(*cells, strict=True))[:-1])
    room = max(TABLE_WIDTH - used, LEAST_LAST)
    lines = columns([[*line[:-1], _cut(line[-1], room)] for line in cells], right=[1]).split("\n")
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _dropped(
    folder: Path, problems: dict[str, Problem], traces: dict[tuple[str, int], Trace]
) -> Iterator[tuple[str, int, str]]:
    if (folder / DROPPED).is_file():
        for each in _records(folder / DROPPED, Dropped):
            yield each.problem_id, each.sample, each.reason
        return
    for (problem_id, sample), trace in traces.items():
        if fault := incomplete(trace) or unfit(trace, problems[problem_id]):
            yield problem_id, sample, fault


def _records(path: Path, kind: type[R]) -> list[R]:
    return read_records(path, kind, torn_end=True) if path.is_file() else []


def _said(trace: Trace) -> str:
    return find_final_answer(trace.answer).text or trace.answer if trace.answer.strip() else trace.reasoning


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return _cut(visible(line[: LONGEST + 1]), LONGEST)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
