"""Names the reasons for which a trace is not trained on, and records each dropped trace with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.records import Record
from toolkit.terminal import counted

DROPPED, DROPS_FILE = "dropped.jsonl", "drops.json"
"""The files of dropped traces and of their counts in a run folder."""

_DROPS = """
unknown_problem | of problems that are not given | name their problems with --problems
test_split | never trained on | give more problems, so that some fall into the other splits
truncated | cut by the limit | raise --max-new-tokens
filtered | held back by the server's content filter | ask other problems, or a server without a filter
tool_call | calls of a tool | ask a model or a server that offers no tools
broken_off | ended by an error of the server | ask again when the server is well
empty | without an answer | raise --max-new-tokens, or choose a teacher that answers
thought_tags | with a thought's tags left in the text | let the server separate the thoughts (its reasoning parser)
no_thought | without a thought | choose a teacher that thinks, or a server that hands its thoughts out
control_tokens | with control tokens in the text | give the server the model's own chat template
broken_text | with characters that are not text | look at what the server sends
copied | whose thought repeats the question or the answer | choose a teacher that thinks
looping | going round in circles | raise --temperature, or choose an abler teacher
language | that think in another language | name the language with --language
contaminated | that share words with --decontaminate | ask problems that are not in the benchmark
no_reference | without a reference to verify the answer by | name a --judge, or choose --keep majority or all
unjudged | that the judge gave no number | choose another --judge
wrong | with another answer than the problem's | choose an abler teacher or easier problems
minority | with another answer than most traces of the problem | choose --keep verified or all
too_long | longer than --max-tokens | raise --max-tokens, or let the teacher think less
too_short | shorter than --min-tokens | lower --min-tokens
duplicate | with the same thought as another one | raise --temperature
near_duplicate | with nearly the words of another one | raise --near-duplicates, or --temperature
surplus | beyond --per-problem | raise --per-problem
mix | beyond the wished-for mix | change --difficulty or --long-share
"""
DROPS: Mapping[str, tuple[str, str]] = {
    reason: (what, remedy) for reason, what, remedy in (row.split(" | ") for row in _DROPS.strip().splitlines())
}
"""Each reason in the order of the filters, with a description of such traces and a remedy if nothing else is left. The
reason is the word for it in every list and line."""
KEPT = 0
CODES = {reason: code for code, reason in enumerate(DROPS, start=1)}
"""The number of each reason where traces are many; `KEPT` is none."""
LENGTH_DROPS = ("truncated", "too_long")


@dataclass(frozen=True, kw_only=True)
class Dropped(Record):
    """A line of `dropped.jsonl`: a trace that is not trained on, and why."""

    problem_id: str
    sample: int
    reason: str
    detail: str = ""
    """What in this trace is the reason: the words in common, the other trace, the length."""
    source: str = ""
    """The file and the line of the trace, where traces of several files were curated."""

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value != ""}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many traces were kept, and how many were dropped for each reason."""

    kept: int
    drops: Mapping[str, int]
    """Zeros included."""

    @property
    def traces(self) -> int:
        return self.kept + sum(self.drops.values())

    def counts(self) -> dict[str, Any]:
        """Return the content of `drops.json`."""
        return {"traces": self.traces, "kept": self.kept, "drops": dict(self.drops)}

    def summary(self) -> str:
        """Summarize the curation in one line, with a remedy if many traces were too long."""
        text = f"curation: {self.kept:,} of {counted(self.traces, 'trace')} kept; dropped: {self._reasons() or 'none'}"
        long = [reason for reason in LENGTH_DROPS if self.drops[reason] > self.traces // 10]
        return text + "".join(f"; if too many are {reason}, {DROPS[reason][1]}" for reason in long)

    def nothing_left(self) -> str:
        """Say why no trace was kept, and what helps against the most frequent reason."""
        most = max(self.drops, key=lambda reason: (reason != "test_split") * self.drops[reason])
        return (
            f"none of the teacher's {counted(self.traces, 'trace')} is correct and fit to train on: "
            f"{self._reasons()}; {DROPS[most][1]}"
        )

    def _reasons(self) -> str:
        return ", ".join(f"{count:,} {reason} ({DROPS[reason][0]})" for reason, count in self.drops.items() if count)
