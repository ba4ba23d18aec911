"""The curation stage: files of traces → a training set, with the reason for each trace that is not in it.

    out/
    ├── train.jsonl                    the examples to learn from: toolkit distill --traces out/train.jsonl
    ├── problems.jsonl                 the problems of all traces
    ├── verdicts.jsonl                 which answers are right
    ├── dropped.jsonl  drops.json      why each other trace was dropped, and the counts by reason
    ├── report.html                    lengths, pass rates, reasons, and traces of each fate
    └── manifest.json

    beside out, or in runs:  .verdicts/<key>/    what was measured of each piece of the files, and a judge's ratings

If interrupted, the same command resumes: it measures the missing pieces. A curation of the same files with other rules
measures nothing again. Both hold for files that have grown at their ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.curation.at_size.answer_classes import in_majority
from distill.curation.at_size.judging import TraceJudge
from distill.curation.at_size.measured_pieces import MeasuredPiece, Measuring, measure_piece, prepare, release
from distill.curation.at_size.problem_table import INDEX, ProblemTable, problems_in, write_problems
from distill.curation.at_size.report_page import write_page
from distill.curation.at_size.shard_pieces import TraceShard, find_shards, pieces_of
from distill.curation.at_size.training_set import TrainingSet
from distill.curation.at_size.workers import Tools, run_all
from distill.curation.contamination import BenchmarkWords, read_benchmark
from distill.curation.facts import FACTS, RIGHT, empty_signatures
from distill.curation.near_duplicates import check_library
from distill.curation.reasons import CODES, DROPPED, DROPS, DROPS_FILE, KEPT, Counts
from distill.curation.selection import Rules, Selection, select
from distill.endpoints.remote_teacher import Endpoint, connect
from distill.problems.own_form import ReadingOptions
from distill.problems.problem_set import read_problems
from distill.teachers.trace_store import RUNS
from distill.verification.verdicts import VERSION
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, VERDICTS
from toolkit.progress import Progress
from toolkit.records import TRAIN, Problem, record_line
from toolkit.runs import (
    Stage,
    check_out,
    file_digest,
    finish,
    is_complete,
    partial_folder,
    replace_text,
    say_done,
    versions,
)
from toolkit.sources.model_names import resolve
from toolkit.terminal import counted, say
from toolkit.voice.student_format import write_student_format
from toolkit.voice.student_voice import Voice, find_voice

REPORT = "report.html"
FILES = (PROBLEMS, INDEX, TRAIN, DROPPED, VERDICTS, DROPS_FILE, REPORT)
"""What an unfinished curation leaves; all of it is made again from what was measured."""
MEASURED = ".verdicts"
FACTS_VERSION = "1"
"""Raised whenever the same trace could get other facts."""
STUDENT = "student"
"""The folder of the student's chat format among what was measured."""


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """Which traces are curated, and how."""

    traces: tuple[Path, ...]
    """Files of traces, and run folders."""
    problems: Path | None = None
    """A user's problems; None takes those beside the traces."""
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    rules: Rules = field(default_factory=Rules)
    student: str | None = None
    """The model by whose tokens lengths are counted; None takes the teacher's counts, or estimates."""
    decontaminate: tuple[Path, ...] = ()
    run_words: int = 13
    """The words in a row that make a trace contaminated."""
    judge: str | None = None
    """An endpoint that rates answers without a reference."""
    judge_least: float = 7.0
    processes: int = 1
    unsafe: bool = False


def curate_traces(config: CurationConfig, out: Path) -> Path:
    """Run the stage into `out`, or do nothing if `out` holds this curation already; return `out`.

    Raises `InputError` for wrong input before any long work starts, and if no trace is left.
    """
    check_out(out)
    shards, problem_files = find_shards(config.traces, with_problems=config.problems is None)
    if config.rules.near_duplicates is not None:
        check_library()
    given = read_problems(config.problems, config.reading) if config.problems else None
    benchmark = read_benchmark(config.decontaminate, config.run_words) if config.decontaminate else None
    student = resolve(config.student) if config.student else None
    judge = connect(config.judge) if config.judge else None
    voice = find_voice(student) if student else None
    tokenizer = _tokens_of(student, voice) if student and voice else "estimated"
    stage = Stage(
        name="curate",
        config={"rules": asdict(config.rules), "judge_least": config.judge_least if judge else None},
        inputs=_inputs(shards, problem_files if given is None else given)
        | {"tokens": tokenizer, "benchmark": benchmark.digest if benchmark else "none"}
        | {"judge": judge.digest if judge else "none"},
    )
    if is_complete(out, stage):
        say_done(out)
        return out
    folder = partial_folder(out, stage, cheap=FILES)
    problems = write_problems(folder, problems_in(problem_files) if given is None else given)
    table = ProblemTable(folder)
    kept = _measured_folder(out, problems, tokenizer, benchmark, config)
    if student:
        (kept / STUDENT).mkdir(exist_ok=True)
        write_student_format(student, kept / STUDENT, voice)
    measuring = Measuring(
        problems=folder,
        kept=kept,
        student=kept / STUDENT if student else None,
        benchmark=benchmark,
        languages=bool(config.rules.languages),
        signatures=config.rules.near_duplicates is not None,
        unsafe=config.unsafe,
    )
    chosen = _choose(_measure(shards, measuring, config.processes), measuring, table, config, judge)
    counts = _counts(chosen.selection)
    say(counts.summary())
    if chosen.selection.unmet:
        raise InputError(
            f"the wished-for mix cannot be had: {chosen.selection.unmet}; collect more, or wish for another mix"
        )
    if chosen.selection.scarce:
        say(
            f"curation: the mix keeps no more, since only {chosen.selection.scarce}; collect more, or change the shares"
        )
    if not counts.kept:
        raise InputError(counts.nothing_left())
    shown = chosen.write(folder)
    replace_text(folder / DROPS_FILE, json.dumps(counts.counts(), indent=1) + "\n")
    write_page(folder / REPORT, chosen.facts, chosen.selection, counts, shown, config.rules)
    table.close()
    correct = int((chosen.facts["known"] == RIGHT).sum())
    finish(folder, out, stage, counts.counts() | {"correct": correct, "judged": len(chosen.judged)}, scratch=(INDEX,))
    return out


def _choose(
    pieces: Sequence[MeasuredPiece],
    measuring: Measuring,
    table: ProblemTable,
    config: CurationConfig,
    judge: Endpoint | None,
) -> TrainingSet:
    """Choose from measured traces, after a judge has rated those without a reference."""
    kept = measuring.kept
    facts, piece_of = _facts_of(pieces, kept)
    judged = {}
    if judge:
        rater = TraceJudge(endpoint=judge, least=config.judge_least, folder=kept / f"judge-{judge.digest}")
        judged = rater.judge(facts, piece_of, pieces, table)
    votes = np.zeros(len(facts), dtype=bool)
    if config.rules.keep == "majority":
        votes = in_majority(facts, piece_of, pieces, measuring.problems, processes=config.processes)
    selection = select(
        facts,
        config.rules,
        is_test=table.tests,
        in_majority=votes,
        signatures=_signatures_of(pieces, kept) if measuring.signatures else empty_signatures(0),
    )
    return TrainingSet(facts=facts, selection=selection, pieces=pieces, kept=kept, table=table, judged=judged)


def _inputs(shards: Sequence[TraceShard], problems: Sequence[Path | Problem]) -> dict[str, str]:
    """Return digests of what is read: the shards, and files of problems or the problems themselves."""
    sizes = sum(shard.size_bytes for shard in shards)
    with Progress("reading", sizes, in_bytes=True) as progress:
        digests = []
        for shard in shards:
            digests.append(_digest_of(shard))
            progress.advance(shard.size_bytes)
    asked = [file_digest(each) if isinstance(each, Path) else _digest(record_line(each)) for each in problems]
    return {name: _digest(" ".join(found).encode())[:16] for name, found in (("traces", digests), ("problems", asked))}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(shard: TraceShard) -> str:
    """Return the digest of a shard as long as it was when the curation began."""
    digest, left = hashlib.sha256(), shard.size_bytes
    with shard.path.open("rb") as file:
        while left and (part := file.read(min(left, 1 << 22))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def _measured_folder(
    out: Path, problems: str, tokenizer: str, benchmark: BenchmarkWords | None, config: CurationConfig
) -> Path:
    """Return the folder of what was measured under these conditions."""
    facts: dict[str, Any] = {
        "version": FACTS_VERSION,
        "verdicts": VERSION,
        "reasoning-gym": versions().get("reasoning-gym"),
        "problems": problems,
        "tokens": tokenizer,
        "benchmark": benchmark.digest if benchmark else None,
        "run_words": config.run_words if benchmark else None,
        "languages": bool(config.rules.languages),
        "signatures": config.rules.near_duplicates is not None,
        "unsafe": config.unsafe,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    beside = out.absolute().parent
    top = next((folder for folder in (beside, *beside.parents) if folder.name == RUNS), beside)
    folder = top / MEASURED / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tokens_of(student: Path, voice: Voice) -> str:
    """Return a digest of what decides how many tokens an example has: the tokenizer, and a template of its own."""
    own = "" if voice.form == "chatml" else f"-{_digest(voice.template.encode())[:12]}"
    return file_digest(student / "tokenizer.json") + own


def _measure(shards: Sequence[TraceShard], measuring: Measuring, processes: int) -> list[MeasuredPiece]:
    pieces = pieces_of(shards)
    measured = []
    with Progress("verdicts", sum(piece.bytes for piece in pieces), in_bytes=True) as progress:
        tools = Tools(prepare=prepare, given=(measuring,), release=release)
        for piece in run_all(measure_piece, pieces, processes=processes, tools=tools):
            measured.append(piece)
            progress.advance(piece.piece.bytes)
    return measured


def _facts_of(pieces: Sequence[MeasuredPiece], kept: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the facts of all traces, and the piece of each."""
    facts = np.empty(sum(piece.rows for piece in pieces), dtype=FACTS)
    piece_of = np.empty(len(facts), dtype=np.int32)
    row = 0
    for number, piece in enumerate(pieces):
        with np.load(kept / piece.name, allow_pickle=False) as held:
            facts[row : row + piece.rows] = held["facts"]
        piece_of[row : row + piece.rows] = number
        row += piece.rows
    if not len(facts):
        raise InputError("the files hold no traces; name others")
    if (facts["problem"] < 0).all():
        raise InputError(
            f"none of the {counted(len(facts), 'trace')} answers one of the problems; name theirs with --problems"
        )
    return facts, piece_of


def _signatures_of(pieces: Sequence[MeasuredPiece], kept: Path) -> np.ndarray:
    signatures = empty_signatures(sum(piece.rows for piece in pieces))
    row = 0
    for piece in pieces:
        with np.load(kept / piece.name, allow_pickle=False) as held:
            signatures[row : row + piece.rows] = held["signatures"]
        row += piece.rows
    return signatures


def _counts(selection: Selection) -> Counts:
    found = np.bincount(selection.reasons, minlength=len(CODES) + 1)
    return Counts(kept=int(found[KEPT]), drops={reason: int(found[CODES[reason]]) for reason in DROPS})
