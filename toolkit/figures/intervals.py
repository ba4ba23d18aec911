"""Computes bootstrap intervals of a mean (Efron 1979): its range over other problems of the same kind.

Problems are resampled, not answers, so several samples of one problem count as one observation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95


def mean_interval(outcomes: Sequence[float], *, seed: int = 0) -> list[float]:
    """Return the percentile bootstrap interval of the mean of outcomes in 0..1, one for each problem.

    If all are equal, resampling cannot vary them, so the exact binomial bound (Clopper and Pearson 1934) on unseen
    outcomes is used, each taken at its worst: 40 of 40 correct must not give the interval [100 %, 100 %].
    """
    return _interval(np.asarray(outcomes, dtype=np.float64), seed, least=0.0, most=1.0)


def difference_interval(outcomes: Sequence[float], others: Sequence[float], *, seed: int = 0) -> list[float]:
    """Return the interval of mean(outcomes) - mean(others), measured on the same problems in the same order.

    It is paired, so the difficulty of each problem cancels out and it is narrower than two separate intervals allow.
    Equal differences are bounded as in `mean_interval`: one problem that only one of two models solved proves nothing.
    """
    return _interval(np.subtract(outcomes, others), seed, least=-1.0, most=1.0)


def _interval(values: NDArray[np.float64], seed: int, *, least: float, most: float) -> list[float]:
    if (values == values[0]).all():
        tail = ((1 - LEVEL) / 2) ** (1 / len(values))
        return [float(tail * values[0] + (1 - tail) * bound) for bound in (least, most)]
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
