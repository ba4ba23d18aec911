"""Selects a training set from traces and verdicts, and records why each other trace was dropped.

    traces ── outside the test split? ── complete? ── fit to learn from? ── correct? ── new? ── short enough? ── among the
    first k? ──> examples

Each trace is dropped by the first filter that it fails, so kept and dropped traces add up to all. Completeness and
fitness (`distill.verification.wholeness`) are checked before correctness: a thought mistaken for an answer is often
graded wrong, and the teacher is not to blame for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.verification.wholeness import incomplete, unfit
from toolkit.records import Example, Problem, Record, Trace, Verdict
from toolkit.terminal import counted

DROPPED = "dropped.jsonl"
"""The file of dropped traces in a run folder."""

_DROPS = """
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
wrong | with another answer than the problem's | choose an abler teacher or easier problems
duplicate | with the same thought as another one | raise --temperature
too_long | longer than --max-tokens | raise --max-tokens, or let the teacher think less
surplus | beyond --per-problem | raise --per-problem
"""
DROPS: Mapping[str, tuple[str, str]] = {
    reason: (what, remedy) for reason, what, remedy in (row.split(" | ") for row in _DROPS.strip().splitlines())
}
"""Each reason in the order of the filters, with a description of such traces and a remedy if nothing else is left. The
reason is the word for it in every list and line."""

LENGTH_DROPS = ("truncated", "too_long")


@dataclass(frozen=True, kw_only=True)
class Dropped(Record):
    """A line of `dropped.jsonl`: a trace that is not trained on, and why."""

    problem_id: str
    sample: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Curation:
    """The kept examples and the dropped traces, both in the order of the traces."""

    examples: list[Example]
    dropped: list[Dropped]

    @property
    def drops(self) -> dict[str, int]:
        """Count the dropped traces by reason, zeros included."""
        return dict.fromkeys(DROPS, 0) | Counter(each.reason for each in self.dropped)

    @property
    def traces(self) -> int:
        return len(self.examples) + len(self.dropped)

    def counts(self) -> dict[str, Any]:
        """Return the content of `drops.json`."""
        return {"traces": self.traces, "kept": len(self.examples), "drops": self.drops}

    def summary(self) -> str:
        """Summarize the curation in one line, with a remedy if many traces were too long."""
        text = (
            f"curation: {len(self.examples)} of {counted(self.traces, 'trace')} "
            f"kept; dropped: {self._reasons() or 'none'}"
        )
        drops = self.drops
        long = [reason for reason in LENGTH_DROPS if drops[reason] > self.traces // 10]
        return text + "".join(f"; if too many are {reason}, {DROPS[reason][1]}" for reason in long)

    def nothing_left(self) -> str:
        """Say why no trace was kept, and what helps against the most frequent reason."""
        counts = self.drops
        most = max(counts, key=lambda reason: (reason != "test_split") * counts[reason])
        return (
            f"none of the teacher's {counted(self.traces, 'trace')} is correct and fit to train on: "
            f"{self._reasons()}; {DROPS[most][1]}"
        )

    def _reasons(self) -> str:
        return ", ".join(f"{count} {reason} ({DROPS[reason][0]})" for reason, count in self.drops.items() if count)


def curate(
    problems: Sequence[Problem],
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
    *,
    count_tokens: Callable[[Example], int],
    max_tokens: int,
    per_problem: int,
    test_ids: Collection[str],
) -> Curation:
    """Choose the examples to train on.

    `count_tokens`: an example's length in the student's tokens, prompt included; kept are at most `max_tokens`.
    `per_problem`: most examples per problem. `test_ids`: ids of problems that must not be trained on.
    """
    by_id = {problem.id: problem for problem in problems}
    judged = {(verdict.problem_id, verdict.sample): verdict for verdict in verdicts}
    kept_of: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    examples: list[Example] = []
    dropped: list[Dropped] = []
    for trace in traces:
        problem, verdict = by_id[trace.problem_id], judged[trace.problem_id, trace.sample]
        example = _example(problem, trace)
        thought = (trace.problem_id, " ".join(trace.reasoning.split()))
        if trace.problem_id in test_ids:
            reason = "test_split"
        elif fault := incomplete(trace) or unfit(trace, problem):
            reason = fault
        elif not verdict.correct:
            reason = verdict.reason
        elif thought in seen:
            reason = "duplicate"
        elif count_tokens(example) > max_tokens:
            reason = "too_long"
        elif kept_of[trace.problem_id] == per_problem:
            reason = "surplus"
        else:
            seen.add(thought)
            kept_of[trace.problem_id] += 1
            examples.append(example)
            continue
        dropped.append(Dropped(problem_id=trace.problem_id, sample=trace.sample, reason=reason))
    return Curation(examples=examples, dropped=dropped)


def _example(problem: Problem, trace: Trace) -> Example:
    return Example.of(
        problem, reasoning=trace.reasoning, answer=trace.answer, sample=trace.sample, teacher=trace.teacher
    )
