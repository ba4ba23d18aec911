"""The page marks as right what the grader of training and evaluation grades as correct."""

from __future__ import annotations

import pytest

from apps.chat.page.known_answers import is_right, right_answer
from tests.apps.scripted import EXAMPLES

FAMILIES = ("gcd", "chain_sum", "letter_counting", "spell_backward")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_right_answer_is_the_problems_own(family: str) -> None:
    import reasoning_gym

    for entry in reasoning_gym.create_dataset(family, size=40, seed=3):
        assert right_answer(entry["question"]) == entry["answer"], entry["question"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "form", ["{}", "The answer is **{}**.", "So it is 3.\n\nThe answer is {}", "**Answer:** {}\n", "84 + 1 = 85\n{}"]
)
def test_marks_agree_with_the_grader(family: str, form: str) -> None:
    import reasoning_gym

    from distill.verification.verdicts import score_answer
    from toolkit.records import Problem

    entries = list(reasoning_gym.create_dataset(family, size=8, seed=5))
    answers = [entry["answer"] for entry in entries]
    marks = []
    for i, entry in enumerate(entries):
        problem = Problem(
            id="x", family=family, question=entry["question"], answer=entry["answer"], metadata=entry["metadata"]
        )
        for given in (answers[i], answers[i - 1]):
            marks.append(is_right(entry["question"], form.format(given)))
            assert marks[-1] == (score_answer(problem, form.format(given)) == 1.0), (entry["question"], given)
    assert True in marks and False in marks


def test_the_examples_are_of_known_families_and_other_questions_are_not() -> None:
    assert [right_answer(example) for example in EXAMPLES] == ["12", "214", "4", "nosaer"]
    assert is_right("What is love?", "12") is None
    assert is_right(EXAMPLES[0], "") is False and is_right(EXAMPLES[0], "no idea") is False
