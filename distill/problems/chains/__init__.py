"""Chains of thought that a program writes for each family: what the teacher's cold start learns from."""

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
"""Family → the program that returns (reasoning, answer) for one of its problems."""


def worked_example(problem: Problem) -> Example:
    """A problem of one of these families with its program's chain of thought."""
    reasoning, answer = CHAINS[problem.family](problem)
    return Example.of(problem, reasoning=reasoning, answer=answer, sample=0, teacher="program")
