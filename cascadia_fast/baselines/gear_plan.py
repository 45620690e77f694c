"""Which cascade serves which rate: CascadeServe's first two sub-problems, on arrays.

A *range* is a range of the request rate as the online phase measures it, window by window; each range gets one of the
cascades as its gear, which is in force in the window after. What a cascade costs is the GPU-seconds that one request
keeps busy, so that the rate times it is the load on the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.routing import QUALITY_SLACK

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]

ROUNDING = 1e-12  # relative: a cascade that costs exactly what a range may spend is within it


@dataclass(frozen=True, eq=False)
class RateRanges:
    """K ranges of the rate, lowest first.

    Parameters
    ----------
    up_to_per_s
        Shape (K,): the largest rate of each range; the last one's gear serves whatever lies above it, too.
    rate_per_s
        Shape (K,), ascending: the mean rate while its gear is in force.
    share
        Shape (K,): the share of the requests that arrive then.
    """

    up_to_per_s: FloatArray
    rate_per_s: FloatArray
    share: FloatArray

    @classmethod
    def of_times(cls, times_s: FloatArray, window_s: float, most: int) -> RateRanges:
        """Return at most so many ranges of a trace's windows, whose gears serve about equally many requests each."""
        counts = np.bincount(((times_s - times_s[0]) / window_s).astype(np.intp))[:-1]  # the last one is not whole
        after = counts[1:]
        if not after.any():
            rate_per_s = np.array([(times_s.size - 1) / float(times_s[-1] - times_s[0])])
            return cls(rate_per_s, rate_per_s, np.ones(1))
        before = np.maximum(counts[:-1], 1)  # a rate of none would be no range's end
        filled = np.cumsum(np.bincount(before, weights=after))
        ends = np.unique(np.searchsorted(filled, filled[-1] * np.arange(1, most + 1) / most * (1 - ROUNDING)))
        place = np.minimum(np.searchsorted(ends, before), ends.size - 1)
        served = np.bincount(place, weights=after).astype(np.float64)
        lasting_s = np.bincount(place).astype(np.float64) * window_s
        last = _last_of_rising(served, lasting_s)
        first = np.concatenate(([0], last[:-1] + 1))
        served, lasting_s = np.add.reduceat(served, first), np.add.reduceat(lasting_s, first)
        # Half a request above, so that no rounding decides which range a window is in.
        return cls((ends[last] + 0.5) / window_s, served / lasting_s, served / served.sum())


def _last_of_rising(served: FloatArray, lasting_s: FloatArray) -> IndexArray:
    """Return where to cut ranges so that the rates in force rise: neighbours whose rates do not are one."""
    merged: list[tuple[float, float, int]] = []
    for last, (requests, seconds) in enumerate(zip(served, lasting_s, strict=True)):
        while merged and merged[-1][0] * seconds >= requests * merged[-1][1]:
            requests, seconds = requests + merged[-1][0], seconds + merged[-1][1]
            merged.pop()
        merged.append((requests, seconds, last))
    return np.array([last for *_, last in merged], np.intp)


def pareto_set(quality: FloatArray, cost: FloatArray) -> IndexArray:
    """Return the cascades that none as cheap is as good as: cheapest first, best last."""
    order = np.lexsort((-quality, cost))
    best = np.maximum.accumulate(quality[order])
    kept: IndexArray = order[np.concatenate(([True], quality[order][1:] > best[:-1]))]
    return kept


def assign(
    ranges: RateRanges, quality: FloatArray, cost: FloatArray, floor: float, most_load: FloatArray
) -> tuple[IndexArray, bool]:
    """Return for each range its cascade, and whether the requests' mean quality meets the floor.

    Every range starts with the cheapest cascade, and the range in which the next better one makes the least load gets
    it, until the floor is met: so in the end every range has the best one whose load is within one common level, the
    least that meets the floor. It is found by bisection.

    Parameters
    ----------
    quality, cost
        Shape (P,): those of a Pareto set, ascending.
    floor
        Of the quality.
    most_load
        Shape (K,): the load beyond which a range was downgraded; infinite where it was not.
    """

    def at(level: float) -> IndexArray:
        within = np.minimum(level, most_load) / ranges.rate_per_s * (1 + ROUNDING)
        return np.maximum(np.searchsorted(cost, within, side="right") - 1, 0)

    def meets(level: float) -> bool:
        return float(ranges.share @ quality[at(level)]) >= floor - QUALITY_SLACK

    levels = np.unique(np.multiply.outer(ranges.rate_per_s, cost))
    low, high = 0, levels.size - 1
    if not meets(levels[high]):
        return at(levels[high]), False
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(levels[middle]) else (middle + 1, high)
    return at(levels[low]), True
