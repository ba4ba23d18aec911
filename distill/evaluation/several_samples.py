"""Judges problems by several samples of each: whether one of them is right, and whether their majority is.

    pass@k    whether any of a problem's k samples is right
    maj@k     whether the answer that most of them give is right (cons@k in DeepSeek-R1's report, section 2.2.4)

Nothing is graded twice: a majority takes the verdict of a sample that gave its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from distill.verification.code.unit_tests import TESTS
from distill.verification.verdicts import same_answer
from toolkit.figures.ledger import Outcome, read_outcomes
from toolkit.formats.thought_forms import without_thoughts

Samples = Sequence[Outcome]
"""All graded samples of one problem."""


def samples_by_problem(folder: Path) -> list[Samples]:
    """Read an evaluation folder's samples, problem by problem."""
    return [list(samples) for _, samples in groupby(read_outcomes(folder), key=lambda outcome: outcome.problem.id)]


def is_passed(samples: Samples) -> bool:
    return any(sample.verdict.correct for sample in samples)


def votes_of(by_problem: Sequence[Samples]) -> dict[str, tuple[float, float]]:
    """Return `consensus` by problem id; no two programs are equal, so problems that ask for one are left out."""
    return {
        samples[0].problem.id: consensus(samples) for samples in by_problem if TESTS not in samples[0].problem.metadata
    }


def consensus(samples: Samples) -> tuple[float, float]:
    """Return whether a problem's majority answer is right, and the share of its samples that give it.

    Answers that mean the same count as one. A sample without an answer has no vote; the first of equally frequent
    answers wins; if no sample has an answer, both numbers are 0.
    """
    votes: list[list[Outcome]] = []
    for sample in samples:
        if sample.verdict.reason not in ("correct", "wrong"):
            continue
        same = (vote for vote in votes if _agree(vote[0], sample))
        if (vote := next(same, None)) is not None:
            vote.append(sample)
        elif _agree(sample, sample):
            votes.append([sample])
    if not votes:
        return 0.0, 0.0
    majority = max(votes, key=len)  # the first of equally frequent ones
    return float(majority[0].verdict.correct), len(majority) / len(samples)


def _agree(one: Outcome, other: Outcome) -> bool:
    return same_answer(one.problem, without_thoughts(one.trace.answer), without_thoughts(other.trace.answer))
