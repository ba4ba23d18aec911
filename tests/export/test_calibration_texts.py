"""Some of the questions that a student learned from are kept to check its export against."""

from __future__ import annotations

from export.calibration.texts import HELD_OUT_SHARE, questions_held_out, shared_lengths
from toolkit.records import content_hash


def test_an_eighth_of_the_questions_is_held_out_whatever_the_others_are() -> None:
    questions = {f"What is {number} + 1?" for number in range(800)}
    held_out = questions_held_out(questions)
    assert 70 <= len(held_out) <= 130
    some = set(sorted(questions)[:400])
    assert questions_held_out(some) == held_out & some


def test_of_a_few_questions_one_is_held_out_where_no_hash_falls_into_the_share() -> None:
    outside = [
        question
        for question in (f"What is {number} + 1?" for number in range(40))
        if int(content_hash(question), 16) >= HELD_OUT_SHARE * 2**64
    ]
    for count in (2, 17):
        assert len(questions_held_out(set(outside[:count]))) == 1
    assert not questions_held_out(set(outside[:1]))
    assert not questions_held_out(set())


def test_a_beginning_counts_as_shared_with_any_earlier_text() -> None:
    texts = [[5, 6, 7], [5, 6, 8, 7], [6, 7], [5, 6, 8, 9], [5, 6, 7], [5, 6, 7, 1]]
    assert shared_lengths(texts) == [0, 2, 0, 3, 3, 3]
