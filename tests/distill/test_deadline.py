"""A run that ends by the clock has reached its last rate by then; one that resumes has its earlier time behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.training import train as training
from distill.training.journal import LOSS, VALIDATION_LOSS
from distill.training.optimizers.schedule import rate_share
from distill.training.train import StudentTrainer, tokenize, train
from distill.training.train_config import TrainConfig
from distill.training.validation import Validation
from tests.distill.test_train import examples, interrupted_after, losses, rates, tiny_recipe
from toolkit.formats.chat_format import ChatFormat

UPDATES = 40
"""Of ten epochs of four batches."""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still but for what a test adds, and for a second that each update takes."""
    now = [0.0]
    monkeypatch.setattr(training, "monotonic", lambda: now[0])
    training_step = StudentTrainer.training_step

    def step(*values: Any, **named: Any) -> Any:
        now[0] += 1
        return training_step(*values, **named)

    monkeypatch.setattr(StudentTrainer, "training_step", step)
    return now


def validated(folder: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / LOSS).read_text().splitlines())
    return [(line["step"], line[VALIDATION_LOSS]) for line in lines if VALIDATION_LOSS in line]


def recipe(**changes: object) -> TrainConfig:
    return replace(tiny_recipe(), epochs=10, warmup_share=0.0, **changes)  # type: ignore[arg-type]


def test_the_rate_falls_by_the_clock_and_the_update_at_the_limit_is_the_last(
    tiny_student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = examples(32)
    measured = train(tiny_student, made[:16], recipe(max_minutes=0.1), tmp_path, made[16:])
    assert measured["updates"] == len(losses(tmp_path)) == 6
    tokens = sum(map(len, tokenize(made[:16], ChatFormat.from_folder(tmp_path))["input_ids"]))
    assert measured["tokens"] == round(tokens * 6 / 4)
    assert rates(tmp_path) == pytest.approx([3e-3 * rate_share(update, 6, 1) for update in range(6)])
    assert [step for step, _ in validated(tmp_path)] == [2, 3, 5, 6], "parts of what fits the time, not of ten epochs"
    assert measured[VALIDATION_LOSS] == pytest.approx(validated(tmp_path)[-1][1], abs=1e-4)
    said = capsys.readouterr().err
    assert "train: train.max_minutes (0.1) ends it after 6 updates\n" in said and "train  6/6  100 %" in said


@pytest.mark.parametrize("kind", ["cosine", "wsd", "linear"])
def test_what_is_done_between_updates_takes_time_and_no_rate_rises_again(
    kind: str, tiny_student: Path, tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Validation.measure

    def slowly(*values: Any) -> float:
        clock[0] += 2
        return measure(*values)

    monkeypatch.setattr(Validation, "measure", slowly)
    made = examples(32)
    chosen = recipe(max_minutes=0.5, schedule=kind, warmup_steps=3)
    measured = train(tiny_student, made[:16], chosen, tmp_path, made[16:])
    assert 30 - 4 * 2 - 1 <= measured["updates"] <= 30 - 3 * 2 + 1  # a measurement may use up the time of the last
    found = rates(tmp_path)
    assert found[:3] == pytest.approx([1e-3, 2e-3, 3e-3])
    assert found[2:] == sorted(found[2:], reverse=True)
    assert 0 < found[-1] < 1.5e-3


def test_a_limit_that_is_not_reached_changes_nothing(tiny_student: Path, tmp_path: Path) -> None:
    for name, minutes in (("limited", 1.0), ("free", 0.0)):
        (tmp_path / name).mkdir()
        train(tiny_student, examples(16), recipe(max_minutes=minutes), tmp_path / name)
    assert len(losses(tmp_path / "free")) == UPDATES
    assert (tmp_path / "limited" / LOSS).read_text().count("step") == UPDATES
    assert losses(tmp_path / "limited") == losses(tmp_path / "free")


@pytest.mark.parametrize("stop", [4, 9])
def test_the_time_before_an_interrupt_counts(
    stop: int, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train(tiny_student, examples(16), recipe(max_minutes=0.15), whole)
    with interrupted_after(stop, monkeypatch), pytest.raises(KeyboardInterrupt):
        train(tiny_student, examples(16), recipe(max_minutes=0.15), broken)
    for _ in range(2):  # the second one finds the last update made
        train(tiny_student, examples(16), recipe(max_minutes=0.15), broken)
    assert len(losses(whole)) == 9
    assert losses(broken) == losses(whole)
    assert rates(broken) == rates(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
