"""Chooses a recipe that fills a given number of minutes at a machine's rates.

The plan fills `FILLED` of the minutes, because a machine may slow down. Training gets what the other parts leave, and
ends by the clock, however fast the machine is then; if that is less than `TRAINING_SHARE`, first the calibration gets
fewer tokens, then fewer of the ledger's problems are answered: the first ones of each family, which are the same on
every machine and for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from distill.problems.families import FAMILIES, LEDGER_PER_FAMILY
from export.presets import CALIBRATION_TOKENS
from toolkit.errors import InputError
from toolkit.figures.recipe import Rates, Recipe

FILLED = 0.93
SPARE = 1.25
"""The teacher answers so many times the problems that the plan has time to learn from, for a machine that becomes
faster than it was measured."""
TRAINING_SHARE = 0.45
"""The least share of the planned time for training, the teacher's traces included."""
LEVELS = (
    (LEDGER_PER_FAMILY, CALIBRATION_TOKENS),
    (LEDGER_PER_FAMILY, CALIBRATION_TOKENS * 3 // 4),
    (LEDGER_PER_FAMILY, CALIBRATION_TOKENS // 2),
    (LEDGER_PER_FAMILY, CALIBRATION_TOKENS // 4),
    (LEDGER_PER_FAMILY // 2, CALIBRATION_TOKENS // 4),
    (LEDGER_PER_FAMILY // 4, CALIBRATION_TOKENS // 4),
)
"""Ledger problems of each family, and calibration tokens."""
LEAST_PER_FAMILY, MOST_PER_FAMILY = 30, 2400
MOST_EPOCHS = 2
BATCHES = (16, 8, 4)
ENOUGH_UPDATES = 300
"""The updates that a run must have to use the larger batch. After 40,000 tokens the held-out loss was 0.431 with
batches of 16, 0.379 with 8, 0.347 with 4 and 0.344 with 2; where matrix products take all the time, a small batch costs
next to nothing."""
ANSWERED_AT_ONCE = 112
"""Batch size for the ledger's problems."""
COMPLETION_TOKENS: Mapping[str, int] = {"base": 130, "student": 85, "int4": 85}
"""Mean tokens of each row's answers to the ledger's problems."""
LONGEST_COMPLETION: Mapping[str, int] = {"base": 320, "student": 260, "int4": 260}
"""Decoding steps until the last answer of a batch has ended."""
ENGINE_SHARE: Mapping[str, float] = {"int4": 0.5}
"""What a row takes of torch's time for the same answers: a third with our kernels, for AVX2 as for AVX-512."""
PROMPT_TOKENS = 45
SPEED_STEPS = 6 * 48
"""Decoding steps of a single stream that measure a row's speed."""
GATE_TOKENS = 45_000
"""Tokens that the student would read in the time of the gate, of the int8 cache's steps and of the record for `toolkit
verify`: 10,000 are read in fp32 and 22,000 by the exported model, and the rest is decoding and comparing."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The sizes of a run that can be chosen."""

    per_family: int
    epochs: int
    batch_examples: int
    calibration_tokens: int
    ledger_per_family: int


def choose_recipe(rates: Rates, minutes: int) -> Recipe:
    """Return the recipe that fills the minutes best.

    Raises `InputError`, which says how many are needed, if they are too few to teach a student anything.
    """
    room_s = FILLED * 60 * minutes
    least = Size(
        per_family=LEAST_PER_FAMILY,
        epochs=1,
        batch_examples=BATCHES[-1],
        calibration_tokens=LEVELS[-1][1],
        ledger_per_family=LEVELS[-1][0],
    )
    least_s = _total_s(rates, least)
    if least_s > room_s:
        needed = math.ceil(least_s / FILLED / 60)
        raise InputError(f"--minutes ({minutes}) must be at least {needed} on this machine ({rates.processor})")
    for ledger_per_family, calibration_tokens in LEVELS:
        size = _most_training(rates, room_s, calibration_tokens, ledger_per_family)
        if size and (size.per_family >= MOST_PER_FAMILY or _learning_s(rates, size) >= TRAINING_SHARE * room_s):
            break
    assert size is not None, "the least recipe fits"
    return Recipe(
        minutes=minutes,
        rates=rates,
        families=len(FAMILIES),
        training_tokens=round(_training_tokens(rates, size)),
        training_s=round(_training_s(rates, size), 1),
        planned_s={part: round(seconds, 1) for part, seconds in planned_s(rates, size).items()},
        **vars(replace(size, per_family=_asked(size))),
    )


def planned_s(rates: Rates, size: Size) -> dict[str, float]:
    """Estimate the seconds of each part, in the order of a run."""
    answered = len(FAMILIES) * size.ledger_per_family
    parts = {
        "measure": rates.measuring_s,
        "traces": len(FAMILIES) * _asked(size) / rates.traces_per_s,
        "train": 2 * rates.start_s + _training_s(rates, size),
        "export": 2 * rates.start_s
        + rates.calibration_s
        + size.calibration_tokens * rates.calibration_token_s
        + GATE_TOKENS / rates.reading_tokens_per_s,
        "teacher": answered / rates.traces_per_s,
    }
    return parts | {row: _row_s(rates, row, answered) for row in COMPLETION_TOKENS}


def _total_s(rates: Rates, size: Size) -> float:
    return sum(planned_s(rates, size).values())


def _row_s(rates: Rates, row: str, answered: int) -> float:
    """Estimate the seconds of one row: its prompts, each batch's steps, what more answers add, and a single stream."""
    batches = math.ceil(answered / ANSWERED_AT_ONCE)
    return rates.start_s + ENGINE_SHARE.get(row, 1.0) * (
        answered * PROMPT_TOKENS / rates.reading_tokens_per_s
        + batches * LONGEST_COMPLETION[row] * rates.step_s
        + answered * COMPLETION_TOKENS[row] * rates.row_step_s
        + SPEED_STEPS * rates.step_s
    )


def _training_tokens(rates: Rates, size: Size) -> float:
    return size.epochs * len(FAMILIES) * size.per_family * rates.tokens_per_problem


def _training_s(rates: Rates, size: Size) -> float:
    return _training_tokens(rates, size) / rates.training_tokens_per_s(size.batch_examples)


def _asked(size: Size) -> int:
    """Return the problems of each family that the teacher answers, some of them to spare."""
    return min(math.ceil(SPARE * size.per_family), MOST_PER_FAMILY)


def _learning_s(rates: Rates, size: Size) -> float:
    parts = planned_s(rates, size)
    return parts["traces"] + parts["train"]


def _most_training(rates: Rates, room_s: float, calibration_tokens: int, ledger_per_family: int) -> Size | None:
    """Fit in as many problems as possible, seen twice if more would fit than there are; None if too few fit."""
    size = None
    for batch_examples in BATCHES:
        size = Size(
            per_family=0,
            epochs=1,
            batch_examples=batch_examples,
            calibration_tokens=calibration_tokens,
            ledger_per_family=ledger_per_family,
        )
        size = _filled(rates, room_s, size)
        if size.per_family > MOST_PER_FAMILY:
            size = _filled(rates, room_s, replace(size, epochs=MOST_EPOCHS))
        if _training_tokens(rates, size) >= ENOUGH_UPDATES * batch_examples * rates.example_tokens:
            break
    return size if size and size.per_family >= LEAST_PER_FAMILY else None


def _filled(rates: Rates, room_s: float, size: Size) -> Size:
    """Return the size with the most problems that fit; each takes the same time."""
    fixed_s = _total_s(rates, replace(size, per_family=0))
    problem_s = (_total_s(rates, replace(size, per_family=100)) - fixed_s) / 100
    most = MOST_PER_FAMILY if size.epochs == MOST_EPOCHS else MOST_PER_FAMILY + 1
    return replace(size, per_family=min(int((room_s - fixed_s) / problem_s), most))
