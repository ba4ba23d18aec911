"""How many verdicts are those of a careful person, row by row, on inputs that no program judged.

`cases/verify.jsonl` was gathered from public reports of other projects; `cases/published.jsonl` was written in the published
forms of references and answers, right ones and near misses. Many are still judged wrongly: the floors below may only rise,
and a change that makes one verdict right at the cost of another shows here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill.verification.verdicts import score_answer
from tests.distill.number_shapes import numbers, right_spellings, wrong_shapes
from tests.distill.test_verdicts import problem

CASES = Path(__file__).parent / "cases"
RIGHT_AT_LEAST = {"verify.jsonl": 46, "published.jsonl": 340}
"""Of 100 and of 478. A machine so slow that the algebra system runs out of its time may lose one or three."""


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", RIGHT_AT_LEAST)
def test_no_fewer_verdicts_than_before_are_those_of_a_careful_person(name: str) -> None:
    judged = [
        (score_answer(problem(row.get("family", "user"), row["reference"]), row["answer"]) == 1) == row["correct"]
        for row in rows(name)
    ]
    assert sum(judged) >= RIGHT_AT_LEAST[name]


def test_the_rows_of_each_form_hold_right_answers_and_near_misses() -> None:
    published = rows("published.jsonl")
    counts = Counter((row["form"], row["correct"]) for row in published)
    assert len(published) >= 80
    for form in {row["form"] for row in published}:
        assert counts[form, True] >= 5 and counts[form, False] >= 5, form


def test_each_number_meets_forty_wrong_shapes_and_twenty_right_spellings() -> None:
    drawn = numbers(seed=20)
    assert len({number.value for number in drawn}) == 200
    for number in drawn:
        assert len(set(wrong_shapes(number).values())) >= 40, number
        assert len(set(right_spellings(number).values())) >= 20, number
        assert not set(wrong_shapes(number).values()) & set(right_spellings(number).values()), number
