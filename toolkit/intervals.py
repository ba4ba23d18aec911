"""Bootstrap intervals of a mean (Efron 1979): what the same measurement would say of other problems of the same kind.

Problems are resampled, not answers, so several samples of one problem count as one observation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
LEVEL = 0.95


def mean_interval(outcomes: Sequence[float], *, seed: int = 0) -> list[float]:
    """Percentile bootstrap interval of the mean of outcomes in 0..1, one for each problem.

    Where all are 0 or all are 1 there is nothing to resample, and the exact binomial bound (Clopper and Pearson 1934)
    stands in: 40 right of 40 does not prove a model that never errs.
    """
    low, high = _percentiles(outcomes, seed)
    tail = ((1 - LEVEL) / 2) ** (1 / len(outcomes))
    if all(outcome == 1 for outcome in outcomes):
        return [tail, 1.0]
    if all(outcome == 0 for outcome in outcomes):
        return [0.0, 1 - tail]
    return [low, high]


def difference_interval(outcomes: Sequence[float], others: Sequence[float], *, seed: int = 0) -> list[float]:
    """Interval of mean(outcomes) - mean(others), both measured on the same problems in the same order.

    Paired, so that how hard each problem is cancels: narrower than what two separate intervals allow to say. Where all
    problems differ by the same there is nothing to resample, and as in `mean_interval` the bound on how many others
    there could be stands in, these at their worst: one problem that only one model solved proves nothing.
    """
    differences = np.subtract(outcomes, others)
    first = float(differences[0])
    if (differences == first).all():
        tail = ((1 - LEVEL) / 2) ** (1 / len(differences))
        return [tail * first - (1 - tail), tail * first + (1 - tail)]
    return _percentiles(differences, seed)


def _percentiles(outcomes: Sequence[float] | NDArray[np.float64], seed: int) -> list[float]:
    values = np.asarray(outcomes, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
