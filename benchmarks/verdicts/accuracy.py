"""Counts how many rows each program judges like a careful person, by the form of the row.

tests/distill/cases/*.jsonl ── ours, and each rival in an environment of its own ──> counts by form ──> table
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.verification.verdicts import grade
from toolkit.figures.tables import markdown_table
from toolkit.machine.environment import interpreter
from toolkit.records import Problem, Trace

Row = dict[str, Any]
Verdicts = Sequence[bool | None]

CASES = Path(__file__).parents[2] / "tests/distill/cases"
REPORTED = "public reports"
"""The form of `verify.jsonl`, whose rows come from reports of other projects' faults."""
RIVALS: dict[str, tuple[str, ...]] = {
    "math-verify": (),
    "lighteval": ("torch==2.13.0", "lighteval==0.13.0"),
    "lm-eval": ("lm-eval[math]==0.4.13",),
}
"""The requirements of each rival's environment; math-verify is a dependency of ours and needs none."""


@dataclass(frozen=True, kw_only=True)
class VerdictCounts:
    """A program's verdicts on some rows."""

    rows: int
    false_accepts: int
    false_rejects: int

    @property
    def right(self) -> int:
        return self.rows - self.false_accepts - self.false_rejects

    def to_text(self) -> str:
        return f"{self.right} ({self.false_accepts} + {self.false_rejects})"


def read_rows() -> list[Row]:
    """Read the reported cases, those in published forms, and those that were written to find faults."""
    rows = []
    for name in ("verify.jsonl", "published.jsonl", "probing.jsonl"):
        rows += [{"form": REPORTED} | json.loads(line) for line in (CASES / name).read_text("utf-8").splitlines()]
    return rows


def our_verdicts(rows: Sequence[Row]) -> Verdicts:
    return [grade(*graded_pair(**_graded(row))).correct for row in rows]


def graded_pair(reference: str, answer: str, family: str = "user", question: str = "?") -> tuple[Problem, Trace]:
    """Return a problem with this reference, and a complete trace with this answer."""
    problem = Problem.create(family=family, question=question, answer=reference, metadata={})
    trace = Trace(
        problem_id=problem.id,
        sample=0,
        reasoning="",
        answer=answer,
        finish_reason="stop",
        closed=True,
        prompt_tokens=1,
        reasoning_tokens=0,
        completion_tokens=1,
        teacher="none",
        request_hash="none",
    )
    return problem, trace


def _graded(row: Row) -> dict[str, str]:
    return {key: row[key] for key in ("reference", "answer", "family", "question") if key in row}


def rival_verdicts(name: str, rows: Sequence[Row], environments: Path) -> tuple[str, Verdicts]:
    """Return the rival's name with its version, and its verdicts; making a missing environment takes minutes."""
    python = interpreter(environments / name, RIVALS[name]) if RIVALS[name] else Path(sys.executable)
    version = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    said = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True).stdout.strip()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    script = Path(__file__).with_name("rivals.py")
    done = subprocess.run([python, script, name], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    verdicts = json.loads(done.stdout.splitlines()[-1])
    assert len(verdicts) == len(rows), "a rival must answer each row"
    return f"{name} {said}", verdicts


def counts(rows: Sequence[Row], verdicts: Verdicts) -> VerdictCounts:
    pairs = list(zip(rows, verdicts, strict=True))
    return VerdictCounts(
        rows=len(rows),
        false_accepts=sum(verdict is True and not row["correct"] for row, verdict in pairs),
        false_rejects=sum(verdict is not True and row["correct"] for row, verdict in pairs),
    )


def accuracy_table(rows: Sequence[Row], verdicts: Mapping[str, Verdicts]) -> str:
    """Render one line per form and one for all: right verdicts, and in brackets false accepts + false rejects."""
    table = [["form", "rows", *verdicts]]
    for form in dict.fromkeys(row["form"] for row in rows):
        chosen = [i for i, row in enumerate(rows) if row["form"] == form]
        table.append(_line(form, rows, verdicts, chosen))
    table.append(_line("**all**", rows, verdicts, range(len(rows))))
    return markdown_table(table)


def _line(title: str, rows: Sequence[Row], verdicts: Mapping[str, Verdicts], chosen: Sequence[int]) -> list[str]:
    cells = [counts([rows[i] for i in chosen], [given[i] for i in chosen]).to_text() for given in verdicts.values()]
    return [title, str(len(chosen)), *cells]
