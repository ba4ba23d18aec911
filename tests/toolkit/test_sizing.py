"""Claims about the recipe: what is chosen for a slow machine, a fast one and for too few minutes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.problems.families import FAMILIES, LEDGER_PER_FAMILY
from export.presets import CALIBRATION_TOKENS
from toolkit.cli.demo.sizing import FILLED, LEAST_PER_FAMILY, MOST_EPOCHS, MOST_PER_FAMILY, choose_recipe
from toolkit.errors import InputError
from toolkit.figures.recipe import Rates, Recipe

FAST = Rates(
    processor="2 cores, AVX512 with BF16",
    dtype="bfloat16",
    traces_per_s=50.0,
    tokens_per_problem=93.0,
    example_tokens=105.0,
    training_token_s=1 / 700,
    update_s=0.2,
    start_s=1.0,
    reading_tokens_per_s=2_000.0,
    step_s=0.025,
    row_step_s=0.0004,
    calibration_s=40.0,
    calibration_token_s=0.006,
    measuring_s=12.0,
)
SLOW = replace(
    FAST,
    processor="2 cores, AVX2",
    dtype="float32",
    traces_per_s=30.0,
    training_token_s=1 / 126,
    reading_tokens_per_s=380.0,
    step_s=0.05,
    row_step_s=0.003,
    calibration_s=80.0,
    calibration_token_s=0.012,
    measuring_s=40.0,
)


def planned_minutes(recipe: Recipe) -> float:
    return sum(recipe.planned_s.values()) / 60


@pytest.mark.parametrize("rates", [FAST, SLOW])
@pytest.mark.parametrize("minutes", [20, 60, 120])
def test_a_plan_fills_its_share_of_the_minutes_and_no_more(rates: Rates, minutes: int) -> None:
    recipe = choose_recipe(rates, minutes)
    assert planned_minutes(recipe) <= FILLED * minutes + 0.1
    if (recipe.per_family, recipe.epochs) != (MOST_PER_FAMILY, MOST_EPOCHS):
        assert planned_minutes(recipe) >= 0.95 * FILLED * minutes


def test_a_fast_machine_measures_everything_and_a_slow_one_calibrates_on_less_first() -> None:
    fast, slow = choose_recipe(FAST, 20), choose_recipe(SLOW, 20)
    assert (fast.ledger_per_family, fast.calibration_tokens) == (LEDGER_PER_FAMILY, CALIBRATION_TOKENS)
    assert slow.calibration_tokens < CALIBRATION_TOKENS
    assert slow.per_family < fast.per_family
    assert slow.batch_examples < fast.batch_examples


def test_more_minutes_give_more_training_until_all_problems_are_seen_twice() -> None:
    tokens = [choose_recipe(FAST, minutes).training_tokens for minutes in (15, 20, 40, 60, 120, 600)]
    assert tokens == sorted(tokens)
    most = choose_recipe(FAST, 600)
    assert (most.per_family, most.epochs) == (MOST_PER_FAMILY, MOST_EPOCHS)
    assert most == replace(choose_recipe(FAST, 700), minutes=600)


def test_tokens_are_those_of_all_passes_over_what_the_teacher_leaves() -> None:
    recipe = choose_recipe(FAST, 600)
    assert recipe.training_tokens == round(MOST_EPOCHS * len(FAMILIES) * MOST_PER_FAMILY * FAST.tokens_per_problem)


def test_too_few_minutes_are_refused_with_the_number_that_suffices() -> None:
    with pytest.raises(
        InputError, match=r"--minutes \(1\) must be at least (\d+) on this machine \(2 cores, AVX2\)"
    ) as e:
        choose_recipe(SLOW, 1)
    needed = int(str(e.value).split("at least ")[1].split()[0])
    assert choose_recipe(SLOW, needed).per_family >= LEAST_PER_FAMILY
    with pytest.raises(InputError):
        choose_recipe(SLOW, needed - 1)


def test_a_machine_that_takes_no_time_gets_the_whole_recipe() -> None:
    gpu = replace(FAST, traces_per_s=1e6, training_token_s=1e-7, update_s=1e-5, row_step_s=0.0)
    recipe = choose_recipe(gpu, 20)
    assert (recipe.per_family, recipe.epochs) == (MOST_PER_FAMILY, MOST_EPOCHS)


def test_a_recipe_reads_as_it_was_written() -> None:
    recipe = replace(choose_recipe(SLOW, 20), taken_s={"train": 3.0})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
