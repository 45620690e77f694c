"""A router's cut points: which values of a signal, known before any answer, send a request to which of several models.

RouteLLM (arXiv 2406.18665) has two models and one cut, its α. With more, every pair of neighbours has a cut,
and both mean quality and mean cost are a sum over cuts of what lies below each: so all combinations of cuts cost one
addition apiece once the prefix sums are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.baselines.costs import Routed, cheapest_index

FloatArray = NDArray[np.float64]

# Combinations of cuts looked at: all of them for two models up to so many requests and for three up to 512, beyond that
# evenly spaced quantiles of the signal, which is how RouteLLM's own calibration names its cut.
MOST_COMBINATIONS = 1 << 18


@dataclass(frozen=True)
class Tiers(Routed):
    """Ascending cuts between models: a request whose signal is at least k of them goes to model k."""

    cuts: tuple[float, ...]


def best_tiers(
    signal: FloatArray, quality: FloatArray, cost: FloatArray, weight: FloatArray, q_min: float
) -> Tiers | None:
    """Return the cuts that meet the floor at the least mean cost; where none do, those of the best quality.

    Every model gets somebody who counts; None where there are fewer different signals than models.

    Parameters
    ----------
    signal
        Shape (n,).
    quality, cost
        Shape (T, n), of each request at each of T >= 2 models.
    weight
        Shape (n,), not all zero.
    """
    tiers = len(quality)
    counts = weight > 0
    signal, quality, cost, weight = signal[counts], quality[:, counts], cost[:, counts], weight[counts]
    order = np.argsort(signal, kind="stable")
    values, first = np.unique(signal[order], return_index=True)
    if values.size < tiers:
        return None
    places = _thinned(values.size - 1, int(MOST_COMBINATIONS ** (1 / (tiers - 1)) + 1e-9))
    share = weight[order] / weight.sum()
    total_quality = _of_cuts(quality[:, order] * share, first[places])
    total_cost = _of_cuts(cost[:, order] * share, first[places])
    total_quality[~_ascending(places.size, tiers - 1)] = -np.inf
    best = cheapest_index(total_quality.ravel(), total_cost.ravel(), q_min)
    chosen = places[list(np.unravel_index(best, total_cost.shape))]
    return Tiers(
        quality=float(total_quality.flat[best]),
        cost=float(total_cost.flat[best]),
        cuts=tuple(_between(values[place - 1], values[place]) for place in chosen.tolist()),
    )


def _thinned(count: int, most: int) -> NDArray[np.intp]:
    """Places 1 … count among the distinct signals at which a cut may lie, at most so many of them."""
    if count <= most:
        return np.arange(1, count + 1)
    return np.unique(np.rint(np.linspace(1, count, most)).astype(np.intp))


def _of_cuts(amounts: FloatArray, below: NDArray[np.intp]) -> FloatArray:
    """Total of every combination of cuts, an axis each; `below` counts the requests under each possible cut.

    With S_k the prefix sums at model k and cut k at p_k, the total is Σ_k (S_{k-1} - S_k)[p_k] plus all of the last.
    """
    prefix = np.concatenate([np.zeros((len(amounts), 1)), amounts.cumsum(axis=1)], axis=1)
    saved = (prefix[:-1] - prefix[1:])[:, below]
    return np.asarray(reduce(np.add.outer, saved) + prefix[-1, -1])


def _ascending(places: int, cuts: int) -> NDArray[np.bool_]:
    """Mark the combinations whose cuts ascend strictly."""
    ascending = np.ones((places,) * cuts, np.bool_)
    index = np.arange(places)
    for axis in range(cuts - 1):
        pair = index[:, None] < index
        ascending &= pair.reshape((1,) * axis + pair.shape + (1,) * (cuts - axis - 2))
    return ascending


def _between(low: float, high: float) -> float:
    """The middle, or `high` where rounding would make it `low`: what has the signal `low` must stay below the cut."""
    middle = low + (high - low) / 2
    return float(middle if middle > low else high)
