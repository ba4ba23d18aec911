"""Claims about verdicts, row by row: inputs with the verdict that a careful person gives.

`cases/verify.jsonl` comes from public reports of other projects; `cases/published.jsonl` was written for this
test in the published forms of references and answers, right ones and near misses; `cases/probing.jsonl` was written to
find faults, by people who had not read the rules; `cases/neighbours.jsonl` holds neighbours of those faults. No
verdict in them was taken from a program.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill.verification.verdicts import grade, score_answer
from tests.distill.test_verdicts import problem, trace
from toolkit.records import Problem

CASES = Path(__file__).parent / "cases"
MOST_WRONG_ACCEPTED, MOST_RIGHT_REFUSED = 11, 50
"""Bounds for the probing rows, some of which ask for what no rule gives (number words of other languages, a unit of the
question)."""


def rows(name: str) -> list[Any]:
    """Make each row a parameter, named by its id and its topic."""
    values = [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]
    return [pytest.param(value, id=f"{value['id']} {value.get('about', '')}") for value in values]


@pytest.mark.parametrize("row", [*rows("verify.jsonl"), *rows("published.jsonl"), *rows("neighbours.jsonl")])
def test_a_verdict_is_that_of_a_careful_person(row: dict[str, Any]) -> None:
    item = problem(row.get("family", "user"), row["reference"])
    verdict = grade(item, trace(row["answer"]))
    readings = f"reference read as {verdict.reference_read!r}, answer as {verdict.answer_read!r}"
    assert verdict.correct == row["correct"], f"{row['reference']!r} ← {row['answer']!r}: {readings}"
    assert verdict.score == score_answer(item, row["answer"]), "a reward must be what a verdict says"


def test_no_more_probing_rows_than_before_are_judged_wrongly() -> None:
    accepted: list[tuple[str, str, str]] = []
    refused: list[tuple[str, str, str]] = []
    for parameter in rows("probing.jsonl"):
        row = parameter.values[0]
        item = Problem.create(
            family=row.get("family", "user"), question=row.get("question", "?"), answer=row["reference"], metadata={}
        )
        if (score_answer(item, row["answer"]) == 1) != row["correct"]:
            (refused if row["correct"] else accepted).append((row["id"], row["reference"], row["answer"]))
    assert len(accepted) <= MOST_WRONG_ACCEPTED, accepted
    assert len(refused) <= MOST_RIGHT_REFUSED, refused


def test_the_rows_of_each_form_hold_right_answers_and_near_misses() -> None:
    published = [parameter.values[0] for parameter in rows("published.jsonl")]
    counts = Counter((row["form"], row["correct"]) for row in published)
    assert len(published) >= 80
    for form in {row["form"] for row in published}:
        assert counts[form, True] >= 5 and counts[form, False] >= 5, form
