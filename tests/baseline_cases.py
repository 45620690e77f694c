"""Cases small enough to try every deployment of every routing, by the latency model's own evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from planning_cases import small_problem

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.loads import CascadeVisits, StationLoads
from cascadia_fast.problem import Problem

Deployment = Mapping[int, _core.Choice]


def small_case(models: int = 2, seed: int = 0, **given: Any) -> Case:
    """A case of 8 GPUs in nodes of 4, and 32 requests."""
    return case_of(small_problem(models, seed, **given))


def case_of(problem: Problem) -> Case:
    return Case.of(problem)


def choices(loads: StationLoads, model: int, gpus: int) -> list[_core.Choice]:
    """Every shape with every number of replicas that so many GPUs hold, and can hold the longest request."""
    return [
        loads.choice(model, option, replicas)
        for option, engine in enumerate(loads.case.fleet[model].replicas)
        for replicas in range(1, gpus // engine.shape.gpus + 1)
        if loads.capacity_per_s(model)[option] > 0
    ]


def utilization(loads: StationLoads, model: int, choice: _core.Choice) -> float:
    return loads.evaluate(model, choice)["utilization"]


def deployments(loads: StationLoads, gpus: int) -> Iterator[Deployment]:
    """Every deployment of all stations within the goal's cap."""
    cap = loads.case.problem.goal.max_utilization
    allowed = [
        [choice for choice in choices(loads, model, gpus) if utilization(loads, model, choice) <= cap]
        for model in loads.models
    ]
    for together in itertools.product(*allowed):
        if sum(choice.gpus for choice in together) <= gpus:
            yield dict(zip(loads.models, together, strict=True))


def slowest_s(deployment: Deployment) -> float:
    return max(choice.latency_s for choice in deployment.values())


def least_slowest_s(loads: StationLoads, gpus: int) -> float:
    """The least p95 of the slowest station; infinite where no deployment carries the rate within the cap."""
    return min((slowest_s(deployment) for deployment in deployments(loads, gpus)), default=math.inf)


def cascades(case: Case) -> Iterator[tuple[int, ...]]:
    """Every cascade of some of the models."""
    for size in range(1, case.models + 1):
        yield from itertools.combinations(range(case.models), size)


def loads_of(case: Case, models: tuple[int, ...], thresholds: tuple[float, ...]) -> tuple[StationLoads, CascadeVisits]:
    who = CascadeVisits.of(case.requests, models, thresholds)
    return StationLoads(case, who.visits, judged=who.judged), who
