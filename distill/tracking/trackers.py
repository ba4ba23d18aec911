"""Writes a run's loss curve where people look at such curves; nothing leaves the machine unless the user says so.

tensorboard   an event file in the run's folder (`tensorboard --logdir RUN`), which repeats `loss.jsonl`
trackio       Trackio's own folder on this machine; a Space only where TRACKIO_SPACE_ID names one
wandb         the run's folder, offline, unless WANDB_API_KEY or WANDB_MODE is set
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from distill.tracking.event_file import first_event, scalars_event
from toolkit.errors import MissingExtra

EVENTS = "events.out.tfevents.student"
EXTRA = "track"


def check_trackers(trackers: Sequence[str]) -> None:
    """Raise `MissingExtra` if a tracker's package is not installed; event files need none."""
    for name in trackers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise MissingExtra(name, EXTRA)


def reported_to(trackers: Sequence[str], folder: Path) -> list[str]:
    """Return the trackers that the trainer itself reports to, after telling them to stay on this machine."""
    for name in trackers:
        if name == "wandb":
            os.environ.setdefault("WANDB_DIR", str(folder))
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            if "WANDB_API_KEY" not in os.environ:
                os.environ.setdefault("WANDB_MODE", "offline")
        elif name == "trackio":
            os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return [name for name in trackers if name != "tensorboard"]


class EventWriter(TrainerCallback):
    """Keeps an event file equal to the loss curve, also where a resumed run cuts that back.

    It must be called after the journal, which writes the curve.
    """

    def __init__(self, loss_curve: Path) -> None:
        self._loss_curve, self._path = loss_curve, loss_curve.parent / EVENTS
        self._written = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(first_event(time.time()))
            self._catch_up()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._catch_up()

    def _catch_up(self) -> None:
        lines = self._loss_curve.read_text(encoding="utf-8").splitlines() if self._loss_curve.exists() else []
        with self._path.open("ab") as file:
            for record in map(json.loads, lines[self._written :]):
                scalars = {f"train/{name}": value for name, value in record.items() if isinstance(value, (int, float))}
                file.write(scalars_event(time.time(), record["step"], scalars))
        self._written = len(lines)
