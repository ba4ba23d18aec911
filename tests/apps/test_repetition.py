"""Circles of any length are found, and work that only looks repetitive is not taken for one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.chat.view.repetition import N_GRAM, TIMES, WINDOW, is_repeating, words


def circle(length: int, times: int) -> list[int]:
    return random.Random(length).sample(range(10_000), length) * times


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100, WINDOW // TIMES - N_GRAM])
def test_a_circle_of_any_length_is_found_after_some_rounds(length: int) -> None:
    apart = -(-N_GRAM // length) * length  # from one copy to the next one that does not overlap it
    rounds = -(-((TIMES - 1) * apart + N_GRAM) // length)
    assert is_repeating([*range(20_000, 20_100), *circle(length, rounds)])
    assert not is_repeating([*range(20_000, 20_100), *circle(length, rounds - 1)])


def test_a_circle_left_behind_is_none() -> None:
    assert is_repeating(circle(40, 6))
    assert not is_repeating([*circle(40, 6), *range(20_000, 20_000 + N_GRAM)])


def test_a_circle_is_found_in_words_where_nobody_knows_the_ids() -> None:
    said = "Wait, I must look at this number once more. "
    assert is_repeating(words(said * 13)[:-1]) and not is_repeating(words(said * 9)[:-1])
    assert "".join(words(said)) == said


def test_rows_of_one_form_with_other_numbers_are_none() -> None:
    rows = [token for i in range(300) for token in (*range(N_GRAM - 2), 1000 + i)]
    assert not is_repeating(rows)


def test_the_chains_that_programs_write_for_training_are_none() -> None:
    """The tokens are single bytes, in which the same words last longest."""
    from distill.problems.families import CHAINS, make_problems

    for problem in make_problems("train", 20, 0, tuple(CHAINS)):
        reasoning = CHAINS[problem.family](problem)[0].encode()
        assert not any(is_repeating(reasoning[:end]) for end in range(len(reasoning))), reasoning


@given(st.lists(st.integers(0, 1), max_size=400))
def test_the_count_equals_one_by_text_search(ids: list[int]) -> None:
    text = "".join(map(str, ids))[-WINDOW:][::-1]
    assert is_repeating(ids) == (len(ids) >= N_GRAM and text.count(text[:N_GRAM]) >= TIMES)
