"""Variants of a training step, measured in turns: each measurement is a process of its own, and rounds even out the
rest."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.terminal import say

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A trainer to measure, named as the table names it."""

    title: str
    is_ours: bool
    keeps_freed_memory: bool


def medians_of_rounds(
    command: Sequence[str], variants: Iterable[str], rounds: int, told: Callable[[list[Figures]], str]
) -> dict[str, Figures]:
    """Medians over all measurements, by variant.

    `command`: a module of ours and its options; with `--variant NAME` its last line is the JSON list of what it
    measured. `told`: what to say of one such list.
    """
    measured: dict[str, list[Figures]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, before in measured.items():
            whole = [sys.executable, "-m", *command, "--variant", name]
            done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            before += found
            say(f"round {number + 1}: {name}: {told(found)}")
    return {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for name, found in measured.items()
    }


def at_each_step(trainer: Any, call: Callable[[], None]) -> None:
    """Call at the end of each of a trainer's steps, and let it print nothing."""
    from transformers import PrinterCallback, TrainerCallback

    class StepEnds(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            call()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepEnds())
