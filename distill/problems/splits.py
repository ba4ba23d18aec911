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


def split_named(name: str) -> Split | None:
    """The split that a name such as `dev`, `train_sft` or `test-00000-of-00001` says; None for none or several."""
    words = re.split(r"[^a-z]+", name.lower().replace("held_out", "heldout").replace("held-out", "heldout"))
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None
