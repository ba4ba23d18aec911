"""The programs that write chains of thought: every line must be true, every answer right."""

from __future__ import annotations

import re
from itertools import islice

import pytest
import reasoning_gym

from distill.problems.chains import arithmetic
from distill.problems.families import CHAINS, FAMILIES, draw
from toolkit.records import Problem


def test_every_family_has_a_chain() -> None:
    assert set(CHAINS) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_right_by_the_familys_own_scorer(family: str) -> None:
    score = reasoning_gym.get_score_answer_fn(family)
    for problem in islice(draw(family, 9), 200):
        _, answer = CHAINS[family](problem)
        entry = {"question": problem.question, "answer": problem.answer, "metadata": problem.metadata}
        assert score(answer, entry) == 1.0, problem.question


@pytest.mark.parametrize("family", ["chain_sum", "gcd"])
def test_every_link_of_a_line_has_the_same_value(family: str) -> None:
    for problem in islice(draw(family, 9), 200):
        reasoning, _ = CHAINS[family](problem)
        for line in reasoning.splitlines():
            assert len({eval(link) for link in line.split(" = ")}) == 1, line


@pytest.mark.parametrize(
    ("total", "change", "line"),
    [
        (62, 69, "62 + 69 = 69 + 62 = 129 + 2 = 131"),
        (97, -35, "97 - 35 = 67 - 5 = 62"),
        (62, -69, "62 - 69 = -(69 - 62) = -(9 - 2) = -7"),
        (-38, 90, "-38 + 90 = 90 - 38 = 60 - 8 = 52"),
        (-38, -45, "-38 - 45 = -(45 + 38) = -(75 + 8) = -83"),
        (80, -7, "80 - 7 = 73"),
        (-5, 5, "-5 + 5 = 5 - 5 = 0"),
    ],
)
def test_sums_are_turned_until_a_smaller_number_meets_a_larger(total: int, change: int, line: str) -> None:
    assert arithmetic._add(total, change) == (line, total + change)


def test_equation_lines_hold_for_the_solution() -> None:
    for problem in islice(draw("simple_equations", 9), 200):
        reasoning, answer = CHAINS["simple_equations"](problem)
        names = {problem.metadata["variable"]: int(answer)}
        for line in reasoning.splitlines():
            assert len({eval(link, {}, names) for link in line.split(" = ")}) == 1, line


def test_countdown_search_misses_no_solution_before_its_hit() -> None:
    for problem in islice(draw("countdown", 9), 200):
        reasoning, _ = CHAINS["countdown"](problem)
        *misses, hit = reasoning.splitlines()
        assert not hit.endswith("no") and all(line.endswith("no") for line in misses)
        for line in reasoning.splitlines():
            for left, right in re.findall(r"(\d+ [-+*] \d+) = (-?\d+)", line):
                assert eval(left) == int(right)


def test_spelled_letters_carry_the_running_count() -> None:
    problem = Problem.create(
        family="letter_counting", question="?", answer="3", metadata={"target_letter": "a", "span": ["Banana", "split"]}
    )
    reasoning, answer = CHAINS["letter_counting"](problem)
    assert reasoning == "Banana: b a1 n a2 n a3\nsplit: s p l i t"
    assert answer == "3"
