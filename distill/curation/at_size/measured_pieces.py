"""Grades and measures the traces of one piece, and keeps what was found, so that it is never done twice.

    <key>/<digest of the piece>.npz    facts: one row for each trace · signatures · shared: JSON, the words that traces
                                       share with a benchmark, by row · verdicts: lines of JSON, empty without one

The key stands for all that the facts depend on beside the lines themselves: the problems, the way of counting tokens,
the benchmark, the versions of the rules. A file appears by one rename, so `kill -9` costs at most the pieces at work.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.curation.at_size.problem_table import ProblemTable
from distill.curation.at_size.shard_pieces import ShardPiece, line_number, lines_of, read_piece
from distill.curation.contamination import BenchmarkWords
from distill.curation.facts import FACTS, Measured, Measures, empty_signatures, measure, unknown
from distill.verification.code.sandbox import allow_unsafe
from distill.verification.verdicts import grade, has_reference
from toolkit.disk import sync
from toolkit.errors import InputError
from toolkit.formats.chat_format import ChatFormat
from toolkit.json_files import parse_json
from toolkit.records import Example, Trace, record_line


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What each process needs to measure traces."""

    problems: Path
    """The folder of the table of problems."""
    kept: Path
    """The folder of measured pieces."""
    student: Path | None
    """A folder with a student's chat format; None estimates tokens."""
    benchmark: BenchmarkWords | None
    languages: bool
    signatures: bool
    unsafe: bool
    """Whether programs that a model wrote may run unconfined."""


class _Measurer:
    """What one process opened."""

    def __init__(self, measuring: Measuring) -> None:
        if measuring.unsafe:
            allow_unsafe()
        self.kept = measuring.kept
        self.table = ProblemTable(measuring.problems)
        chat_format = ChatFormat.from_folder(measuring.student) if measuring.student else None

        def count_tokens(example: Example) -> int:
            assert chat_format is not None
            return len(chat_format.training_ids(example.messages, example.reasoning, example.answer)[0])

        self.measures = Measures(
            count_tokens=count_tokens if chat_format else None,
            benchmark=measuring.benchmark,
            languages=measuring.languages,
            signatures=measuring.signatures,
        )


_workers: list[_Measurer] = []
"""This process's own, once it is prepared."""


def prepare(measuring: Measuring) -> None:
    """Open what this process needs."""
    release()
    _workers[:] = [_Measurer(measuring)]


def release() -> None:
    """Close what this process opened."""
    for worker in _workers:
        worker.table.close()
    _workers.clear()


@dataclass(frozen=True, kw_only=True)
class MeasuredPiece:
    """A piece, where its first line begins in its file, and the name of the file with its facts."""

    piece: ShardPiece
    begin: int
    name: str
    rows: int


def measure_piece(piece: ShardPiece) -> MeasuredPiece:
    """Measure a piece unless that was done before.

    Raises `InputError` naming the file and the line that is no trace.
    """
    worker = _workers[0]
    begin, content = read_piece(piece)
    path = worker.kept / name_of(content)
    held = rows_in(path)
    if held is None:
        found = _measured(piece, begin, content, worker)
        _write(path, found)
        held = len(found["facts"])
    return MeasuredPiece(piece=piece, begin=begin, name=path.name, rows=held)


def name_of(content: bytes) -> str:
    """Return the name of the file with the facts of a piece's lines."""
    return f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.npz"


def rows_in(path: Path) -> int | None:
    """Return how many traces a measured piece has; None if it is not there or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as held:
            return len(held["facts"]) if held["facts"].dtype == FACTS and "verdicts" in held else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _measured(piece: ShardPiece, begin: int, content: bytes, worker: _Measurer) -> dict[str, np.ndarray]:
    found: list[tuple[Measured, bytes, int, int]] = []
    for _, start, line in lines_of(content):
        trace = _trace(line, piece, begin + start)
        problem = worker.table.find(trace.problem_id)
        if problem is None:
            found.append((Measured(row=unknown(trace), shared="", signature=None), b"\n", start, len(line)))
            continue
        number, asked = problem
        verdict = grade(asked, trace) if has_reference(asked) else None
        measured = measure(asked, number, trace, verdict, worker.measures)
        found.append((measured, record_line(verdict) if verdict else b"\n", start, len(line)))
    facts = np.array([measured.row for measured, *_ in found], dtype=FACTS)
    facts["start"] = [start for *_, start, _ in found]
    facts["bytes"] = [size for *_, size in found]
    signatures = empty_signatures(len(found) if worker.measures.signatures else 0)
    for row, (measured, *_) in enumerate(found):
        if measured.signature is not None:
            signatures[row] = measured.signature
    shared = {row: measured.shared for row, (measured, *_) in enumerate(found) if measured.shared}
    return {
        "facts": facts,
        "signatures": signatures,
        "shared": _bytes(json.dumps(shared).encode()),
        "verdicts": _bytes(b"".join(verdict for _, verdict, *_ in found)),
    }


def _trace(line: bytes, piece: ShardPiece, place: int) -> Trace:
    try:
        values: Any = parse_json(line, "it", constants=True)
        if not isinstance(values, dict):
            raise InputError(f"it must be a JSON object, not {type(values).__name__}")
        return Trace.from_dict(values)
    except InputError as error:
        raise InputError(f"{piece.shard.path} line {line_number(piece, place)} is not a trace: {error}") from error


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    fresh = path.with_name(f".{path.stem}.{os.getpid()}.partial")
    try:
        with fresh.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        sync(fresh)
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
