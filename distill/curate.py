"""From traces and verdicts to a training set: what is kept, and a count for each reason that something was not.

    traces ── correct? ── outside the test split? ── new? ── short enough? ── among the first k? ──> examples

Each trace leaves by the first filter that it fails, so the counts and the kept ones sum up to the traces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.records import Example, Problem, Trace, Verdict

DROPS = ("test_split", "truncated", "empty", "wrong", "duplicate", "too_long", "surplus")
"""Reasons in the order of the filters: `surplus` is more correct traces of one problem than asked for."""


@dataclass(frozen=True, kw_only=True)
class Curation:
    """The kept examples, in the traces' order, and what became of the rest."""

    examples: list[Example]
    traces: int
    drops: Mapping[str, int]

    def counts(self) -> dict[str, Any]:
        """What `drops.json` holds."""
        return {"traces": self.traces, "kept": len(self.examples), "drops": dict(self.drops)}

    def summary(self) -> str:
        """One line for the terminal."""
        dropped = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.drops.items() if count)
        return f"curation: {len(self.examples)} of {self.traces} traces kept; dropped: {dropped or 'none'}"


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

    `count_tokens`: length of an example, prompt included, under the student's tokenizer; at most `max_tokens`.
    `per_problem`: most examples of one problem. `test_ids`: ids of problems that may not be trained on.
    """
    by_id = {problem.id: problem for problem in problems}
    judged = {(verdict.problem_id, verdict.sample): verdict for verdict in verdicts}
    drops = Counter(dict.fromkeys(DROPS, 0))
    kept_of: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    examples: list[Example] = []
    for trace in traces:
        verdict = judged[trace.problem_id, trace.sample]
        example = _example(by_id[trace.problem_id], trace)
        thought = (trace.problem_id, " ".join(trace.reasoning.split()))
        if trace.problem_id in test_ids:
            drops["test_split"] += 1
        elif not verdict.correct:
            drops[verdict.reason] += 1
        elif thought in seen:
            drops["duplicate"] += 1
        elif count_tokens(example) > max_tokens:
            drops["too_long"] += 1
        elif kept_of[trace.problem_id] == per_problem:
            drops["surplus"] += 1
        else:
            seen.add(thought)
            kept_of[trace.problem_id] += 1
            examples.append(example)
    return Curation(examples=examples, traces=len(traces), drops=dict(drops))


def _example(problem: Problem, trace: Trace) -> Example:
    return Example(
        problem_id=problem.id,
        family=problem.family,
        question=problem.question,
        history=problem.history,
        reasoning=trace.reasoning,
        answer=trace.answer,
        sample=trace.sample,
        teacher=trace.teacher,
    )
