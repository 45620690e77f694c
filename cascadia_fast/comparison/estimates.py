"""Means over seeds with 95 % confidence intervals by Student's t; of what is a ratio in nature, on its logarithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cascadia_fast.student_t import student_t975


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over seeds; without an interval where there is one seed only."""

    mean: float
    low: float | None
    high: float | None


def as_dict(found: Mean | None) -> dict[str, float | None]:
    """Return a mean as it stands in results.json."""
    if found is None:
        return {"mean": None, "low": None, "high": None}
    return {"mean": found.mean, "low": found.low, "high": found.high}


def mean_of(values: Sequence[float]) -> Mean | None:
    """Return the arithmetic mean and its interval; None of nothing."""
    if not values:
        return None
    found = np.array(values, float)
    mean = float(found.mean())
    if found.size < 2:
        return Mean(mean, None, None)
    half_width = student_t975(found.size - 1) * float(found.std(ddof=1)) / math.sqrt(found.size)
    return Mean(mean, mean - half_width, mean + half_width)


def log_mean_of(values: Sequence[float]) -> Mean | None:
    """Return the geometric mean of positive values and its interval: latencies and their ratios vary by factors."""
    found = mean_of([math.log(value) for value in values])
    if found is None or found.low is None or found.high is None:
        return None if found is None else Mean(math.exp(found.mean), None, None)
    return Mean(math.exp(found.mean), _exp(found.low), _exp(found.high))


def _exp(value: float) -> float | None:
    """Two seeds far apart may leave everything open; no end is None."""
    return math.exp(value) if value < math.log(1e300) else None
