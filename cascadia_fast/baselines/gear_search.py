"""CascadeServe's loop over its sub-problems, on arrays: cascades for the ranges of the rate, and replicas for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.baselines.drawing import weighted_quantile
from cascadia_fast.baselines.gear_placement import place_replicas, utilization
from cascadia_fast.baselines.gear_plan import RateRanges, assign, pareto_set
from cascadia_fast.baselines.gear_profile import Profile

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]

OVERLOADED = 1.0  # utilisation above which a range's throughput does not suffice
TAIL = 0.95
MOST_DOWNGRADES = 32  # of ranges, for one set of models; beyond, the best plan so far stands


@dataclass(frozen=True, eq=False)
class GearPlan:
    """What serves the K ranges of the rate.

    Parameters
    ----------
    cascade
        Shape (K,): the cascade of each range, as an index.
    replicas
        Shape (S,): how many replicas each station has.
    shortfall
        By how much the mean quality over all requests misses the floor.
    utilization
        The largest of any station in any range.
    p95_s
        95th percentile of the time of a request, over all ranges, if every visit takes the mean time of its batch.
    """

    cascade: IndexArray
    replicas: NDArray[np.int64]
    shortfall: float
    utilization: float
    p95_s: float


def gear_plans(
    ranges: RateRanges,
    quality: FloatArray,
    visits: FloatArray,
    profiles: Sequence[Profile],
    gpus: int,
    floor: float,
    models: int,
) -> Iterator[GearPlan]:
    """Yield every gear plan that is looked at: for each set of models, until none of its ranges is overloaded.

    Where a range is, it is downgraded to a cheaper cascade, and the others make up for its quality; where they cannot,
    the search for this set of models is over. Sets whose engines do not fit together have none.

    Parameters
    ----------
    ranges
        The ranges of the rate.
    quality
        Shape (P,): of each cascade.
    visits
        Shape (S, P): visits per request of each station under each cascade.
    profiles
        The engine of each station.
    gpus
        GPUs there are.
    floor
        Of the quality.
    models
        How many of the stations are models, the first ones.
    """
    capacity_per_s = np.array([profile.capacity_per_s for profile in profiles])
    sizes = np.array([profile.gpus for profile in profiles], np.int64)
    cost = (sizes / capacity_per_s) @ visits
    for size in range(1, models + 1):
        for chosen in itertools.combinations(range(models), size):
            others = [model for model in range(models) if model not in chosen]
            inside = np.flatnonzero(~visits[others].any(axis=0))
            front = inside[pareto_set(quality[inside], cost[inside])]
            most_load = np.full(ranges.rate_per_s.size, np.inf)
            for _ in range(MOST_DOWNGRADES):
                place, meets = assign(ranges, quality[front], cost[front], floor, most_load)
                rate_per_s = ranges.rate_per_s[:, None] * visits[:, front[place]].T
                replicas = place_replicas(rate_per_s / capacity_per_s, sizes, gpus)
                if replicas is None:
                    break
                busy = utilization(rate_per_s / capacity_per_s, replicas)
                p95_s = _p95_s(ranges, visits[:models, front[place]].T, replicas, profiles)
                shortfall = 0.0 if meets else floor - float(ranges.share @ quality[front[place]])
                yield GearPlan(front[place], replicas, shortfall, float(busy.max()), p95_s)
                worst = int(np.argmax(busy.max(axis=1)))
                if not meets or busy.max() <= OVERLOADED or place[worst] == 0:
                    break
                most_load[worst] = ranges.rate_per_s[worst] * cost[front[place[worst] - 1]]


def best_plan(plans: Sequence[GearPlan]) -> GearPlan:
    """Return the plan that meets the floor, or comes nearest to it, is overloaded least and takes least time."""
    return min(plans, key=lambda plan: (plan.shortfall, max(plan.utilization, OVERLOADED), plan.p95_s))


def _p95_s(ranges: RateRanges, visits: FloatArray, replicas: NDArray[np.int64], profiles: Sequence[Profile]) -> float:
    """Weighted 95th percentile over the ends that paths have; `visits` is (K, models), falling along each cascade."""
    took_s = np.zeros_like(visits)
    for model, (count, profile) in enumerate(zip(replicas, profiles, strict=True)):
        if count and model < visits.shape[1]:
            mean_s = profile.mean_s(ranges.rate_per_s * visits[:, model] / count)
            took_s[:, model] = np.where(visits[:, model] > 0, mean_s, 0.0)
    onwards = np.zeros_like(visits)
    onwards[:, :-1] = np.maximum.accumulate(visits[:, :0:-1], axis=1)[:, ::-1]
    ending = np.where(visits > 0, visits - onwards, 0.0) * ranges.share[:, None]
    spent_s = took_s.cumsum(axis=1)
    return weighted_quantile(spent_s.ravel(), ending.ravel(), TAIL)
