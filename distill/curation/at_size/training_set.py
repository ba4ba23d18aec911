"""Writes what was chosen: the training set, the dropped traces, the verdicts, and picks some of each to show.

Files are read again from their beginning, a piece at a time, so memory does not grow with the traces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.curation.at_size.measured_pieces import MeasuredPiece, name_of
from distill.curation.at_size.problem_table import ProblemTable
from distill.curation.at_size.shard_pieces import line_number, lines_of, read_piece
from distill.curation.facts import example_of
from distill.curation.reasons import DROPPED, DROPS, KEPT, Dropped
from distill.curation.selection import Selection
from distill.problems.splits import spread
from toolkit.errors import InputError
from toolkit.figures.ledger import VERDICTS
from toolkit.progress import Progress
from toolkit.records import TRAIN, Problem, Trace, Verdict, record_line

SHOWN = 3
"""Traces shown of each reason."""
KEPT_NAME = "kept"
_NAMES = [KEPT_NAME, *DROPS]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One trace on the report's page."""

    problem: Problem | None
    trace: Trace
    detail: str


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What was chosen of measured traces."""

    facts: np.ndarray
    selection: Selection
    pieces: Sequence[MeasuredPiece]
    kept: Path
    """The folder of measured pieces."""
    table: ProblemTable
    judged: dict[int, Verdict]
    """Verdicts of a judge, by row."""

    def write(self, folder: Path) -> dict[str, list[Shown]]:
        """Write the training set, the dropped traces and the verdicts, and return traces to show by their reason.

        Raises `InputError` if a file has changed since it was measured.
        """
        shown: dict[str, list[Shown]] = {name: [] for name in _NAMES}
        chosen = self._to_show()
        row = 0
        with (
            (folder / TRAIN).open("wb") as train,
            (folder / DROPPED).open("wb") as dropped,
            (folder / VERDICTS).open("wb") as verdicts,
            Progress("writing", len(self.facts)) as progress,
        ):
            for piece in self.pieces:
                for line in self._lines(piece, row):
                    verdicts.write(line.verdict)
                    code = int(self.selection.reasons[row])
                    found = self.table.find(line.trace.problem_id)
                    problem = found[1] if found else None
                    detail = "" if code == KEPT else self._detail(code, row, line)
                    if code == KEPT:
                        assert problem is not None
                        train.write(record_line(example_of(problem, line.trace)))
                    else:
                        dropped.write(record_line(_dropped(line, code, detail)))
                    if row in chosen:
                        shown[_NAMES[code]].append(Shown(problem=problem, trace=line.trace, detail=detail))
                    row += 1
                progress.advance(piece.rows)
        return shown

    def _lines(self, piece: MeasuredPiece, row: int) -> Iterator[_Line]:
        """Read a piece again, whose first trace is `row`."""
        shard = piece.piece.shard
        _, content = read_piece(piece.piece)
        if name_of(content) != piece.name:
            raise InputError(f"{shard.path} changed while it was curated; run the same command again")
        with np.load(self.kept / piece.name, allow_pickle=False) as held:
            verdicts = held["verdicts"].tobytes().split(b"\n")
            shared = json.loads(held["shared"].tobytes())
        first = line_number(piece.piece, piece.begin)
        for k, (number, _, line) in enumerate(lines_of(content)):
            verdict = verdicts[k] + b"\n" if verdicts[k] else b""
            yield _Line(
                trace=Trace(**json.loads(line)),
                source=f"{shard.path} line {first + number}",
                verdict=record_line(self.judged[row + k]) if row + k in self.judged else verdict,
                shared=shared.get(str(k), ""),
            )

    def _to_show(self) -> set[int]:
        """Choose some rows of each fate, spread over all."""
        rows: set[int] = set()
        for code in range(len(_NAMES)):
            of_code = np.flatnonzero(self.selection.reasons == code)
            rows.update(of_code[i] for i in spread(len(of_code), SHOWN))
        return rows

    def _detail(self, code: int, row: int, line: _Line) -> str:
        """Say what in a trace is the reason for which it is dropped."""
        facts, other = self.facts[row], int(self.selection.stands_for[row])
        if other >= 0:
            kept = self.facts[other]
            return f"problem {self.table.problem(int(kept['problem'])).id} sample {kept['sample']} is kept"
        match _NAMES[code]:
            case "contaminated":
                return line.shared
            case "language":
                return str(facts["language"].decode())
            case "too_long" | "too_short":
                return f"{facts['tokens']} tokens"
            case "wrong" | "minority" if line.verdict:
                verdict = json.loads(line.verdict)
                read = (verdict.get("reference_read", ""), verdict.get("answer_read", ""))
                return f"expected {read[0]}; answered {read[1]}" if read[0] else f"score {verdict['score']:.2f}"
            case "mix":
                rate = self.selection.pass_rates[facts["problem"]]
                return f"pass rate {rate:.2f}, {facts['thought_tokens']} tokens of thought"
        return ""


@dataclass(frozen=True, kw_only=True)
class _Line:
    trace: Trace
    source: str
    verdict: bytes
    """A line, empty without a verdict."""
    shared: str
    """Words in common with a benchmark."""


def _dropped(line: _Line, code: int, detail: str) -> Dropped:
    trace = line.trace
    return Dropped(
        problem_id=trace.problem_id, sample=trace.sample, reason=_NAMES[code], detail=detail, source=line.source
    )
