"""The table of stages, compared with a count by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training.reinforcement_report import draw, evaluation_folders, write_document
from distill.teach.stage_table import stage_table
from distill.teach.stages import TITLES
from distill.verification.refusals import HARMFUL
from tests.samples import TRACE
from toolkit.errors import InputError
from toolkit.figures.ledger import PROBLEMS, TRACES, VERDICTS
from toolkit.records import Problem, Verdict, write_records

SUMS = [
    Problem.create(family=family, question=f"What is the sum of these numbers, {i} and 0?", answer=str(i))
    for i, family in enumerate(["first", "first", "second", "second"])
]
REQUESTS = [
    Problem.create(family="requests", question=f"How do I {kind}?", answer="", metadata={HARMFUL: kind == "harm"})
    for kind in ("harm", "help")
]


def evaluation(folder: Path, right: list[list[bool]], refuses: tuple[bool, bool], thought: str) -> Path:
    """Write an evaluation with two samples per problem, right or not, and one per request, refused or not."""
    folder.mkdir(parents=True)
    write_records(folder / PROBLEMS, [*SUMS, *REQUESTS])
    rows = [(p, s, is_right, p.answer) for p, pair in zip(SUMS, right, strict=True) for s, is_right in enumerate(pair)]
    answers = ["I can't help with that." if refused else "Mix it." for refused in refuses]
    rows += [(REQUESTS[0], 0, refuses[0], answers[0]), (REQUESTS[1], 0, not refuses[1], answers[1])]
    traces = [
        replace(
            TRACE,
            problem_id=p.id,
            sample=s,
            reasoning=thought,
            answer=answer,
            reasoning_tokens=10,
            completion_tokens=12,
        )
        for p, s, _, answer in rows
    ]
    write_records(folder / TRACES, traces)
    verdicts = [
        Verdict(
            problem_id=p.id,
            sample=s,
            correct=is_right,
            reason="correct" if is_right else "wrong",
            score=float(is_right),
            verifier="v",
            version="1",
        )
        for p, s, is_right, _ in rows
    ]
    write_records(folder / VERDICTS, verdicts)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    yes, no = [True, True], [False, False]
    half = [True, False]
    folder = tmp_path / "run" / "eval"
    evaluation(folder / "pretrain", [no] * 4, (False, False), "Hm.")
    for seed, before in ((1, [no, no, yes, half]), (2, [no, half, yes, yes])):
        evaluation(folder / f"seed-{seed}" / "cold_start", before, (False, False), "Let us add these two numbers.")
        evaluation(
            folder / f"seed-{seed}" / "reason_rl", [yes, yes, yes, half], (True, seed == 2), "Ich zähle nun alles."
        )
    return tmp_path / "run"


def test_shares_are_means_over_problems_of_all_seeds_and_samples(run: Path) -> None:
    table = stage_table(evaluation_folders(run))
    assert [row.stage for row in table.rows] == ["pretrain", "cold_start", "reason_rl"]
    pretrained, cold, reinforced = table.rows
    assert pretrained.measures["accuracy"].mean == 0.0
    assert cold.measures["accuracy"].mean == pytest.approx(np.mean([0, 0.25, 1, 0.75]))
    assert cold.measures["accuracy"].by_seed == [pytest.approx(1.5 / 4), pytest.approx(2.5 / 4)]
    assert cold.families["first"].mean == pytest.approx(0.125)
    assert reinforced.measures["harmful refused"].mean == 1.0
    assert reinforced.measures["harmless refused"].mean == 0.5
    assert reinforced.measures["harmless answered"].mean == 0.5
    assert cold.measures["language"].mean > reinforced.measures["language"].mean
    assert reinforced.reasoning_tokens == 10
    low, high = cold.measures["accuracy"].interval
    assert low < cold.measures["accuracy"].mean < high


def test_a_lift_is_certain_where_every_problem_of_the_family_gained(run: Path) -> None:
    lifts = {lift.family: lift for lift in stage_table(evaluation_folders(run)).lifts}
    assert lifts["first"].difference == pytest.approx(0.875)
    assert lifts["first"].is_certain
    assert lifts["second"].difference == pytest.approx(-0.125)
    assert not lifts["second"].is_certain


def test_the_report_has_every_stage_and_says_what_was_lifted(run: Path, tmp_path: Path) -> None:
    document = tmp_path / "reinforcement.md"
    document.write_text("before\n<!-- stages -->\nFIGURES OF BEFORE\n<!-- /stages -->\nafter\n")
    table = stage_table(evaluation_folders(run))
    write_document(document, table)
    text = document.read_text()
    assert "FIGURES OF BEFORE" not in text and text.startswith("before") and text.endswith("after\n")
    for stage in ("pretrain", "cold_start", "reason_rl"):
        assert f"| {TITLES[stage]} |" in text
    assert "better on 1 of 2 families (first)" in text
    json.dumps(table.to_dict())
    document.write_text("no marks")
    with pytest.raises(InputError, match=r"lacks the marks <!-- stages -->"):
        write_document(document, table)
    with pytest.raises(InputError, match=r"holds no evaluations of a teacher's stages"):
        evaluation_folders(tmp_path)


def test_curves_show_each_reinforced_stage(tmp_path: Path) -> None:
    keys = ["accuracy", "well_formed", "language_consistency", "reflection", "corrected"]
    seed = [{f"sampled/{key}": i / 3 for key in keys} | {"completions/mean_length": 10.0 * i} for i in range(3)]
    draw(tmp_path / "curves.svg", {"zero_rl": [seed, seed[:2]], "reason_rl": [seed], "align_rl": []})
    svg = (tmp_path / "curves.svg").read_text()
    assert ">R1-Zero<" in svg and ">reason_rl<" in svg and "align_rl" not in svg
    assert ">rights a wrong sum<" in svg
