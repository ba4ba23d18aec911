"""Claims about verdicts: how an answer is read, who decides, and what a hostile answer cannot do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from distill.problems.families import FAMILIES, make_problems
from distill.verification.family_scorers import Form, family_answer
from distill.verification.verdicts import REFERENCE, grade, same_answer, score_answer
from tests.samples import TRACE
from toolkit.records import Problem, Trace


def trace(answer: str, *, closed: bool = True, reasoning: str = "", problem_id: str = "p") -> Trace:
    return replace(TRACE, problem_id=problem_id, reasoning=reasoning, answer=answer, closed=closed)


def problem(family: str, answer: str, **metadata: Any) -> Problem:
    return Problem.create(family=family, question=f"{family}?", answer=answer, metadata=metadata)


FAMILY_OF = {
    "number": ("gcd", "6"),
    "expression": ("countdown", "3*4 + 5"),
    "list": ("number_sorting", "['1', '2']"),
    "word": ("spell_backward", "olleh"),
    "text": ("family_relationships", "mother"),
    "lines": ("mini_sudoku", "1 2\n3 4"),
}
CASES: list[tuple[Form, str, str]] = [
    ("number", "42", "42"),
    ("number", "**42**", "42"),
    ("number", "The answer is 42.", "42"),
    ("number", "The answer is: 42", "42"),
    ("number", "**Answer:** 42", "42"),
    ("number", "Final answer\nAnswer:\n\n42", "42"),
    ("number", "The answer is 7. Wait.\nThe answer is 8.", "8"),
    ("number", "The answer to your question is 5. I hope that helps with all 3 of them.", "5"),
    ("number", r"So \boxed{-12} it is, after 3 steps.", "-12"),
    ("number", r"\[ \boxed{\text{12}} \]", "12"),
    ("number", "First 3, then 4.\n3 + 4 = 7", "7"),
    ("number", "x = 5", "5"),
    ("number", "$x = 5$", "5"),
    ("number", "The letter appears 3 times.", "3"),
    ("number", "1,234", "1234"),
    ("number", "+5.00", "5"),
    ("number", "−5", "-5"),
    ("number", "-0", "0"),
    ("number", "0.50", "0.5"),
    ("number", "3 + 4", ""),
    ("number", "7/2", ""),
    ("number", "none", ""),
    ("number", "", ""),
    ("expression", "(3 + 4) * 5", "(3 + 4) * 5"),
    ("expression", "(3 + 4) * 5 = 35", "(3 + 4) * 5"),
    ("expression", "35 = (3 + 4) * 5", "(3 + 4) * 5"),
    ("expression", "The answer is 3 × 4 − 2.", "3 * 4 - 2"),
    ("expression", r"\boxed{(3 + 4) \times 5}", "(3 + 4) * 5"),
    ("expression", "- 5*3+2", "5*3+2"),
    ("expression", "We write (as asked) 5*3+2 (which is 17)", "5*3+2"),
    ("expression", "`5*3+2`", "5*3+2"),
    ("expression", "17", ""),
    ("list", "['1', '2', '-3']", '["1", "2", "-3"]'),
    ("list", "Sorted: [1, 2, -3].", '["1", "2", "-3"]'),
    ("list", "The answer is:\n```python\n[\n  '1',\n  '2'\n]\n```", '["1", "2"]'),
    ("list", "1, 2, -3", '["1", "2", "-3"]'),
    ("list", "like ['9'] it is ['1', '2']", '["1", "2"]'),
    ("list", "1, 2, -3\n\nThis is a list of 3 numbers.", '["1", "2", "-3"]'),
    ("list", "no numbers", ""),
    ("word", "olleh", "olleh"),
    ("word", 'The word "hello" spelled backward is "olleh".', "olleh"),
    ("word", "**olleh**", "olleh"),
    ("word", "hello -> olleh", "olleh"),
    ("text", "Paris", "Paris"),
    ("text", 'The answer is "Paris".', "Paris"),
    ("text", "I think so.\n\n**Paris**\n", "Paris"),
    ("lines", "1 2\n3 4", "1 2\n3 4"),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_an_answer_is_read_as_a_person_would(form: Form, text: str, expected: str) -> None:
    family, answer = FAMILY_OF[form]
    assert family_answer(problem(family, answer, source_dataset=family), text) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reference_answer_is_graded_correct_however_it_is_dressed(family: str) -> None:
    for item in make_problems("test", per_family=20, seed=5, families=[family]):
        for dress in ("{}", "The answer is {}.", "**Answer:** {}", "Let me see.\n\n{}\n", r"\boxed{{{}}}"):
            verdict = grade(item, trace(dress.format(item.answer), problem_id=item.id))
            assert (verdict.correct, verdict.reason, verdict.score) == (True, "correct", 1.0), (dress, item)
            assert verdict.verifier == f"reasoning-gym:{family}" and verdict.problem_id == item.id


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_to_another_problem_is_wrong(family: str) -> None:
    items = make_problems("test", per_family=10, seed=5, families=[family])
    for item in items:
        others = [other for other in items if other.answer != item.answer]
        assert not any(grade(item, trace(other.answer)).correct for other in others)


def test_unclosed_thinking_is_truncated_and_a_missing_answer_is_empty() -> None:
    item = problem("gcd", "6")
    truncated = grade(item, trace("", closed=False, reasoning="The answer is 6"))
    assert (truncated.correct, truncated.reason, truncated.score) == (False, "truncated", 0.0)
    empty = grade(item, trace(" \n", reasoning="The answer is 6"))
    assert (empty.correct, empty.reason) == (False, "empty")


def test_the_reasoning_is_never_looked_into() -> None:
    assert not grade(problem("gcd", "6"), trace("I do not know", reasoning="\\boxed{6}")).correct


def test_another_expression_for_the_same_target_is_correct() -> None:
    item = problem("countdown", "3*4 + 5", source_dataset="countdown", numbers=[3, 4, 5], target=17)
    assert grade(item, trace("5 + 4*3")).correct
    assert not grade(item, trace("4*3 + 4 + 1")).correct
    assert not grade(item, trace("17")).correct


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('touch PWNED')",
        "9**9**9**9**9",
        "(" * 5000 + "1",
        "1+" * 5000 + "1",
        "5 + 4*3 if 1 else 0",
    ],
)
def test_a_countdown_answer_that_is_no_arithmetic_is_never_evaluated(
    hostile: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    item = problem("countdown", "3*4 + 5", source_dataset="countdown", numbers=[3, 4, 5], target=99)
    assert not grade(item, trace(hostile)).correct
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hostile", [["NaN"] * 3, ["nan"] * 3, ["2", "6", "9"], ["1", "5"], ["inf"] * 3])
def test_a_sorted_list_of_other_numbers_is_wrong(hostile: list[str]) -> None:
    item = problem(
        "number_sorting",
        "['1', '5', '9']",
        source_dataset="number_sorting",
        original_numbers=["5", "1", "9"],
        direction="ascending",
    )
    assert grade(item, trace("['1', '5', '9']")).correct
    assert not grade(item, trace(json.dumps(hostile))).correct


def test_a_scorer_that_raises_costs_that_trace_only() -> None:
    broken = problem(
        "number_sorting",
        "['1', '5']",
        source_dataset="number_sorting",
        direction="ascending",
        original_numbers=["one"],
    )
    verdict = grade(broken, trace("['1', '5']"))
    assert (verdict.correct, verdict.reason, verdict.score) == (False, "wrong", 0.0)
    assert grade(problem("gcd", "6", source_dataset="gcd"), trace("6")).correct


def test_a_users_family_never_reaches_a_scorer_that_it_was_not_made_for() -> None:
    for family in (*FAMILIES, "sudoku", "products", "user"):
        verdict = grade(problem(family, "12"), trace("The answer is 12."))
        assert (verdict.correct, verdict.verifier) == (True, REFERENCE), family


def test_a_verdict_says_how_it_read_both_sides() -> None:
    verdict = grade(problem("user", "#### 1,200"), trace("It costs $1,300.00."))
    assert (verdict.reference_read, verdict.answer_read) == ("number: 1,200", "number: $1,300.00")
    verdict = grade(problem("user", "2"), trace("It lies between 1 and 2."))
    assert verdict.answer_read.startswith("nothing: 2 numbers, 1, 2")
    gcd = grade(problem("gcd", "6", source_dataset="gcd"), trace("It is 8."))
    assert (gcd.reference_read, gcd.answer_read) == ("gcd: 6", "gcd: 8")


@pytest.mark.parametrize(
    ("reference", "same", "others"),
    [
        ("0.5", ["1/2", "0.5", r"\frac{1}{2}", "It is 50%."], ["7", "5", "2"]),
        ("Paris", ["Paris", "It is Paris.", "**paris**, the capital of France"], ["London", "not Paris"]),
        ("C", ["(C)", "C) Rome", "The answer is C."], ["D", "(A)"]),
        ("[1, 2]", ["[1,2]", "1, 2"], ["[2, 1]"]),
        ("['a', 'b']", ["['a', 'b']", "a, b"], ["['b', 'a']"]),
    ],
)
def test_answers_are_the_same_where_they_mean_the_same(reference: str, same: list[str], others: list[str]) -> None:
    item = problem("user", reference)
    for one in same:
        assert all(same_answer(item, one, other) for other in same), one
        assert not any(same_answer(item, one, other) for other in others), one
    assert not same_answer(item, "", ""), "what says nothing has no vote"


@pytest.mark.parametrize(
    ("reference", "answer", "is_correct"),
    [
        ("3.5", "So the answer is 7/2.", True),
        (r"\frac{3}{4}", r"Hence \boxed{0.75}", True),
        (r"$\frac{3}{4}$", r"\[ \boxed{\dfrac{3}{4}} \]", True),
        ("x^2 + 2x + 1", "**Answer:** $(x+1)^2$", True),
        ("3.5", "7/3", False),
        (r"\frac{3}{4}", "3 out of 5", False),
        ("2^10", "9**9**9**9", False),
    ],
)
def test_a_users_mathematics_is_compared_by_what_it_means(reference: str, answer: str, is_correct: bool) -> None:
    verdict = grade(problem("user", reference), trace(answer))
    assert (verdict.correct, verdict.verifier) == (is_correct, REFERENCE)


def test_letters_of_a_word_are_not_multiplied() -> None:
    assert grade(problem("user", "stop1"), trace("tops1")).reason == "wrong"


@pytest.mark.parametrize(("question", "is_right"), [("Which step is wrong?", 1), ("How many are red?", 0)])
def test_the_number_of_a_step_answers_a_question_for_a_step_alone(question: str, is_right: int) -> None:
    item = Problem.create(family="user", question=question, answer="8", metadata={})
    assert [score_answer(item, text) for text in ("Step 8", "It is in step 8.")] == [is_right, is_right]


@pytest.mark.parametrize("question", ["What is 18 mod 5?", r"Compute $18 \bmod{5}$.", "Find 18 modulo 5"])
def test_a_remainder_that_only_repeats_the_question_is_no_answer(question: str) -> None:
    asked = Problem.create(family="user", question=question, answer="3", metadata={})
    for answer in ("18 mod 5", r"\boxed{18 \bmod 5}"):
        assert score_answer(asked, answer) == 0
    assert score_answer(asked, "18 mod 5 = 3") == score_answer(asked, "23 mod 5") == 1
