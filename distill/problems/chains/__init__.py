"""Chains of thought that a program writes for each family: what the teacher's cold start learns from."""

from __future__ import annotations

from collections.abc import Callable

from distill.problems.chains import arithmetic, letters
from toolkit.records import Problem

CHAINS: dict[str, Callable[[Problem], tuple[str, str]]] = {
    "chain_sum": arithmetic.chain_sum,
    "simple_equations": arithmetic.simple_equations,
    "gcd": arithmetic.gcd,
    "countdown": arithmetic.countdown,
    "letter_counting": letters.letter_counting,
    "number_sorting": letters.number_sorting,
    "spell_backward": letters.spell_backward,
}
"""Family → the program that returns (reasoning, answer) for one of its problems."""
