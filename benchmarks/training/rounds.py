"""Measures variants of a training step in turns: each measurement is a separate process, and rounds even out the
machine's fluctuations."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.terminal import say


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A trainer to measure, named as the table names it."""

    title: str
    is_ours: bool
    keeps_freed_memory: bool


Figures = dict[str, float]


def medians_of_rounds(
    command: Sequence[str], variants: Iterable[str], rounds: int, summary: Callable[[list[Figures]], str]
) -> dict[str, Figures]:
    """Return the medians over all measurements, by variant.

    `command`: one of our modules with its options; with `--variant NAME` it prints a JSON list of measurements as its
    last line. `summary`: summarizes such a list for the progress messages.
    """
    measured: dict[str, list[Figures]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, before in measured.items():
            whole = [sys.executable, "-m", *command, "--variant", name]
            done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            before += found
            say(f"round {number + 1}: {name}: {summary(found)}")
    return {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for name, found in measured.items()
    }


def add_round_options(parser: ArgumentParser, variants: Iterable[str], *, rounds: int, steps: int) -> None:
    """Add the options of a benchmark whose variants take turns, with these defaults."""
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=steps, help="timed steps per measurement; default: %(default)s")
    parser.add_argument("--variant", choices=list(variants), help="measure one in this process and print JSON")


def at_each_step(trainer: Any, call: Callable[[], None]) -> None:
    """Call `call` after each of a trainer's steps, and silence the trainer."""
    from transformers import PrinterCallback, TrainerCallback

    class StepEnds(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            call()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepEnds())
