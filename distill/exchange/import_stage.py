"""The import stage: a published data set of traces → a run folder, as `toolkit traces` writes it.

    out/
    ├── problems.jsonl     one problem for each question
    ├── traces.jsonl       its answers, numbered as samples
    ├── verdicts.jsonl     which answers are right, verified here, where there is a reference
    ├── published.jsonl    what the publisher says of each trace, its verdicts among it, and the row it comes from
    ├── left_out.jsonl     each row or answer that is not in the run, and why
    └── manifest.json

The data are read twice: first their questions, so that a wrong row is refused before anything long is done, then their
answers. Nothing is held in memory but numbers. An interrupted import begins anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from distill.exchange.import_counts import ImportCounts, left_out_text, say_questions, say_traces
from distill.exchange.imported_problems import ImportedProblems
from distill.exchange.trace_forms import IMPORTED, PublishedTrace, TraceRow, read_trace_row
from distill.problems.conversations import LeftOut
from distill.problems.files import FileRow
from distill.problems.merging import ProblemRow
from distill.problems.own_form import problem_of
from distill.problems.problem_set import splits_of
from distill.problems.sources import check_place, parts_of
from distill.verification.verdicts import check_gradable, grade, has_reference
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES, VERDICTS
from toolkit.progress import Progress
from toolkit.records import Problem, Record, Split, Trace, number_of, record_line
from toolkit.runs import MANIFEST, Stage, check_out, file_digest, finish, is_complete, partial_folder, say_done
from toolkit.terminal import say

PUBLISHED, LEFT_OUT = "published.jsonl", "left_out.jsonl"
SCRATCH = "rows.scratch"
SAY_EVERY_S = 20.0
Answer = Literal["refuse", "leave-out"]


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which data are imported, and how."""

    place: Path
    """A file, a folder, or the id of a data set on the hub."""
    limit: int | None = None
    """The most rows to read."""
    teacher: str = ""
    """The name of the model that answered; empty for the one that the form of the data names."""
    reference_field: str = ""
    """The column of the references; empty for that of the form."""
    conflicts: Answer = "refuse"
    """What to do with a question whose rows give different references."""
    broken: Answer = "refuse"
    """What to do with a row that is not one of its form."""
    verify: bool = True
    """Whether answers are verified that have a reference."""


@dataclass(frozen=True, kw_only=True)
class PublishedRecord(Record):
    """A line of `published.jsonl`."""

    problem_id: str
    sample: int
    where: str
    said: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))  # a deep copy would be wasted on a million lines


@dataclass(frozen=True, kw_only=True)
class LeftOutRow(Record):
    """A line of `left_out.jsonl`."""

    where: str
    reason: str


def import_traces(config: ImportConfig, out: Path) -> Path:
    """Run the stage into `out`, or do nothing if `out` holds this import already; return `out`.

    Raises `InputError` naming a row that is not one of a known form, two rows that contradict each other, or if no
    trace is left.
    """
    check_out(out)
    check_place(config.place)
    if config.place.is_dir() and (config.place / MANIFEST).is_file() and (config.place / TRACES).is_file():
        raise InputError(f"{config.place} is a run folder already; its traces need no import")
    stage = Stage(
        name="import",
        config={name: value for name, value in vars(config).items() if name != "place"},
        inputs={"data": _digest_of(config.place)},
    )
    if is_complete(out, stage):
        say_done(out)
        return out
    folder = partial_folder(out, stage, cheap=(PROBLEMS, TRACES, VERDICTS, PUBLISHED, LEFT_OUT, SCRATCH))
    counts = ImportCounts()
    problems = ImportedProblems(folder / SCRATCH)
    try:
        with (folder / LEFT_OUT).open("wb") as left_out:
            _read_questions(config, problems, counts, left_out)
            problems.merge_into(folder / PROBLEMS, leave_conflicts_out=config.conflicts == "leave-out")
            say_questions(config.place, problems, counts)
            _Writing(config, problems, counts, left_out).write(folder)
        say_traces(counts)
        if not counts.traces:
            raise InputError(
                f"{config.place} holds no trace{left_out_text(counts)}; give data whose answers can be read"
            )
    finally:
        problems.close()
    if not config.verify:
        (folder / VERDICTS).unlink()
    finish(folder, out, stage, counts.measured(problems), scratch=(SCRATCH,))
    return out


def _rows(config: ImportConfig, notes: list[str]) -> Iterator[tuple[FileRow, Split | None]]:
    """Yield the rows of all parts, each with the split that its part's name means."""
    parts, said = parts_of(config.place)
    splits, also = splits_of(parts, config.place)
    notes += [*said, *also]
    left = config.limit
    for part in parts:
        for row in part.rows:
            if left is not None:
                if left == 0:
                    return
                left -= 1
            yield row, splits.get(part.name)


def read_row(row: FileRow, split: Split | None, config: ImportConfig) -> tuple[str, TraceRow, ProblemRow]:
    """Return the name of a row's form, the row, and its problem; raises as `read_trace_row` does."""
    form, read = read_trace_row(row.values, row.where, config.reference_field)
    if read.problem is not None:
        known = Problem.create(question=read.problem.question, history=read.problem.history, family="", answer="")
        same = read.problem.id in (known.id, known.set_apart().id)
        problem = replace(read.problem, id=known.id) if same else read.problem
        return form, read, ProblemRow(problem=problem, where=row.where, id=read.problem.id)
    answer = read.own.get("answer")
    lacks = bool(read.lacks) or answer is None or not str(answer).strip()
    problem = problem_of(read.own | {"answer": "?"} if lacks else read.own, split, row.where)
    problem = replace(problem, answer="") if lacks else problem
    return form, read, ProblemRow(problem=problem, where=row.where, id="")


def _read_questions(config: ImportConfig, problems: ImportedProblems, counts: ImportCounts, left_out: BinaryIO) -> None:
    notes: list[str] = []
    said_at = time.monotonic()
    for row, split in _rows(config, notes):
        counts.rows += 1
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            say(f"import: {counts.rows:,} rows read")
        try:
            form, read, problem = read_row(row, split, config)
        except (LeftOut, InputError) as reason:
            if isinstance(reason, InputError) and config.broken == "refuse":
                raise
            _leave_out(counts, left_out, row.where, str(reason) if isinstance(reason, LeftOut) else "broken", reason)
            continue
        counts.forms[form] += 1
        counts.answers += len(read.traces)
        counts.lacks.update([read.lacks] if read.lacks else [])
        counts.unused.update(read.unused)
        if config.verify:
            check_gradable([problem.problem])
        problems.add(problem)
    for note in notes:
        say(f"import: {note}")


def _leave_out(counts: ImportCounts, file: BinaryIO, where: str, reason: str, why: object = "") -> None:
    counts.left_out[reason] += 1
    counts.examples.setdefault(reason, where)
    file.write(record_line(LeftOutRow(where=where, reason=str(why) or reason)))


class _Writing:
    """The second reading: answers become traces and verdicts."""

    def __init__(
        self, config: ImportConfig, problems: ImportedProblems, counts: ImportCounts, left_out: BinaryIO
    ) -> None:
        self._config, self._problems, self._counts, self._left_out = config, problems, counts, left_out
        self._samples = np.zeros(len(problems), dtype=np.int64)
        """By problem, a number above those of its samples so far."""
        self._taken: set[int] = set()
        self._seen: set[int] = set()

    def write(self, folder: Path) -> None:
        with ExitStack() as stack:
            self._asked = stack.enter_context((folder / PROBLEMS).open("rb"))
            self._traces, self._verdicts, self._published = (
                stack.enter_context((folder / name).open("wb")) for name in (TRACES, VERDICTS, PUBLISHED)
            )
            progress = stack.enter_context(Progress("import", self._counts.answers))
            for row, split in _rows(self._config, []):
                try:
                    _, read, asked = read_row(row, split, self._config)
                except (LeftOut, InputError):
                    continue  # counted by the first reading
                self._write_row(read, asked)
                progress.advance(len(read.traces))

    def _write_row(self, read: TraceRow, asked: ProblemRow) -> None:
        found = self._problems.find(asked.problem)
        if found is None:
            for _ in read.traces:
                self._leave(asked.where, "its question was left out")
            return
        number, place = found
        self._asked.seek(place)
        problem = Problem(**json.loads(self._asked.readline()))
        for each in read.traces:
            given = each.read()
            teacher = f"{self._config.teacher}@{IMPORTED}" if self._config.teacher else given.teacher
            request = given.request_hash or _request(problem, given, teacher)
            if _is_new(self._seen, number_of(f"{number} {request}")):
                sample = self._sample(number, given)
                trace = replace(given, problem_id=problem.id, sample=sample, teacher=teacher, request_hash=request)
                self._write_trace(each, trace, problem, asked.where)
            else:
                self._leave(asked.where, "equal to an earlier answer")

    def _write_trace(self, each: PublishedTrace, trace: Trace, problem: Problem, where: str) -> None:
        counts = self._counts
        self._traces.write(record_line(trace))
        said = PublishedRecord(problem_id=trace.problem_id, sample=trace.sample, where=where, said=each.said)
        self._published.write(record_line(said))
        counts.traces += 1
        counts.test += problem.split == "test"
        counts.without_thought += not trace.reasoning.strip()
        if not has_reference(problem) or not self._config.verify:
            counts.verdicts["not verified" if has_reference(problem) else "without a reference"] += 1
            return
        verdict = grade(problem, trace)
        self._verdicts.write(record_line(verdict))
        counts.verdicts[verdict.reason] += 1
        if each.right is not None and each.right != verdict.correct:
            counts.contradicted["right" if each.right else "wrong"] += 1

    def _sample(self, number: int, trace: Trace) -> int:
        """Return the number of an answer among those to its question: its own, if we exported it, or the next one."""
        following = int(self._samples[number])
        sample = trace.sample if trace.request_hash else following
        if not _is_new(self._taken, number_of(f"{number} {sample}")):
            sample = following
            self._taken.add(number_of(f"{number} {sample}"))
        self._samples[number] = max(following, sample + 1)
        return sample

    def _leave(self, where: str, reason: str) -> None:
        _leave_out(self._counts, self._left_out, where, reason)


def _is_new(seen: set[int], number: int) -> bool:
    """Add a number to those seen; return whether it was not among them."""
    before = len(seen)
    seen.add(number)
    return len(seen) > before


def _request(problem: Problem, trace: Trace, teacher: str) -> str:
    """Return the hash of an answer whose request is not known: of the question, the teacher and the answer itself."""
    facts = [problem.exact_text, teacher, trace.finish_reason, trace.reasoning, trace.answer]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _digest_of(place: Path) -> str:
    """Return the digest of the files of a place; of a data set on the hub, its name."""
    if not place.exists():
        return place.as_posix()
    if place.is_file():
        return file_digest(place)[:16]
    files = sorted(path for path in place.rglob("*") if path.is_file())
    facts = [f"{path.relative_to(place).as_posix()} {file_digest(path)}" for path in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
