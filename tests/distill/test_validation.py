"""The validation loss is the mean over held-out tokens, and the student with the lowest one is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from distill.problems.splits import spread
from distill.training.completion_loss import IGNORED
from distill.training.journal import LOSS
from distill.training.train import tokenize, train
from distill.training.validation import Validation
from tests.distill.test_train import examples, float_model, tiny_recipe
from toolkit.formats.chat_format import ChatFormat


class Scale(torch.nn.Module):
    """A model whose loss per trained token is its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return self.weight * (labels != IGNORED).sum()


BATCHES = [{"labels": torch.tensor([[IGNORED, 1, 2]])}, {"labels": torch.tensor([[IGNORED, 3, 4, 5]])}]


def course(losses: list[float], folder: Path, *, count: int = 20) -> tuple[Scale, Validation]:
    """Return a model and its validation after a run of four updates."""
    model, validation = Scale(), Validation(lambda: BATCHES, count, folder)
    state, control = TrainerState(max_steps=len(losses)), TrainerControl()
    for step, loss in enumerate(losses, start=1):
        state.global_step = step
        model.weight.data.fill_(loss)
        validation.on_step_end(TrainingArguments(output_dir=str(folder)), state, control, model=model)
    return model, validation


def test_the_student_of_the_least_validation_loss_comes_back(tmp_path: Path) -> None:
    model, validation = course([3.0, 1.0, 2.0, 4.0], tmp_path)
    assert validation.loss == 4.0
    assert validation.restore_best(model) == (1.0, 2)
    assert float(model.weight) == 1.0


def test_the_last_student_stays_where_it_is_the_best_or_too_few_examples_can_tell(tmp_path: Path) -> None:
    for losses, count in (([3.0, 2.0, 2.0, 1.0], 20), ([3.0, 1.0, 2.0, 4.0], 3)):
        model, validation = course(losses, tmp_path / str(count), count=count)
        assert validation.restore_best(model) is None
        assert float(model.weight) == losses[-1]


def test_examples_are_taken_from_everywhere() -> None:
    assert spread(3, 10) == [0, 1, 2]
    assert spread(0, 10) == []
    assert spread(100, 4) == [0, 25, 50, 75]


def test_held_out_examples_are_measured_and_not_learned(tiny_student: Path, tmp_path: Path) -> None:
    made = examples(12)
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    recipe = replace(tiny_recipe(), log_every=100)
    measured = train(tiny_student, made[:8], recipe, tmp_path / "with", made[8:])
    train(tiny_student, made[:8], recipe, tmp_path / "without")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]

    logged = [json.loads(line) for line in (tmp_path / "with" / LOSS).read_text().splitlines()]
    assert [record["validation_loss"] for record in logged][-1] == pytest.approx(measured["validation_loss"], abs=1e-4)
    total, count = 0.0, 0
    oracle = float_model(tmp_path / "with")
    for row in tokenize(made[8:], ChatFormat.from_folder(tmp_path / "with")):
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            mean = oracle(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
        trained = int((labels != IGNORED).sum())
        total, count = total + mean * trained, count + trained
    assert measured["validation_loss"] == pytest.approx(total / count, rel=1e-2)  # bf16 where the machine has it
