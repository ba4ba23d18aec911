"""Selects a training set from traces and verdicts in memory, as `toolkit distill` does, and records each dropped trace.

It measures and chooses as curation at size does (`distill.curation.facts`, `distill.curation.selection`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from distill.curation.facts import FACTS, Measures, empty_signatures, example_of, measure
from distill.curation.reasons import DROPS, KEPT, Counts, Dropped
from distill.curation.selection import Rules, select
from toolkit.records import Example, Problem, Trace, Verdict


@dataclass(frozen=True, kw_only=True)
class Curation(Counts):
    """The kept examples and the dropped traces, both in the order of the traces."""

    examples: list[Example]
    dropped: list[Dropped]


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
    numbers = {problem.id: number for number, problem in enumerate(problems)}
    judged = {(verdict.problem_id, verdict.sample): verdict for verdict in verdicts}
    facts = np.zeros(len(traces), dtype=FACTS)
    for i, trace in enumerate(traces):
        number, verdict = numbers[trace.problem_id], judged[trace.problem_id, trace.sample]
        is_wanted = verdict.correct and trace.problem_id not in test_ids
        measures = Measures(
            count_tokens=count_tokens if is_wanted else _no_tokens, benchmark=None, languages=False, signatures=False
        )
        facts[i] = measure(problems[number], number, trace, verdict, measures).row
    selection = select(
        facts,
        Rules(per_problem=per_problem, max_tokens=max_tokens),
        is_test=np.array([problem.id in test_ids for problem in problems], dtype=bool),
        in_majority=np.zeros(len(facts), dtype=bool),
        signatures=empty_signatures(0),
    )
    names = list(DROPS)
    examples, dropped = [], []
    for trace, code in zip(traces, selection.reasons.tolist(), strict=True):
        if code == KEPT:
            examples.append(example_of(problems[numbers[trace.problem_id]], trace))
        else:
            dropped.append(Dropped(problem_id=trace.problem_id, sample=trace.sample, reason=names[code - 1]))
    drops = dict.fromkeys(DROPS, 0) | Counter(each.reason for each in dropped)
    return Curation(kept=len(examples), drops=drops, examples=examples, dropped=dropped)


def _no_tokens(example: Example) -> int:
    """Count nothing: a wrong answer is dropped whatever its length."""
    return 0
