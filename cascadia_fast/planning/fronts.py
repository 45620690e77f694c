"""The exact front: all plans that no other beats on latency and quality, on cost as well, or on two of the three."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import numpy as np

from cascadia_fast.blueprint import Pool
from cascadia_fast.errors import InputError, UnsupportedError
from cascadia_fast.pareto.front import Axis, Front, FrontPoint, checked_axes
from cascadia_fast.planning.certificate import FAMILY_WORDS, family_of
from cascadia_fast.planning.deployment import path_latency_s, stations_of
from cascadia_fast.planning.infeasible import why_no_plan
from cascadia_fast.planning.qualities import Qualities
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.single_models import singles_of
from cascadia_fast.planning.solving import POOLED_GAP, Effort, Found, Minimise, Solver
from cascadia_fast.planning.subsets import Subset

# A budget this much below a plan's cost, relatively, excludes the plan.
CHEAPER = 1e-9
# Of quality, in points: what sums round is less.
DIGITS = 9


def front_of(searches: Searches, qualities: Qualities, axes: Sequence[str], started_s: float) -> Front:
    """Return the front of a task on some axes.

    Routings are gone through from the best quality down, and each is asked whether it improves on all before it; one
    pass over the grid then gives every point of two axes. With the cost, the budget is lowered plan by plan.

    Raises
    ------
    InputError
        The axes are not two or three known ones, or no price is known.
    NoPlanError
        There is no plan at all.
    """
    chosen = checked_axes(tuple(axes))
    task = searches.task
    if "latency" in chosen and not task.minimises_latency:
        # The latency of the front is what the deadline counts by.
        update = {"objective": task.metric, "slo_metric": task.goal.slo_s and task.metric}
        task = dataclasses.replace(task, goal=task.goal.model_copy(update=update))
        searches = dataclasses.replace(searches, task=task)
    if "cost" in chosen and any(pool.price_usd_per_hour is None for pool in task.pools):
        raise InputError("a front by cost needs a price for every pool; give price_usd_per_hour")
    if len(task.pools) > 1 and not task.by_path and "quality" in chosen:
        raise UnsupportedError(
            "a front by quality over several pools needs an objective or a deadline on whole paths; use objective "
            "end_to_end_p95"
        )
    if task.goal.survive == "node":
        raise UnsupportedError("fronts of plans that survive the loss of a node are not planned; use survive replica")
    deadline_s = started_s + task.goal.time_limit_s
    walk = _Walk(searches, qualities, deadline_s)
    by_spend = "latency" not in chosen
    if "cost" not in chosen:
        found = walk.by_quality("latency")
    elif by_spend:
        found = walk.by_quality("spend")
    else:
        found = walk.by_budget("quality" in chosen)
    if not found:
        raise why_no_plan(searches, qualities, Effort(complete=walk.complete))
    points = [_point(searches, plan, by_spend) for plan in found]
    return Front(
        axes=chosen,
        metric=task.metric,
        points=tuple(_undominated(points, chosen)),
        singles=tuple(_singles(searches)),
        pools=tuple(
            Pool(pool.name, pool.spec.name, pool.gpus, pool.gpus_per_node, pool.price_usd_per_hour)
            for pool in task.pools
        ),
        rate_per_s=task.workload.rate_per_s,
        q_min=task.goal.q_min,
        slo_s=task.goal.slo_s,
        slo_metric=None if task.goal.slo_s is None else task.goal.deadline_metric,
        budget_usd_per_hour=task.goal.budget_usd_per_hour,
        certificate=_certificate(searches, chosen, walk.complete),
        complete=walk.complete,
        seconds=time.perf_counter() - started_s,
    )


class _Walk:
    """Goes through the routings of every cascade."""

    def __init__(self, searches: Searches, qualities: Qualities, deadline_s: float) -> None:
        self._searches = searches
        self._qualities = qualities
        self._deadline_s = deadline_s
        self.complete = True

    def by_quality(self, minimise: Minimise) -> list[Found]:
        """Every plan that is better, on what is minimised, than all of better quality; cascade by cascade."""
        solver, found = self._solver(self._searches), list[Found]()
        for subset, candidates in self._ordered(self._searches):
            if time.perf_counter() > self._deadline_s:
                self.complete = False
                break
            found += solver.front(subset, candidates, minimise)
        return found

    def by_budget(self, by_quality: bool) -> list[Found]:
        """Lower the budget below what was found, until nothing is left."""
        searches, found = self._searches, list[Found]()
        while time.perf_counter() < self._deadline_s:
            solver = self._solver(searches)
            if by_quality:
                step = [f for s, candidates in self._ordered(searches) for f in solver.front(s, candidates, "latency")]
            else:
                best = solver.best("latency")
                step = [] if best is None else [best]
            if not step:
                return found
            found += step
            dearest = max(_usd_per_hour(searches, plan) for plan in step)
            goal = searches.task.goal.model_copy(update={"budget_usd_per_hour": dearest * (1 - CHEAPER) or math.ulp(0)})
            task = dataclasses.replace(searches.task, goal=goal)
            searches = dataclasses.replace(searches, task=task)
        self.complete = False
        return found

    def _solver(self, searches: Searches) -> Solver:
        return Solver(searches, searches.subsets, self._qualities.floors, None, self._deadline_s)

    def _ordered(self, searches: Searches) -> list[tuple[Subset, np.ndarray]]:
        q_min = searches.task.goal.q_min
        pairs = []
        for subset, floor in zip(searches.subsets, self._qualities.floors, strict=True):
            candidates = subset.candidates(q_min, floor)
            if candidates.size:
                pairs.append((subset, candidates[np.argsort(-subset.quality[candidates], kind="stable")]))
        return pairs


def _usd_per_hour(searches: Searches, found: Found) -> float:
    fixed = searches.fixed_usd_per_hour(found.subset, np.array([found.routing]), found.rate_per_s)
    gpus = searches.gpus_of(found.subset, found.stations).sum(axis=0)
    prices = [pool.price_usd_per_hour or 0.0 for pool in searches.task.pools]
    return float(fixed[0] + np.dot(gpus, prices))


def _point(searches: Searches, found: Found, by_spend: bool) -> FrontPoint:
    task, problem = searches.task, searches.problem
    latency_s = found.value
    if by_spend:
        stations = stations_of(searches, found)
        latency_s = (
            max(station.p95_s for station in stations)
            if task.metric == "max_stage_p95"
            else path_latency_s(searches, found, stations, task.metric, 0.95)
        )
    priced = all(pool.price_usd_per_hour is not None for pool in task.pools)
    models = [model for model in searches.stations(found.subset) if model < len(problem.stages)]
    by_station = dict(
        zip(
            searches.stations(found.subset),
            searches.gpus_of(found.subset, found.stations).sum(axis=1).tolist(),
            strict=True,
        )
    )
    return FrontPoint(
        latency_s=latency_s,
        quality=found.quality,
        usd_per_hour=_usd_per_hour(searches, found) if priced else None,
        gpus=found.gpus,
        models=tuple(problem.stages[model].name for model in models),
        stage_gpus=tuple(by_station[model] for model in models),
        thresholds=found.subset.grid.thresholds(found.routing),
    )


def _undominated(points: Sequence[FrontPoint], axes: Sequence[Axis]) -> list[FrontPoint]:
    """The points that no other beats, by the first axis; of equal ones the first."""

    def key(point: FrontPoint) -> tuple[float, ...]:
        # Means of equal answers differ in the last bits from one cascade to another.
        return tuple(-round(point.quality, DIGITS) if axis == "quality" else point.value(axis) or 0.0 for axis in axes)

    left: dict[tuple[float, ...], FrontPoint] = {}
    for point in sorted(points, key=lambda one: (len(one.models), one.gpus)):  # of equal ones the smallest
        left.setdefault(key(point), point)
    keys = np.array(list(left))
    beaten = [bool(((keys <= own).all(axis=1) & (keys < own).any(axis=1)).any()) for own in keys]
    kept = [point for point, worse in zip(left.values(), beaten, strict=True) if not worse]
    sign = -1.0 if axes[0] == "quality" else 1.0
    return sorted(kept, key=lambda point: sign * key(point)[0])


def _singles(searches: Searches) -> list[FrontPoint]:
    prices = {pool.name: pool.price_usd_per_hour for pool in searches.task.pools}
    found = []
    for single in singles_of(searches, searches.task.workload.rate_per_s):
        if single.p95_s is None or single.gpus is None:
            continue
        gpus = sum(single.gpus.values())
        known = all(prices[name] is not None for name, count in single.gpus.items() if count)
        usd = sum(count * (prices[name] or 0.0) for name, count in single.gpus.items()) if known else None
        found.append(FrontPoint(single.p95_s, single.quality, usd, gpus, (single.model,), (gpus,), ()))
    return found


def _certificate(searches: Searches, axes: Sequence[Axis], complete: bool) -> str:
    family = family_of(searches)
    within = f", each within {100 * POOLED_GAP:g} %" if family == "pooled" else ""
    every = "all plans that none beats"
    if not complete:
        every = f"plans found in {searches.task.goal.time_limit_s:g} s, not all there are,"
    return (
        f"{every} on {' and '.join(axes)}{within}, for this latency model, this grid of thresholds and this sample, "
        f"with {FAMILY_WORDS[family]}"
    )
