"""A reinforced model's samples are kept if they are right and readable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill.problems.families import make_problems
from distill.problems.requests import FAMILY
from distill.teach import rejection
from distill.teach.teacher_recipe import quick
from tests.samples import TRACE
from toolkit.records import Problem, Trace, read_records

RECIPE = replace(quick().rejection_sft, samples=3, kept_a_problem=2, requests=5)


def test_samples_are_kept_once_up_to_so_many_and_each_fate_is_counted(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = make_problems("train", 2, 8)
    fates: dict[tuple[str, int], str] = {}

    def fate(problem: Problem, trace: Trace) -> str:
        told = ("kept", "wrong", "kept", "unreadable")[len(fates) % 4]
        fates[trace.problem_id, trace.sample] = told
        return told

    monkeypatch.setattr(rejection, "_fate", fate)
    texts, counts = rejection.write_training_set(taught / "seed-1" / "reason_rl", problems, RECIPE, 1, tmp_path)
    samples = list(read_records(tmp_path / rejection.ROLLOUTS, Trace))
    assert sum(counts.values()) == len(samples) + RECIPE.requests == len(problems) * RECIPE.samples + RECIPE.requests
    kept = [text for text in texts if text.problem.family != FAMILY]
    assert len(kept) == counts["kept"] and len(texts) == len(kept) + RECIPE.requests
    said = {(trace.problem_id, trace.reasoning) for trace in samples if fates[trace.problem_id, trace.sample] == "kept"}
    assert {(text.problem.id, text.reasoning) for text in kept} <= said
    assert len({(text.problem.id, text.reasoning) for text in kept}) == len(kept)


def test_sampling_that_was_broken_off_writes_the_same_file(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejection, "BATCH_SIZE", 8)
    problems, writer = make_problems("train", 2, 8), taught / "seed-1" / "reason_rl"
    (tmp_path / "broken").mkdir()
    rejection.write_training_set(writer, problems, RECIPE, 1, tmp_path)
    whole = (tmp_path / rejection.ROLLOUTS).read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "broken" / rejection.ROLLOUTS).write_bytes(b"".join(lines[:12]) + lines[12][:20])
    rejection.write_training_set(writer, problems, RECIPE, 1, tmp_path / "broken")
    assert (tmp_path / "broken" / rejection.ROLLOUTS).read_bytes() == whole


@pytest.mark.parametrize(
    ("reasoning", "answer", "closed", "fate"),
    [
        ("14 + 1 = 15", "15", True, "kept"),
        ("14 + 1 = 16", "16", True, "wrong"),
        ("14 + 1 = 15", "", False, "wrong"),
        ("Ich addiere eine Zahl nach der anderen.\n14 + 1 = 15", "15", True, "unreadable"),
        ("", "15", True, "unreadable"),
        ("14 + 1 = 15", "</think> 15", True, "unreadable"),
    ],
)
def test_right_and_readable_is_what_is_kept(reasoning: str, answer: str, closed: bool, fate: str) -> None:
    problem = Problem.create(
        family="chain_sum",
        question="State the final answer to the following arithmetic problem: 14 + 1 =",
        answer="15",
        metadata={"expression": "14 + 1"},
    )
    trace = replace(TRACE, problem_id=problem.id, reasoning=reasoning, answer=answer, closed=closed)
    assert rejection._fate(problem, trace) == fate
