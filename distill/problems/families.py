"""Draws problems of the procedural families: reasoning-gym's tasks, at difficulties that a small teacher can learn.

Sources: reasoning-gym (Stojanovski et al. 2025) for tasks and scorers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.problems.chains import arithmetic, letters
from distill.problems.splits import split_of
from toolkit.errors import InputError, MissingExtra
from toolkit.records import Example, Problem, Split

LEDGER_PER_FAMILY = 48
"""Seven families: 336 problems, so that a 95 % interval is about ten points wide at its widest."""
LEDGER_SEED = 0
PATIENCE = 2_000
"""Consecutive draws without a new problem after which a family counts as exhausted."""


CHAINS: dict[str, Callable[[Problem], arithmetic.Chain]] = {
    "chain_sum": arithmetic.chain_sum,
    "simple_equations": arithmetic.simple_equations,
    "gcd": arithmetic.gcd,
    "countdown": arithmetic.countdown,
    "letter_counting": letters.letter_counting,
    "number_sorting": letters.number_sorting,
    "spell_backward": letters.spell_backward,
}
"""For each family the program that returns (reasoning, answer) for one of its problems."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A reasoning-gym task at the difficulty that the built-in teacher can learn and a 135M base model mostly can't."""

    name: str
    settings: Mapping[str, Any]
    """reasoning-gym's own configuration fields for the task."""
    reword: Callable[[str], str] = str
    """Shortens the task's wording if its instructions are longer than its question."""


def _reword_countdown(question: str) -> str:
    line = re.sub(r"\s+", " ", question.split("Final answer format")[0]).strip()
    return line + " Answer with the expression alone."


def _reword_number_sorting(question: str) -> str:
    return question.split("\n")[0] + "\nAnswer with a list of strings, like ['-69', '7', '11']."


_FAMILIES = (
    Family(name="chain_sum", settings={"min_terms": 3, "max_terms": 4, "min_digits": 2, "max_digits": 2}),
    Family(
        name="simple_equations",
        settings={"min_terms": 2, "max_terms": 3, "max_value": 10, "operators_weights": [0.45, 0.45, 0.1]},
    ),
    Family(name="gcd", settings={"min_value": 2, "max_value": 150}),
    Family(
        name="countdown",
        settings={
            "min_numbers": 3,
            "max_numbers": 3,
            "max_value": 12,
            "min_target": 10,
            "max_target": 99,
            "operators": ("+", "-", "*"),
        },
        reword=_reword_countdown,
    ),
    Family(name="letter_counting", settings={"min_words": 4, "max_words": 7}),
    Family(
        name="number_sorting",
        settings={"min_numbers": 3, "max_numbers": 5, "max_decimals": 0, "min_value": -99.0, "max_value": 99.0},
        reword=_reword_number_sorting,
    ),
    Family(name="spell_backward", settings={"min_word_len": 4, "max_word_len": 9}),
)
FAMILIES = tuple(family.name for family in _FAMILIES)


def make_problems(split: Split, per_family: int, seed: int, families: Sequence[str] = FAMILIES) -> list[Problem]:
    """Draw distinct problems of one split, `per_family` of each family, with the families interleaved.

    Raises `InputError` if a family is unknown or has too few problems.
    """
    columns = []
    for name in families:
        columns.append(_distinct(draw(name, seed), name, split, per_family))
    return [problem for row in zip(*columns, strict=True) for problem in row]


def ledger_problems() -> list[Problem]:
    """Return the frozen test problems on which every row of a ledger is measured."""
    return make_problems("test", LEDGER_PER_FAMILY, LEDGER_SEED)


def _distinct(drawn: Iterator[Problem], name: str, split: Split, count: int) -> list[Problem]:
    problems: dict[str, Problem] = {}
    misses = 0
    for problem in drawn:
        misses += 1
        if split_of(problem) == split and problem.id not in problems:
            problems[problem.id] = problem
            misses = 0
        if len(problems) == count:
            break
        if misses == PATIENCE:
            raise InputError(f"family {name!r} has only {len(problems)} {split} problems, not {count}; ask for fewer")
    return list(problems.values())


def draw(name: str, seed: int, **settings: Any) -> Iterator[Problem]:
    """Yield endless problems of one family; the same seed gives the same ones. `settings` replace those of the
    family."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise MissingExtra("reasoning_gym", "distill") from error
    family = next((family for family in _FAMILIES if family.name == name), None)
    if family is None:
        raise InputError(f"unknown family {name!r}; known are {', '.join(FAMILIES)}")
    # reasoning-gym seeds entry i with seed + i: seeds far apart share no entries
    entries = reasoning_gym.create_dataset(
        name, seed=seed * 10_000_000, size=10_000_000, **{**family.settings, **settings}
    )
    index = 0
    while True:
        index += 1
        try:
            entry = entries[index]
        except ValueError:  # countdown gives up on an entry whose target it cannot reach
            continue
        if "0 = 0" in entry["question"]:  # simple_equations sometimes subtracts the variable from itself
            continue
        metadata = {key: value for key, value in entry["metadata"].items() if key != "difficulty"}
        yield Problem.create(
            family=name, question=family.reword(entry["question"]), answer=entry["answer"], metadata=metadata
        )


def worked_example(problem: Problem) -> Example:
    """Return a problem of one of these families with its program's chain of thought."""
    reasoning, answer = CHAINS[problem.family](problem)
    return Example.of(problem, reasoning=reasoning, answer=answer, sample=0, teacher="program")
