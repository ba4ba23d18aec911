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

    Where all are equal there is nothing to resample, and the exact binomial bound (Clopper and Pearson 1934) on how
    many other ones there could be stands in, these at their worst: 40 right of 40 does not prove a model that never
    errs.
    """
    return _interval(np.asarray(outcomes, dtype=np.float64), seed, least=0.0, most=1.0)


def difference_interval(outcomes: Sequence[float], others: Sequence[float], *, seed: int = 0) -> list[float]:
    """Interval of mean(outcomes) - mean(others), both measured on the same problems in the same order.

    Paired, so that how hard each problem is cancels: narrower than what two separate intervals allow to say. Equal
    differences are bounded as in `mean_interval`: one problem that only one of two models solved proves nothing.
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
