"""Which problems are trained on, which watch the training, and which are kept for measuring.

A data set that brings splits keeps them (`Problem.split`). Everywhere else the hash of the question decides, so train,
validation and test are disjoint whatever the source, the seed or the size. The hash folds case and white space:
trivial variants of one question fall into one split.
"""

from __future__ import annotations

from collections.abc import Iterable

from toolkit.records import Problem, Split, content_hash

TEST_PERCENT = 10
VALIDATION_PERCENT = 5


def split_of(problem: Problem) -> Split:
    """The split that a problem belongs to: its own, or else the one that the hash of its question decides."""
    if problem.split is not None:
        return problem.split
    percent = int(content_hash(problem.transcript), 16) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def of_split(problems: Iterable[Problem], split: Split) -> list[Problem]:
    """The problems of one split, in their order."""
    return [problem for problem in problems if split_of(problem) == split]
