"""Measures the loss on held-out examples while a student trains, and keeps the weights with the lowest one.

    checkpoints/best/   model.safetensors  validation.json    trained weights at the lowest validation loss so far

Examples of the validation split are held out from training. A few of them are enough to see a run go wrong, and cheap:
a forward pass of some dozens at a few points of the run. With at least `ENOUGH` of them, enough to tell one state of
the student from another, the student with the lowest validation loss is saved.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.training.journal import VALIDATION_LOSS, of_the_first
from toolkit.errors import InputError
from toolkit.records import read_object
from toolkit.runs import replace_text
from toolkit.terminal import say

ENOUGH = 16
BEST, BEST_WEIGHTS, BEST_LOSS = "best", "model.safetensors", "validation.json"

Batch = dict[str, Any]
"""The arguments of a student's forward, by name."""


class Validation(TrainerCallback):
    """Measures the validation loss at evenly spaced updates, the last of them included."""

    def __init__(
        self,
        batches: Callable[[], Sequence[Batch]],
        examples: int,
        folder: Path,
        *,
        times: int = 4,
        every: int = 0,
        keeps_best: bool = True,
    ) -> None:
        """`batches`: arguments of the model's forward; `examples`: their number; `folder`: that of the checkpoints;
        `times`: measurements in a run, or `every` so many updates."""
        self._batches, self._folder = batches, folder / BEST
        self._times, self._every = times, every
        self.chooses = keeps_best
        """Whether the recipe wants the best student, rather than the last one."""
        self._keeps_best = keeps_best and examples >= ENOUGH
        self._part: int | None = None
        """How many parts of the run have ended; None before the first update of this process."""
        self.loss: float | None = None
        """The last measured loss; None if none was measured yet."""
        self.measured_at = -1
        """The update after which it was measured."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model: nn.Module = kwargs["model"]
        is_last = state.global_step == state.max_steps
        is_due = state.global_step % self._every == 0 if self._every else self._has_come_further(state)
        if not (is_due or is_last):
            return
        self.loss, self.measured_at = self.measure(model, args.device), state.global_step
        control.should_log = True
        if self._keeps_best and not is_last and of_the_first(self.loss < self._best()[0]):
            weights = _trained_weights(model)  # all processes gather shards
            if state.is_world_process_zero:
                self._keep(weights, state.global_step)

    def _has_come_further(self, state: TrainerState) -> bool:
        """Return whether this update ends another of the equal parts of the run, whose length may be estimated."""
        before, self._part = self._part, state.global_step * self._times // state.max_steps
        if before is None:
            before = (state.global_step - 1) * self._times // state.max_steps
        self._part = max(self._part, before)
        return self._part > before

    @torch.no_grad()
    def measure(self, model: nn.Module, device: torch.device) -> float:
        """Return the mean loss over the trained tokens of all validation examples."""
        was_training = model.training
        model.eval()
        total, count = 0.0, 0
        for batch in self._batches():
            inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
            total += float(model(**inputs))
            count += int((batch["labels"] >= 0).sum())
        model.train(was_training)
        return total / count

    def restore_best(self, model: nn.Module) -> tuple[float, int] | None:
        """Restore the weights with the lowest loss unless they are the last ones; return their loss and update."""
        least, step = of_the_first(self._best())
        if self.loss is None or not self._keeps_best or least >= self.loss:
            return None
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        with torch.no_grad():
            for name, value in load_file(self._folder / BEST_WEIGHTS).items():
                trained[name].copy_(_as_held(value, trained[name]))
        return least, step

    def _keep(self, weights: dict[str, Tensor], step: int) -> None:
        """Write the weights, then the loss, so that a loss file implies whole weights."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / BEST_LOSS).unlink(missing_ok=True)
        save_file(weights, self._folder / BEST_WEIGHTS)
        replace_text(self._folder / BEST_LOSS, json.dumps({"loss": self.loss, "step": step}))

    def _best(self) -> tuple[float, int]:
        try:
            kept = read_object(self._folder / BEST_LOSS)
        except InputError:
            return math.inf, -1
        return float(kept["loss"]), int(kept["step"])


def choose_best(
    validation: Validation | None, model: PreTrainedModel | PeftModel, device: torch.device, examples: int
) -> dict[str, Any]:
    """Restore the model with the lowest validation loss; return which update's it is, and why it was chosen."""
    if validation is None:
        return {"chosen_by": "the last, since there is no trace of the validation split to choose by"}
    if validation.loss is None:  # the last update was made before an interrupt
        validation.loss = validation.measure(model, device)
    best = validation.restore_best(model)
    if best is None:
        why = "the lowest validation loss, which is the last"
        if not validation.chooses:
            why = "the last, as the recipe wants"
        elif examples < ENOUGH:
            why = f"the last, since a choice by the validation loss needs {ENOUGH} traces of that split, not {examples}"
        return {VALIDATION_LOSS: validation.loss, "chosen_by": why}
    loss, update = best
    return {VALIDATION_LOSS: loss, "chosen_update": update, "chosen_by": "the lowest validation loss"}


def _trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights, whole, in the machine's memory."""
    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name: weight.full_tensor() if isinstance(weight, DTensor) else weight for name, weight in trained.items()}
    return {name: weight.to("cpu").contiguous() for name, weight in whole.items()}


def _as_held(value: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a whole weight that this process holds of it."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def say_unwatched(evaluate_every: int, examples: Sequence[Any]) -> None:
    """Say so if the loss on held-out examples was wanted and there are none."""
    if evaluate_every and not examples:
        say(
            f"train: train.evaluate_every ({evaluate_every}) has no effect, since no trace is of the validation split; "
            "ask more problems, or name it in their column split"
        )
