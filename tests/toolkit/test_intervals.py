"""Claims about intervals, against the binomial distribution written out and a bootstrap of plain loops."""

from __future__ import annotations

import random
from math import comb

import numpy as np
import pytest

from toolkit.figures.intervals import difference_interval, mean_interval


def binomial_quantile(probability: float, count: int, share: float) -> int:
    """The smallest k whose cumulated binomial probability reaches `share`."""
    total = 0.0
    for k in range(count + 1):
        total += comb(count, k) * probability**k * (1 - probability) ** (count - k)
        if total >= share:
            return k
    return count


@pytest.mark.parametrize(("right", "count"), [(150, 300), (30, 300), (285, 300), (20, 40)])
def test_the_interval_of_an_accuracy_is_the_binomials(right: int, count: int) -> None:
    outcomes = [1.0] * right + [0.0] * (count - right)
    # resampled counts are binomial; half a step of the lattice and the noise of the resampling remain
    exact = [binomial_quantile(right / count, count, share) / count for share in (0.025, 0.975)]
    assert mean_interval(outcomes) == pytest.approx(exact, abs=1.01 / count)


@pytest.mark.parametrize("count", [1, 10, 43, 300])
def test_all_right_and_all_wrong_get_the_exact_bound(count: int) -> None:
    low, high = mean_interval([1.0] * count)
    assert high == 1.0
    assert low**count == pytest.approx(0.025), "so rarely would a model of this accuracy get all right"
    assert mean_interval([0.0] * count) == pytest.approx([0.0, 1 - low])
    assert mean_interval([0.5] * count) == pytest.approx([low / 2, 1 - low / 2]), "the others would be 0 or 1"


def test_a_paired_difference_agrees_with_a_bootstrap_of_plain_loops() -> None:
    generator = np.random.default_rng(2)
    hard = generator.random(200)
    ours = (hard < 0.6).astype(float).tolist()
    theirs = (hard + generator.normal(scale=0.1, size=200) < 0.4).astype(float).tolist()
    chance = random.Random(3)
    means = []
    for _ in range(2000):
        chosen = [chance.randrange(200) for _ in range(200)]
        means.append(sum(ours[i] - theirs[i] for i in chosen) / 200)
    means.sort()
    assert difference_interval(ours, theirs) == pytest.approx([means[50], means[1950]], abs=0.015)
    assert difference_interval(ours, theirs)[0] > mean_interval(ours)[0] - mean_interval(theirs)[1]


@pytest.mark.parametrize(("count", "decided"), [(1, False), (5, False), (6, True), (43, True)])
def test_problems_that_all_differ_alike_decide_as_the_sign_test_does(count: int, decided: bool) -> None:
    assert (2 * 0.5**count < 0.05) == decided, "the chance that all signs agree"
    low, high = difference_interval([1.0] * count, [0.0] * count)
    assert (low > 0) == decided and high == 1.0
    assert difference_interval([0.0] * count, [1.0] * count) == [-high, -low]


def test_equal_outcomes_leave_room_for_a_difference_and_more_of_them_less() -> None:
    few, many = (difference_interval([1.0, 0.5] * count, [1.0, 0.5] * count) for count in (3, 100))
    assert few[0] < many[0] < 0 < many[1] < few[1]


def test_the_same_seed_gives_the_same_interval() -> None:
    outcomes = [1.0, 0.0, 1.0, 1.0, 0.0]
    assert mean_interval(outcomes, seed=4) == mean_interval(outcomes, seed=4)
