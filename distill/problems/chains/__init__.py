"""Writes chains of thought for each family by program; the teacher's cold start learns from them."""

from __future__ import annotations

from collections.abc import Callable

from distill.problems.chains import arithmetic, letters
from toolkit.records import Example, Problem

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


def worked_example(problem: Problem) -> Example:
    """Return a problem of one of these families with its program's chain of thought."""
    reasoning, answer = CHAINS[problem.family](problem)
    return Example.of(problem, reasoning=reasoning, answer=answer, sample=0, teacher="program")
