"""Rewards, each by a table of cases."""

from __future__ import annotations

import pytest

from distill.verification.rewards import accuracy, language_consistency, well_formed
from toolkit.records import Problem

GCD = Problem.create(family="gcd", question="What is the greatest common divisor of 12 and 18?", answer="6")


@pytest.mark.parametrize(
    ("completion", "is_right", "is_well_formed"),
    [
        ("18 = 12 + 6\n</think>\n\n6", 1.0, 1.0),
        ("18 = 12 + 6\n</think>\n\nThe answer is 6.", 1.0, 1.0),
        ("6\n</think>\n\n7", 0.0, 1.0),
        ("wrong\n</think>\n\nwrong", 0.0, 1.0),
        ("the answer is 6", 0.0, 0.0),
        ("18 = 12 + 6", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("6\n</think>\n\n", 0.0, 0.0),
        ("a\n</think>\n\n ", 0.0, 0.0),
        ("\n</think>\n\n6", 1.0, 0.0),
        ("a\n</think>\n\nb\n</think>\n\n6", None, 0.0),
        ("a <think> b\n</think>\n\n6", None, 0.0),
        ("a\n</think>\n\n<think>6", None, 0.0),
        ("a\n</ think>\n\n6", None, 0.0),
    ],
)
def test_accuracy_and_form_are_rewarded_apart(completion: str, is_right: float | None, is_well_formed: float) -> None:
    assert well_formed(GCD, completion) == is_well_formed
    if is_right is not None:
        assert accuracy(GCD, completion) == is_right


ENGLISH = "We divide the larger number by the smaller one and keep the remainder"
GERMAN = "Wir teilen die größere Zahl durch die kleinere und behalten den Rest"
CHINESE = "我们用较大的数除以较小的数并保留余数"


@pytest.mark.parametrize(
    ("reasoning", "low", "high"),
    [
        (ENGLISH, 1.0, 1.0),
        (GERMAN, 0.0, 0.0),
        (CHINESE, 0.0, 0.0),
        (f"{ENGLISH}.\n{GERMAN}.", 0.4, 0.6),
        (f"{ENGLISH}. {CHINESE}。", 0.3, 0.7),
        (f"{ENGLISH}: 18 = 1 * 12 + 6, gcd(12, 6) = 6.", 1.0, 1.0),
        ("18 = 12 + 6\n12 = 2 * 6 + 0", 1.0, 1.0),
        ("```python\ndef gcd(a, b):\n    while b: a, b = b, a % b\n    return a\n```", 1.0, 1.0),
        (r"\[ \gcd(a, b) = \gcd(b, a \bmod b) \]", 1.0, 1.0),
        ("ok", 1.0, 1.0),
        ("", 1.0, 1.0),
    ],
)
def test_language_consistency(reasoning: str, low: float, high: float) -> None:
    assert low <= language_consistency(GCD, f"{reasoning}\n</think>\n\n6") <= high


def test_the_questions_language_is_the_one_that_counts() -> None:
    german = Problem.create(
        family="gcd", question="Was ist der größte gemeinsame Teiler der beiden Zahlen?", answer="6"
    )
    assert language_consistency(german, f"{GERMAN}\n</think>\n\n6") == 1.0
    assert language_consistency(german, f"{ENGLISH}\n</think>\n\n6") == 0.0
    formula = Problem.create(family="gcd", question="gcd(12, 18) = ?", answer="6")
    assert language_consistency(formula, f"{CHINESE}\n</think>\n\n6") == 1.0
