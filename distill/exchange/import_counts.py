"""Counts what becomes of the rows and answers of an import, and says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.exchange.imported_problems import ImportedProblems
from toolkit.records import SPLITS
from toolkit.terminal import counted, say


@dataclass(kw_only=True)
class ImportCounts:
    """What became of rows and answers."""

    rows: int = 0
    answers: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    lacks: Counter[str] = field(default_factory=Counter)
    """Rows by why they have no reference."""
    unused: Counter[str] = field(default_factory=Counter)
    """Rows by the columns that are kept nowhere."""
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """The first row that was left out for each reason."""
    traces: int = 0
    test: int = 0
    """Traces of the test split."""
    without_thought: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    contradicted: Counter[str] = field(default_factory=Counter)
    """Traces of which the publisher says something else than our verdict, by what it says."""

    def measured(self, problems: ImportedProblems) -> dict[str, Any]:
        """Return the numbers of the manifest."""
        return {
            "traces": self.traces,
            "problems": len(problems),
            "rows": self.rows,
            "forms": dict(self.forms),
            "merged": dict(problems.merged),
            "left_out": dict(self.left_out),
            "splits": dict(problems.splits),
            "without_reference": problems.without_reference,
            "verdicts": dict(self.verdicts),
            "contradicted": dict(self.contradicted),
        }


def say_questions(place: Path, problems: ImportedProblems, counts: ImportCounts) -> None:
    """Say what the rows' questions have become."""
    forms = _list(counts.forms) if len(counts.forms) > 1 else next(iter(counts.forms), "nothing")
    splits = ", ".join(f"{problems.splits[split]} {split}" for split in SPLITS if problems.splits[split])
    text = f"import: {counted(len(problems), 'problem')} of {counted(counts.rows, 'row')} in {place}"
    text += f", read as {forms}" + (f"; {splits}" if splits else "")
    if problems.merged:
        text += f"; merged: {_list(problems.merged)}"
    if problems.left_out:
        text += f"; questions left out: {_list(problems.left_out)}"
    say(text)
    if problems.without_reference:
        rows = f" (rows: {_list(counts.lacks)})" if counts.lacks else ""
        say(f"import: problems without a reference, whose traces get no verdict: {problems.without_reference}{rows}")
    if counts.unused:
        say(f"import: columns that are kept nowhere, with their rows: {_list(counts.unused)}")


def say_traces(counts: ImportCounts) -> None:
    """Say what the rows' answers have become."""
    verdicts = _list(counts.verdicts) or "none"
    say(f"import: {counted(counts.traces, 'trace')}; verdicts here: {verdicts}{left_out_text(counts)}")
    if counts.contradicted:
        say(
            "import: verdicts that differ from the publisher's: "
            + " and ".join(f"{count} that it calls {said}" for said, count in counts.contradicted.items())
            + "; those made here count, its own are in published.jsonl"
        )
    if counts.without_thought:
        say(f"import: traces without a thought: {counts.without_thought}; no student learns from them")
    if counts.test:
        say(f"import: traces of the data's own test split: {counts.test}; no student learns from them")


def left_out_text(counts: ImportCounts) -> str:
    """Count what was left out by reason, each with its first row; empty if nothing was."""
    if not counts.left_out:
        return ""
    shown = ", ".join(
        f"{reason} ({count}, first {counts.examples[reason]})" for reason, count in counts.left_out.items()
    )
    return f"; left out: {shown}"


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())
