"""The deployments that a cascade must be compared with: each model alone, planned for the same goal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast.blueprint import SingleModel
from cascadia_fast.economics import gpus_usd_per_hour
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.solving import Found, Minimise, Solver
from cascadia_fast.planning.subsets import Subset, single_subset
from cascadia_fast.routing import QUALITY_SLACK

if TYPE_CHECKING:
    from cascadia_fast.planning.simulated_plan import SimulatedPlan


@dataclass(frozen=True, slots=True)
class Single:
    """One model that answers every request; p95 and GPUs are None where no deployment meets the goal's constraints.

    Parameters
    ----------
    model
        Its name.
    quality
        Its mean quality.
    p95_s
        Its 95th percentile latency at its best.
    gpus
        GPUs per pool.
    """

    model: str
    quality: float
    p95_s: float | None
    gpus: Mapping[str, int] | None


def singles_of(searches: Searches, rate_per_s: float, simulated: SimulatedPlan | None = None) -> list[Single]:
    """Return every model alone, planned for the task's objective; with a simulated plan, at the p95s simulated."""
    found = []
    for index, stage in enumerate(searches.problem.stages):
        subset = single_subset(searches.subsets, searches.task.workload.requests, searches.cells, index)
        quality = float(subset.quality[0])
        if simulated is not None:
            choice = simulated.singles[index]
            carries = math.isfinite(choice.latency_s)
            gpus = {searches.task.pools[0].name: choice.gpus}
            found.append(Single(stage.name, quality, choice.latency_s if carries else None, gpus if carries else None))
            continue
        best = _best(searches, subset, rate_per_s)
        found.append(Single(stage.name, quality, None if best is None else best.worst_s[0], _gpus(searches, best)))
    return found


def _best(searches: Searches, subset: Subset, rate_per_s: float) -> Found | None:
    """The model alone, by the task's objective and within its deadline, whatever its quality."""
    objective = searches.task.goal.objective
    minimise: Minimise = "spend" if objective in ("min_cost", "min_gpus") else "latency"
    solver = Solver(searches, (subset,))
    return solver.best_of(subset, np.zeros(1, np.int64), minimise, rate_per_s=rate_per_s)


def _gpus(searches: Searches, found: Found | None) -> dict[str, int] | None:
    if found is None:
        return None
    by_pool = searches.gpus_of(found.subset, found.stations).sum(axis=0).tolist()
    return {pool.name: count for pool, count in zip(searches.task.pools, by_pool, strict=True)}


def best_single_model(
    singles: Sequence[Single], prices: Mapping[str, float | None], q_min: float, pool_gpus: int
) -> SingleModel:
    """Return the fastest single model that meets the floor, or the best one where none does."""
    options = [
        SingleModel(
            model=single.model,
            gpus=pool_gpus if single.gpus is None else sum(single.gpus.values()),
            p95_s=single.p95_s,
            quality=single.quality,
            cost_usd_per_hour=None if single.gpus is None else gpus_usd_per_hour(single.gpus, prices),
            feasible=single.p95_s is not None and single.quality >= q_min - QUALITY_SLACK,
        )
        for single in singles
    ]
    feasible = [option for option in options if option.feasible]
    if feasible:
        return min(feasible, key=lambda option: math.inf if option.p95_s is None else option.p95_s)
    return max(options, key=lambda option: option.quality)
