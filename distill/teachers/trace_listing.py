"""Lists a run's traces: all, those that are not trained on, or the requests without an answer.

Listing only reads, and also works for unfinished runs. Dropped traces are those that curation recorded; before
curation, those that are incomplete or unfit (`distill.verification.wholeness`), right or wrong. Beside what a trace
answers stands what its problem expects, and the verdict once there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar

from distill.curation.curated_folder import KEPT, chosen_of, dropped_of, is_curated, problems_of
from distill.curation.reasons import DROPPED, DROPS, Dropped
from distill.store.failure import Failure
from distill.store.sharded_store import TraceStore
from distill.teachers.trace_store import store_of
from distill.verification.wholeness import incomplete, unfit
from toolkit.answers.final_answer import find_final_answer
from toolkit.errors import InputError
from toolkit.figures.ledger import FAILED, PROBLEMS, TRACES, VERDICTS
from toolkit.figures.tables import columns
from toolkit.records import Problem, Record, Trace, Verdict, read_records, stream_records
from toolkit.runs import partial_of
from toolkit.terminal import visible

What = Literal["all", "failed", "dropped"]
R = TypeVar("R", bound=Record)
_Row = tuple[str, int, str, str, str]
"""Problem, sample, reason, what was said, and the thought."""
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
    """Why the turn ended, the trace is dropped or the request failed; `KEPT` if a curation chose the trace."""
    question: str
    expected: str
    """The problem's own answer."""
    said: str
    """The final answer, a thought without one, or what the server said instead."""
    detail: str = ""
    """What in the trace is the reason, where a curation recorded it."""
    verdict: str = ""
    """Whether the answer is right, or why it is no answer; empty if it is not graded."""
    thought: str = ""


def listing(run: Path, what: What, reason: str | None = None, *, whole: bool = False) -> list[ListedTrace]:
    """Return the rows of a run folder, or of a curation's; raises `InputError` if it is neither.

    `reason` keeps the rows with this reason only. `whole`: give whole texts, and thoughts too, instead of first lines.
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
        return list(_curated(folder, what, reason, whole=whole))
    problems = {problem.id: problem for problem in read_records(folder / PROBLEMS, Problem)}
    held = _Held(folder, run, problems.keys())
    if what == "failed":
        answered = {(trace.problem_id, trace.sample) for trace in held.traces()}
        rows = ((f.problem_id, f.sample, f.reason, f.message, "") for f in held.failures())
        found: Iterator[_Row] = (row for row in rows if row[:2] not in answered)
    elif what == "dropped":
        found = _dropped(folder, problems, held)
    else:
        found = (_row(trace, trace.finish_reason) for trace in held.traces())
    verdicts = {(v.problem_id, v.sample): v.reason for v in _records(folder / VERDICTS, Verdict)}
    shown: Callable[[str], str] = str if whole else _first_line
    listed = (
        ListedTrace(
            problem_id=problem_id,
            sample=sample,
            reason=fate,
            question=shown(problems[problem_id].question),
            expected=shown(problems[problem_id].answer),
            said=shown(said),
            verdict=verdicts.get((problem_id, sample), ""),
            thought=thought if whole else "",
        )
        for problem_id, sample, fate, said, thought in found
        if reason in (None, fate)
    )
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
    is_ended = what == "all" and any(row.reason != KEPT for row in rows)
    if is_ended and any(row.verdict for row in rows):
        ends = ["verdict", *ends]
    cells = [["problem", "sample", "ended" if is_ended else "reason", *ends]]
    for row in rows:
        texts = {name: getattr(row, name) for name in ("verdict", "expected", "question", "detail")}
        *inner, last = [texts.get(name, row.said) for name in ends]
        cells.append([row.problem_id, str(row.sample), row.reason, *(_cut(text, MOST_INNER) for text in inner), last])
    used = sum(max(map(len, column)) + 2 for column in list(zip(*cells, strict=True))[:-1])
    room = max(TABLE_WIDTH - used, LEAST_LAST)
    lines = columns([[*line[:-1], _cut(line[-1], room)] for line in cells], right=[1]).split("\n")
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _curated(folder: Path, what: What, reason: str | None, *, whole: bool) -> Iterator[ListedTrace]:
    """Yield the traces that a curation chose, or those that it dropped, with what is the reason."""
    if what == "failed":
        return
    shown: Callable[[str], str] = str if whole else _first_line
    texts = {p.id: (shown(p.question), shown(p.answer)) for p in problems_of(folder)}
    if what == "dropped":
        rows = ((d.problem_id, d.sample, d.reason, "", d.detail, "") for d in dropped_of(folder))
    else:
        rows = (
            (e.problem_id, e.sample, KEPT, find_final_answer(e.answer).text, "", e.reasoning) for e in chosen_of(folder)
        )
    for problem_id, sample, fate, said, detail, thought in rows:
        if reason in (None, fate):
            question, expected = texts.get(problem_id, ("", ""))
            yield ListedTrace(
                problem_id=problem_id,
                sample=sample,
                reason=fate,
                question=question,
                expected=expected,
                said=shown(said),
                detail=shown(detail),
                thought=thought if whole else "",
            )


def _dropped(folder: Path, problems: Mapping[str, Problem], held: _Held) -> Iterator[_Row]:
    if (folder / DROPPED).is_file():
        dropped = {(each.problem_id, each.sample): each.reason for each in _records(folder / DROPPED, Dropped)}
        yield from (_row(t, why) for t in held.traces() if (why := dropped.get((t.problem_id, t.sample))))
        return
    for trace in held.traces():
        if fault := incomplete(trace) or unfit(trace, problems[trace.problem_id]):
            yield _row(trace, fault)


def _records(path: Path, kind: type[R]) -> Iterator[R]:
    return stream_records(path, kind, torn_end=True) if path.is_file() else iter(())


def _row(trace: Trace, reason: str) -> _Row:
    return trace.problem_id, trace.sample, reason, _answered(trace), trace.reasoning


def _answered(trace: Trace) -> str:
    return find_final_answer(trace.answer).text or trace.answer if trace.answer.strip() else trace.reasoning


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return _cut(visible(line[: LONGEST + 1]), LONGEST)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
