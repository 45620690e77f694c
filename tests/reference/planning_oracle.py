"""Plans found by trying everything: every subset of models, every combination of thresholds, every deployment.

Only what one engine does under one load comes from the native core (`load_model.py` is its oracle): the p95 of a
replica, its largest rate, and samples of its latencies. What a station then is, how requests walk through a cascade,
what a deployment costs, what its loss does, and what is best, is written here once more, slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from reference.planning_instance import SLACK, Instance, Route, routings
from reference.planning_served import Deployment, Served
from reference.planning_stations import Groups


class Found(NamedTuple):
    """The best value and every plan that attains it."""

    value: float
    plans: tuple[tuple[Route, Deployment], ...]


def deployments(served: Served, options: Sequence[Sequence[Groups]]) -> Iterator[Deployment]:
    """Every choice of an option per station that the pools hold."""

    def extend(chosen: Deployment, free: tuple[int, ...]) -> Iterator[Deployment]:
        at = len(chosen)
        if at == len(options):
            yield chosen
            return
        engines = served.stations[at].engines
        for groups in options[at]:
            left = list(free)
            for engine, count in groups:
                left[engines[engine].pool] -= count * engines[engine].gpus
            if min(left) >= 0:
                yield from extend((*chosen, groups), tuple(left))

    yield from extend((), tuple(pool.gpus for pool in served.instance.pools))


def best(instance: Instance) -> Found | None:
    """The best of everything there is; None where nothing meets the constraints.

    For max_rate, the largest rate at which anything meets them, found by bisection.
    """
    if instance.goal.objective == "max_rate":
        return most_rate(instance)
    value, plans = math.inf, []
    for found in routings(instance):
        served = Served(instance, found)
        free = [pool.gpus for pool in instance.pools]
        options = [station.options(instance.goal.family, free) for station in served.stations]
        for deployment in deployments(served, options):
            reached = objective_of(served, deployment, value * (1 + SLACK))
            if reached > value * (1 + SLACK) or not served.allowed(deployment):
                continue
            if reached < value * (1 - SLACK):
                plans = []
            value = min(value, reached)
            plans.append((found, deployment))
    return Found(value, tuple(plans)) if plans else None


def front(instance: Instance, metric: str, axes: Sequence[str]) -> list[tuple[float, ...]]:
    """Every (latency, -quality, cost), as far as they are among the axes, that no other beats on all of them."""
    points = set()
    for found in routings(instance):
        served = Served(instance, found)
        free = [pool.gpus for pool in instance.pools]
        options = [station.options(instance.goal.family, free) for station in served.stations]
        for deployment in deployments(served, options):
            if served.allowed(deployment):
                latency_s = served.latency_s(deployment, metric) if "latency" in axes else 0.0
                by_axis = {"latency": latency_s, "quality": -found.quality, "cost": served.usd_per_hour(deployment)}
                points.add(tuple(by_axis[axis] for axis in axes))
    kept: list[tuple[float, ...]] = []
    for point in sorted(points):  # whatever beats a point comes before it
        if not any(all(a <= b * (1 + SLACK * (b > 0)) for a, b in zip(other, point, strict=True)) for other in kept):
            kept.append(point)
    return kept


def objective_of(served: Served, deployment: Deployment, interesting: float = math.inf) -> float:
    """The objective of a deployment; what is beyond `interesting` may come back as infinite."""
    objective = served.instance.goal.objective
    if objective == "any":
        return 0.0
    if objective == "min_cost":
        return served.usd_per_hour(deployment)
    if objective == "min_gpus":
        return float(sum(served.gpus(deployment)))
    stage_s = served.stage_s(deployment)
    if objective == "max_stage_p95" or not math.isfinite(stage_s):
        return stage_s
    path_s = served.path_s(deployment, objective)
    weight = served.instance.requests.weight[served.paths.request]
    if weight[path_s > interesting].sum() > 0.0500001 * weight.sum():
        return math.inf
    return served.quantile_s(path_s)


def feasible(instance: Instance) -> bool:
    """Whether anything meets the constraints."""
    instance = instance.with_goal(objective="any")
    for found in routings(instance):
        served = Served(instance, found)
        free = [pool.gpus for pool in instance.pools]
        options = [station.options(instance.goal.family, free) for station in served.stations]
        if any(served.allowed(deployment) for deployment in deployments(served, options)):
            return True
    return False


def most_rate(instance: Instance, precision: float = 1e-4) -> Found | None:
    """Bisect for the largest rate; feasibility falls with the rate."""
    low = high = instance.traffic.rate_per_s
    if feasible(instance):
        while feasible(instance.at_rate(high := 2 * high)):
            low = high
    else:
        while not feasible(instance.at_rate(low := low / 2)):
            high = low
            if low < 1e-6:
                return None
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if feasible(instance.at_rate(middle)) else (low, middle)
    return Found(low, ())
