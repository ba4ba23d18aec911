"""The whole line on a tiny student: every stage leaves its folder, and a second run finds nothing to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill import pipeline
from distill.pipeline import DistillConfig
from distill.problems.families import FAMILIES, make_problems
from tests.samples import TRACE
from tests.toolkit.test_sizing import FAST
from toolkit.cli.demo import sizing
from toolkit.cli.demo.demo import demo
from toolkit.cli.demo.sizing import choose_recipe
from toolkit.cli.options.decoders import open_decoder
from toolkit.errors import FolderConflict
from toolkit.figures.ledger import ledger_markdown, ledger_table
from toolkit.figures.recipe import Recipe, read_recipe, write_recipe
from toolkit.records import Problem, Trace, read_object, write_records
from toolkit.runs import read_manifest


def right_trace(problem: Problem) -> Trace:
    return replace(
        TRACE,
        problem_id=problem.id,
        reasoning=f"It is {problem.answer}.",
        answer=problem.answer,
        prompt_tokens=10,
        reasoning_tokens=5,
        completion_tokens=9,
    )


@pytest.fixture(scope="module")
def config(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    folder = tmp_path_factory.mktemp("traces")
    problems = make_problems("train", 20, 0, ("gcd", "chain_sum"))
    write_records(folder / "problems.jsonl", problems)
    write_records(folder / "traces.jsonl", [right_trace(problem) for problem in problems])
    return replace(
        pipeline.demo(), teacher=str(tiny_student), student=str(tiny_student), traces=folder / "traces.jsonl"
    )


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """A recipe chosen from given rates, and then made tiny."""
    return replace(choose_recipe(FAST, 20), ledger_per_family=1)


def made(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.glob("*/**/manifest.json")}


def test_the_line_runs_from_problems_to_report_and_a_second_time_does_nothing(
    config: DistillConfig, recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    write_recipe(out, recipe)
    ledger = demo(config, out, open_decoder)
    assert list(ledger.rows) == ["teacher", "base", "student", "int4"]
    assert {row.problems for row in ledger.rows.values()} == {len(FAMILIES)}
    assert ledger.rows["int4"].bytes < ledger.rows["student"].bytes
    assert read_object(out / "ledger.json") == ledger.to_dict()
    sized_to = "Sized to 20 minutes on 2 cores, AVX512 with BF16"
    assert sized_to in (out / "report.html").read_text()
    assert sized_to in ledger_table(ledger)
    assert sized_to in ledger_markdown(ledger)

    for made_here in ("student", "int4"):
        card = (out / made_here / "README.md").read_text()
        assert f"| {len(FAMILIES)} (digest {ledger.problems_digest}) | 1 sample a problem, greedy" in card

    before = made(out)
    assert len(before) == 6
    assert demo(config, out, open_decoder, minutes=20) == ledger
    assert before == made(out)


def test_a_new_run_measures_the_machine_and_keeps_the_recipe_and_the_time_taken(
    config: DistillConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "LEVELS", sizing.LEVELS[-1:])  # few problems are asked, however fast the machine is
    out = tmp_path / "run"
    ledger = demo(config, out, open_decoder, minutes=30)  # enough for a slow machine that is busy besides
    recipe = read_recipe(out)
    assert recipe is not None and recipe == ledger.recipe
    assert recipe.minutes == 30 and recipe.rates.training_token_s > 0
    assert recipe.taken_s is not None and recipe.taken_s.keys() == recipe.planned_s.keys()
    assert recipe.training_tokens == read_manifest(out / "student")["measured"]["train_tokens"]  # type: ignore[index]
    said = capsys.readouterr().err
    assert "measuring this machine" in said and "the plan" in said and "planned " in said


def test_other_minutes_than_those_of_the_run_are_refused_and_both_are_named(
    config: DistillConfig, recipe: Recipe, tmp_path: Path
) -> None:
    write_recipe(tmp_path, recipe)
    with pytest.raises(FolderConflict, match=r"sized to 20 minutes, not to --minutes \(60\)"):
        demo(config, tmp_path, open_decoder, minutes=60)


def test_a_run_of_a_version_without_recipes_is_refused_before_anything_is_measured(
    config: DistillConfig, tmp_path: Path
) -> None:
    (tmp_path / "student").mkdir()
    with pytest.raises(FolderConflict, match="holds a run without a recipe"):
        demo(config, tmp_path, open_decoder)
