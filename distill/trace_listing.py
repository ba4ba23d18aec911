"""Lists a run's traces: all, those that are not trained on, or the requests without an answer.

Listing only reads, and also works for unfinished runs. Dropped traces are those that curation recorded; before
curation, those that are incomplete or unfit (`distill.verification.wholeness`), right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from distill.collecting.outcomes import FAILED, Failure
from distill.curation.reasons import DROPPED, Dropped
from distill.teachers.trace_store import store_of
from distill.verification.wholeness import incomplete, unfit
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


@dataclass(frozen=True, kw_only=True)
class ListedTrace(Record):
    """One trace or failed request."""

    problem_id: str
    sample: int
    reason: str
    question: str
    """The first line of the question."""
    said: str
    """The first line of the answer, or of what the server said instead."""


def listing(run: Path, what: What) -> list[ListedTrace]:
    """Return the rows of a run folder; raises `InputError` if it is not one."""
    folder = next((folder for folder in (run, partial_of(run)) if (folder / PROBLEMS).is_file()), None)
    if folder is None:
        raise InputError(f"{run} is not a run folder of toolkit traces or toolkit distill, finished or not")
    problems = {problem.id: problem for problem in read_records(folder / PROBLEMS, Problem)}
    kept = folder if (folder / TRACES).is_file() else store_of(folder, run)
    traces = {(t.problem_id, t.sample): t for t in _records(kept / TRACES, Trace) if t.problem_id in problems}
    if what == "failed":
        failures = {(f.problem_id, f.sample): f for f in _records(kept / FAILED, Failure) if f.problem_id in problems}
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
            said=_first_line(said),
        )
        for problem_id, sample, reason, said in found
    ]


def table(rows: list[ListedTrace]) -> str:
    """Format the rows for a terminal."""
    if not rows:
        return "none"
    return columns([(r.problem_id, str(r.sample), r.reason, f"{r.question}  ->  {r.said}") for r in rows], right=[1])


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
    return trace.answer if trace.answer.strip() else trace.reasoning


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    shown = visible(line[: LONGEST + 1])
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"
