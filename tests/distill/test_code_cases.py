"""Programs with the score that the usual judges give, row by row.

`cases/code.jsonl` was gathered from public reports; `cases/code_neighbours.jsonl` holds neighbours of its faults.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.verification.code.unit_tests import TESTS
from distill.verification.verdicts import score_answer
from tests.distill.test_verdicts import problem

CASES = Path(__file__).parent / "cases"
ROWS = [
    json.loads(line)
    for name in ("code.jsonl", "code_neighbours.jsonl")
    for line in (CASES / name).read_text("utf-8").splitlines()
]


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row['id']} {row['about']}") for row in ROWS])
def test_a_program_scores_as_the_usual_judges_have_it(row: dict[str, Any]) -> None:
    item = problem("user", "", **{TESTS: row["tests"]})
    assert score_answer(item, row["completion"]) == pytest.approx(row["score"]), row["completion"]
