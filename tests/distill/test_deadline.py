"""A run that ends by the clock has reached its last rate by then; one that resumes has its earlier time behind it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from distill.training.journal import LOSS, VALIDATION_LOSS, TrainingJournal
from distill.training.optimizers import schedule
from distill.training.train import tokenize, train
from distill.training.train_config import TrainConfig
from tests.distill.test_train import examples, losses, rates, tiny_recipe
from toolkit.formats.chat_format import ChatFormat

UPDATES = 40
"""Of ten epochs of four batches."""


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A clock by which each update takes a second."""
    ticks = count()
    monkeypatch.setattr(schedule, "monotonic", lambda: float(next(ticks)))
    return ticks


def recipe(**changes: object) -> TrainConfig:
    return replace(tiny_recipe(), epochs=10, warmup_share=0.0, **changes)  # type: ignore[arg-type]


def test_the_rate_falls_by_the_clock_and_the_update_at_the_limit_is_the_last(
    tiny_student: Path, tmp_path: Path
) -> None:
    made = examples(32)
    measured = train(tiny_student, made[:16], recipe(max_minutes=0.1), tmp_path, made[16:])
    assert measured["updates"] == len(losses(tmp_path)) == 6
    tokens = sum(map(len, tokenize(made[:16], ChatFormat.from_folder(tmp_path))["input_ids"]))
    assert measured["tokens"] == round(tokens * 6 / 4)
    made_by_then = [0, 1, *(UPDATES * second / 6 for second in (2, 3, 4, 5))]
    assert rates(tmp_path) == pytest.approx([3e-3 * schedule.rate_share(i, UPDATES, 1) for i in made_by_then])
    assert rates(tmp_path)[-1] < 3e-4
    last = json.loads((tmp_path / LOSS).read_text().splitlines()[-1])
    assert last[VALIDATION_LOSS] == pytest.approx(measured[VALIDATION_LOSS], abs=1e-4)


def test_a_limit_that_is_not_reached_changes_nothing(tiny_student: Path, tmp_path: Path) -> None:
    for name, minutes in (("limited", 1.0), ("free", 0.0)):
        (tmp_path / name).mkdir()
        train(tiny_student, examples(16), recipe(max_minutes=minutes), tmp_path / name)
    assert len(losses(tmp_path / "free")) == UPDATES
    assert (tmp_path / "limited" / LOSS).read_text().count("step") == UPDATES
    assert losses(tmp_path / "limited") == losses(tmp_path / "free")


def test_the_time_before_an_interrupt_counts(
    tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    train(tiny_student, examples(16), recipe(max_minutes=0.15), whole)
    on_step_end = TrainingJournal.on_step_end

    def interrupt(self: object, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 4:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)
        on_step_end(self, args, state, control, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingJournal, "on_step_end", interrupt)
        train(tiny_student, examples(16), recipe(max_minutes=0.15), broken)
    train(tiny_student, examples(16), recipe(max_minutes=0.15), broken)
    assert len(losses(whole)) == 9
    assert losses(broken) == losses(whole)
    assert rates(broken) == rates(whole)
