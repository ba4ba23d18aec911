"""Claims about numbers as references: no text that only contains one is accepted, and every usual spelling is.

Both kinds are made from 200 drawn references; see `number_shapes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest

from distill.verification.verdicts import score_answer
from tests.distill.number_shapes import Number, numbers, right_spellings, wrong_shapes
from tests.distill.test_verdicts import problem

NUMBERS = numbers(seed=20)
REFERENCES = ("#### {}", r"\boxed{{{}}}", "${}$", "{}.", "We add them.\n#### {}", r"So $x = \boxed{{{}}}$.")


def by_name(make: Callable[[Number], dict[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Return all pairs of a reference and a text by the text's name; every second fraction is in LaTeX."""
    pairs = defaultdict(list)
    for i, number in enumerate(NUMBERS):
        for name, text in make(number).items():
            pairs[name].append((number.latex if i % 2 else number.text, text))
    return pairs


WRONG, RIGHT = by_name(wrong_shapes), by_name(right_spellings)


@pytest.mark.parametrize("name", WRONG)
def test_no_wrong_shape_is_accepted(name: str) -> None:
    accepted = [pair for pair in WRONG[name] if score_answer(problem("user", pair[0]), pair[1]) != 0]
    assert not accepted, f"{len(accepted)} of {len(WRONG[name])}, as {accepted[:3]}"


@pytest.mark.parametrize("name", RIGHT)
def test_every_right_spelling_is_accepted(name: str) -> None:
    refused = [pair for pair in RIGHT[name] if score_answer(problem("user", pair[0]), pair[1]) != 1]
    assert not refused, f"{len(refused)} of {len(RIGHT[name])}, as {refused[:3]}"


@pytest.mark.parametrize("form", REFERENCES)
def test_a_reference_in_a_published_form_is_the_number_in_it(form: str) -> None:
    for number, other in zip(NUMBERS[::4], NUMBERS[1::4], strict=True):
        item = problem("user", form.format(number.latex))
        assert score_answer(item, rf"\boxed{{{number.latex}}}") == 1, (item.answer, number)
        assert score_answer(item, rf"\boxed{{{other.latex}}}") == 0, (item.answer, other)


def test_each_reference_meets_forty_wrong_shapes_and_twenty_right_spellings() -> None:
    assert len({number.value for number in NUMBERS}) == 200
    for number in NUMBERS:
        assert len(set(wrong_shapes(number).values())) >= 40, number
        assert len(set(right_spellings(number).values())) >= 20, number
        assert not set(wrong_shapes(number).values()) & set(right_spellings(number).values()), number
