"""Records what a run of the demo does and how long it should take, fixed when it begins, in its folder.

    recipe.json    the measured rates, the sizes chosen by them, the seconds planned, and at the end the seconds taken

It is never measured again, so an interrupted run resumes with the recipe that it began with.
`toolkit.cli.demo.sizing` chooses it; the ledger, the report and a README show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from toolkit.figures.tables import columns
from toolkit.progress import duration
from toolkit.records import Record, read_object
from toolkit.runs import replace_text
from toolkit.terminal import counted

RECIPE = "recipe.json"
ROWS = ("teacher", "base", "student", "int4")
"""Parts of a run that become rows of its ledger, after `traces`, `train` and `export`."""


@dataclass(frozen=True, kw_only=True)
class Rates(Record):
    """The rates that were measured on the machine before a run."""

    processor: str
    dtype: str
    """The number format of training and of torch's decoding."""
    traces_per_s: float
    """The teacher's traces, many sampled at once."""
    tokens_per_problem: float
    """Mean training tokens of a problem; dropped traces give none."""
    training_token_s: float
    """What each training token takes, forward and backward."""
    update_s: float
    """What each update adds, whatever its batch size."""
    example_tokens: float
    """Tokens of a training example, prompt included."""
    start_s: float
    """The time to load the student, which several parts do."""
    reading_tokens_per_s: float
    """Prompt tokens that the student reads in torch."""
    step_s: float
    """One decoding step of the student with one row."""
    row_step_s: float
    """What each further row adds to a step."""
    calibration_s: float
    """The time to round all of the student's matrices, whatever the text."""
    calibration_token_s: float
    """What each token of calibration text adds."""
    measuring_s: float
    """The time that measuring took."""

    def training_tokens_per_s(self, batch_examples: int) -> float:
        return 1 / (self.training_token_s + self.update_s / (batch_examples * self.example_tokens))


@dataclass(frozen=True, kw_only=True)
class Recipe(Record):
    """The sizes of a run, and how long it should take."""

    minutes: int
    rates: Rates
    families: int
    per_family: int
    """Problems of each family that the teacher answers."""
    epochs: int
    batch_examples: int
    calibration_tokens: int
    ledger_per_family: int
    """Held-out problems of each family that every row answers."""
    training_tokens: int
    """Tokens of all passes together: as planned, or as trained once the student exists."""
    planned_s: dict[str, float]
    """Seconds of each part, in order."""
    training_s: float | None = None
    """The seconds after which training ends; None in recipes of a version that trained on all traces."""
    taken_s: dict[str, float] | None = None
    """The seconds that each part took; None while the run is unfinished, and if it was interrupted."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        recipe = super().from_dict(values)
        return replace(recipe, rates=Rates.from_dict(values["rates"]))


def read_recipe(run: Path) -> Recipe | None:
    """Read the recipe of a run folder; None if it has none. Raises `InputError` if the file is no recipe."""
    path = run / RECIPE
    return Recipe.from_dict(read_object(path)) if path.is_file() else None


def write_recipe(run: Path, recipe: Recipe) -> None:
    replace_text(run / RECIPE, json.dumps(recipe.to_dict(), indent=1, ensure_ascii=False) + "\n")


def plan_text(recipe: Recipe) -> str:
    """Describe for a person what will be done and how long it should take, before it starts."""
    rates, planned_s = recipe.rates, recipe.planned_s
    passes = "" if recipe.epochs == 1 else f", {recipe.epochs} times"
    rows = " ".join(f"{row} {duration(planned_s[row])}" for row in ROWS)
    lines = (
        (
            planned_s["traces"],
            f"the teacher answers {recipe.per_family} problems of each of {recipe.families} families",
        ),
        (
            planned_s["train"],
            (
                f"the student learns from the right answers{passes}: about {recipe.training_tokens:,} tokens, "
                f"{rates.training_tokens_per_s(recipe.batch_examples):.0f} a second in {rates.dtype}"
            ),
        ),
        (planned_s["export"], f"the student becomes int4, calibrated on {recipe.calibration_tokens:,} tokens"),
        (
            sum(planned_s[row] for row in ROWS),
            f"four models answer {recipe.families * recipe.ledger_per_family} held-out problems ({rows})",
        ),
        (sum(planned_s.values()), "in all"),
    )
    return columns([(duration(seconds), what) for seconds, what in lines], right=[0])


def recipe_line(recipe: Recipe) -> str:
    """Return one sentence for the ledger: the recipe, the machine, the minutes planned and taken."""
    rates = recipe.rates
    tokens_per_s = rates.training_tokens_per_s(recipe.batch_examples)
    taken = f"taken {_minutes(recipe.taken_s)}" if recipe.taken_s else "interrupted and resumed"
    passes = "1 pass" if recipe.epochs == 1 else f"{recipe.epochs} passes"
    if recipe.training_s:
        passes = f"at most {passes}"
    return (
        f"Sized to {counted(recipe.minutes, 'minute')} on {rates.processor}, measured at "
        f"{tokens_per_s:.0f} training tokens/s in "
        f"{rates.dtype}: {counted(recipe.per_family, 'problem')} a family, "
        f"{passes} in batches of {recipe.batch_examples}, "
        f"{recipe.training_tokens:,} training tokens, {recipe.calibration_tokens:,} calibration tokens; "
        f"planned {_minutes(recipe.planned_s)} minutes, {taken}."
    )


def _minutes(seconds: Mapping[str, float]) -> str:
    return f"{sum(seconds.values()) / 60:.1f}"
