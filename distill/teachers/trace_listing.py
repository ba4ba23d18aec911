"""Lists a run's traces: all, those that are not trained on, or the requests without an answer.

Listing only reads, and also works for unfinished runs. Dropped traces are those that curation recorded; before
curation, those that are incomplete or unfit (`distill.verification.wholeness`), right or wrong. Beside what a trace
answers stands what its problem expects.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar

from distill.collecting.outcomes import FAILED
from distill.curation.curated_folder import KEPT, chosen_of, dropped_of, is_curated, problems_of
from distill.curation.reasons import DROPPED, DROPS, Dropped
from distill.store.failure import Failure
from distill.store.sharded_store import TraceStore
from distill.teachers.trace_store import store_of
from distill.verification.wholeness import incomplete, unfit
from toolkit.answers.final_answer import find_final_answer
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES
from toolkit.figures.tables import columns
from toolkit.records import Problem, Record, Trace, read_records, stream_records
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
    detail: str = ""
    """What in the trace is the reason, where a curation recorded it."""


def listing(run: Path, what: What, reason: str | None = None) -> list[ListedTrace]:
    """Return the rows of a run folder, or of a curation's; raises `InputError` if it is neither.

    `reason` keeps the rows with this reason only.
    """
    if reason is not None and reason not in DROPS:
        nearest = get_close_matches(reason, DROPS, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise InputError(f"--reason {reason!r:.60} must be one of {', '.join(DROPS)}{hint}")
    folder = next((folder for folder in (run, partial_of(run)) if (folder / PROBLEMS).is_file()), None)
    if folder is None:
        raise InputError(
            f"{run} is not a run folder of toolkit traces or toolkit distill, finished or not; name the --out of one"
        )
    if is_curated(folder):
        return list(_curated(folder, what, reason))
    problems = {problem.id: problem for problem in read_records(folder / PROBLEMS, Problem)}
    held = _Held(folder, run, problems.keys())
    if what == "failed":
        answered = {(trace.problem_id, trace.sample) for trace in held.traces()}
        rows = [(f.problem_id, f.sample, f.reason, _first_line(f.message)) for f in held.failures()]
        found = [row for row in rows if row[:2] not in answered]
    elif what == "dropped":
        found = list(_dropped(folder, problems, held))
    else:
        found = [(t.problem_id, t.sample, t.finish_reason, _said(t)) for t in held.traces()]
    listed = [
        ListedTrace(
            problem_id=problem_id,
            sample=sample,
            reason=fate,
            question=_first_line(problems[problem_id].question),
            expected=_first_line(problems[problem_id].answer),
            said=said,
        )
        for problem_id, sample, fate, said in found
        if reason in (None, fate)
    ]
    return list({(row.problem_id, row.sample): row for row in listed}.values())


class _Held:
    """What a run folder, or the store of an unfinished run, holds for some problems; it is read as it is looked at."""

    def __init__(self, folder: Path, run: Path, problem_ids: Collection[str]) -> None:
        self._folder, self._ids = folder, problem_ids
        self._store = None if (folder / TRACES).is_file() else TraceStore(store_of(folder, run))

    def traces(self) -> Iterator[Trace]:
        records = self._store.traces.records() if self._store else _records(self._folder / TRACES, Trace)
        return (trace for trace in records if trace.problem_id in self._ids)

    def failures(self) -> Iterator[Failure]:
        records = self._store.failures.records() if self._store else _records(self._folder / FAILED, Failure)
        return (failure for failure in records if failure.problem_id in self._ids)


def table(rows: list[ListedTrace], what: What) -> str:
    """Format the rows for a terminal, below a head; an inner cell or the last one is cut to fit the table's width."""
    if not rows:
        return "none"
    with_details = any(row.detail for row in rows)
    ends = ["expected", "answered", "question"]
    if what == "failed" or with_details:
        ends = ["question", "detail" if with_details else "the server said"]
    cells = [["problem", "sample", "reason", *ends]]
    for row in rows:
        texts = {"expected": row.expected, "answered": row.said, "question": row.question, "detail": row.detail}
        *inner, last = [texts.get(name, row.said) for name in ends]
        cells.append([row.problem_id, str(row.sample), row.reason, *(_cut(text, MOST_INNER) for text in inner), last])
    used = sum(max(map(len, column)) + 2 for column in list(zip(*cells, strict=True))[:-1])
    room = max(TABLE_WIDTH - used, LEAST_LAST)
    lines = columns([[*line[:-1], _cut(line[-1], room)] for line in cells], right=[1]).split("\n")
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _curated(folder: Path, what: What, reason: str | None) -> Iterator[ListedTrace]:
    """Yield the traces that a curation chose, or those that it dropped, with what is the reason."""
    if what == "failed":
        return
    lines = {p.id: (_first_line(p.question), _first_line(p.answer)) for p in problems_of(folder)}
    if what == "dropped":
        rows = ((d.problem_id, d.sample, d.reason, "", d.detail) for d in dropped_of(folder))
    else:
        rows = ((e.problem_id, e.sample, KEPT, find_final_answer(e.answer).text, "") for e in chosen_of(folder))
    for problem_id, sample, fate, said, detail in rows:
        if reason in (None, fate):
            question, expected = lines.get(problem_id, ("", ""))
            yield ListedTrace(
                problem_id=problem_id,
                sample=sample,
                reason=fate,
                question=question,
                expected=expected,
                said=_first_line(said),
                detail=_first_line(detail),
            )


def _dropped(folder: Path, problems: Mapping[str, Problem], held: _Held) -> Iterator[tuple[str, int, str, str]]:
    if (folder / DROPPED).is_file():
        dropped = {(each.problem_id, each.sample): each.reason for each in _records(folder / DROPPED, Dropped)}
        said = {key: _said(t) for t in held.traces() if (key := (t.problem_id, t.sample)) in dropped}
        for (problem_id, sample), reason in dropped.items():
            yield problem_id, sample, reason, said[problem_id, sample]
        return
    for trace in held.traces():
        if fault := incomplete(trace) or unfit(trace, problems[trace.problem_id]):
            yield trace.problem_id, trace.sample, fault, _said(trace)


def _records(path: Path, kind: type[R]) -> Iterator[R]:
    return stream_records(path, kind, torn_end=True) if path.is_file() else iter(())


def _said(trace: Trace) -> str:
    return _first_line(_answered(trace))


def _answered(trace: Trace) -> str:
    return find_final_answer(trace.answer).text or trace.answer if trace.answer.strip() else trace.reasoning


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return _cut(visible(line[: LONGEST + 1]), LONGEST)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
