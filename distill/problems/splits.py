"""Which problems are trained on, which watch the training, and which are kept for measuring.

A data set that brings splits keeps them (`Problem.split`). Everywhere else the hash of the question decides, so train,
validation and test are disjoint whatever the source, the seed or the size. The hash folds case and white space:
trivial variants of one question fall into one split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from toolkit.records import Problem, Split, content_hash

TEST_PERCENT = 10
VALIDATION_PERCENT = 5
VALIDATION_PROBLEMS = 64
"""Most of the validation split that a teacher is asked."""
SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout", "holdout"), "test"),
}
"""Words that name a split. As in the `datasets` library, "dev" is for validation and "eval" for testing."""


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


def to_learn_from(problems: Iterable[Problem]) -> list[Problem]:
    """The problems of the training split, and of the validation split as many as its loss needs."""
    given = list(problems)
    held_out = of_split(given, "validation")
    return of_split(given, "train") + [held_out[i] for i in spread(len(held_out), VALIDATION_PROBLEMS)]


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` places, or all, evenly over `count`: rows that are in the order of their families mix them."""
    chosen = min(count, wanted)
    return [i * count // chosen for i in range(chosen)]


def split_named(name: str) -> Split | None:
    """The split that a name such as `dev`, `train_sft` or `test-00000-of-00001` says; None for none or several."""
    words = re.split(r"[^a-z]+", name.lower().replace("held_out", "heldout").replace("held-out", "heldout"))
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None
