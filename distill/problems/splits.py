"""Splits problems into those to train on, to validate on and to test on.

A data set's own splits are kept (`Problem.split`). Otherwise the hash of the question decides, so train, validation and
test are disjoint whatever the source, the seed or the size. The hash folds case and white space: trivial variants of a
question fall into one split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from toolkit.errors import InputError
from toolkit.records import Problem, Split, content_hash

TEST_PERCENT = 10
VALIDATION_PERCENT = 5
VALIDATION_PROBLEMS = 64
"""Most problems of the validation split that a teacher is asked."""
TRAINING_PER_VALIDATION = 100
"""Procedural problems of the training split per one of the validation split."""
FEW_HELD_OUT = 3
"""Fewer problems than this measure nothing."""
HOLD_OUT_MORE = (
    'give more problems, or write "test" into a column \'split\' of some and "train" into that of the others'
)
SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout", "holdout"), "test"),
}
"""Words that name a split. As in the `datasets` library, "dev" means validation and "eval" testing."""


def split_of(problem: Problem) -> Split:
    """Return a problem's own split, or else the one that the hash of its question decides."""
    if problem.split is not None:
        return problem.split
    percent = int(content_hash(problem.transcript), 16) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def of_split(problems: Iterable[Problem], split: Split) -> list[Problem]:
    """Return the problems of one split, in their order."""
    return [problem for problem in problems if split_of(problem) == split]


def check_training_split(problems: Sequence[Problem], place: Path | None) -> None:
    """Raise `InputError` if none of a user's problems, which are in `place`, may be learned from."""
    if not of_split(problems, "train"):
        raise InputError(f"all {len(problems)} problems of {place} fall into the test and validation splits; add more")


def to_learn_from(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems of the training split, and as many of the validation split as its loss needs."""
    given = list(problems)
    held_out = of_split(given, "validation")
    return of_split(given, "train") + [held_out[i] for i in spread(len(held_out), VALIDATION_PROBLEMS)]


def spread(count: int, wanted: int) -> list[int]:
    """Spread `wanted` indices evenly over `count`, so that rows sorted by family give every family."""
    chosen = min(count, wanted)
    return [i * count // chosen for i in range(chosen)]


def split_named(name: str) -> Split | None:
    """Return the split that a name such as `dev`, `train_sft` or `test-00000-of-00001` means; None if unclear."""
    words = re.split(r"[^a-z]+", name.lower().replace("held_out", "heldout").replace("held-out", "heldout"))
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None
