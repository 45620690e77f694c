"""Problems small enough to try everything: few GPUs, few requests, few thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from reference.planning_instance import Instance, Route, of_problem, route_of
from reference.planning_oracle import best
from reference.planning_served import Deployment, Served

from cascadia_fast.blueprint import Plan, ReplicaGroup
from cascadia_fast.planning import paths
from cascadia_fast.problem import Problem
from cascadia_fast.workload import Arrivals, ScoredRequests, Workload

REQUESTS = 32
# Sizes that need one or two GPUs, so that a dozen GPUs leave a choice.
MODELS = ("qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b", "llama-3.1-70b-fp8")
LEVELS = ((35.0, 65.0), (40.0, 70.0), (50.0, 75.0))
H100 = {"gpu": "h100-sxm-80gb", "gpus": 8, "gpus_per_node": 4, "price_usd_per_hour": 3.0}
L40S = {"gpu": "l40s", "gpus": 4, "gpus_per_node": 4, "price_usd_per_hour": 1.0}


@contextmanager
def fewer_paths() -> Iterator[None]:
    """21 paths a request rather than 128; their p95 is no average of two of them, so rounding cannot move it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "FEWEST_PATHS", 21 * REQUESTS)
        yield


def scored_requests(models: int, seed: int, size: int = REQUESTS, weighted: bool = False) -> ScoredRequests:
    """Requests whose difficulty drives scores, qualities and lengths; larger models are better on average."""
    draw = np.random.default_rng(seed)
    difficulty = draw.normal(size=size)
    ability = np.linspace(-0.3, 1.2, models)[:, None] if models > 1 else np.zeros((1, 1))
    merit = 1.2 * (ability - difficulty)
    noise = draw.normal(size=(2, models, size))
    lengths = np.exp(draw.normal(5.5, 0.7, (2, models, size)) + 0.4 * difficulty)
    return ScoredRequests(
        models=MODELS[:models],
        request_ids=np.array([f"r{k}" for k in range(size)]),
        input_tokens=np.ceil(np.tile(lengths[0, :1], (models, 1))),
        output_tokens=np.ceil(lengths[1]),
        score=100 / (1 + np.exp(-merit - 0.7 * noise[0])),
        quality=100 / (1 + np.exp(-merit - 0.4 * noise[1])),
        weight=draw.uniform(0.5, 2.0, size) if weighted else np.empty(0),
    )


def small_problem(
    models: int = 2,
    seed: int = 0,
    *,
    rate_per_s: float = 10.0,
    cv: float = 1.0,
    weighted: bool = False,
    cluster: list[dict[str, Any]] | None = None,
    judge: dict[str, Any] | None = None,
    entries: dict[int, dict[str, Any]] | None = None,
    **goal: Any,
) -> Problem:
    """A problem with the first so many of `MODELS`; `entries` adds fields to some of them, `goal` to the goal."""
    requests = scored_requests(models, seed, weighted=weighted)
    fields = {
        "cascade": [{"model": name, **(entries or {}).get(k, {})} for k, name in enumerate(MODELS[:models])],
        "cluster": [H100] if cluster is None else cluster,
        "workload": {"requests": "given in memory", "rate_per_s": rate_per_s},
        "judge": {"latency_s": 0.2, "usd_per_call": 1e-4} if judge is None else judge,
        "goal": {"q_min": 0, **goal},
    }
    return Problem.from_dict(fields).replace(workload=Workload.build(requests, Arrivals.from_rate(rate_per_s, cv)))


def levels_of(problem: Problem) -> Sequence[Sequence[float]]:
    """The threshold levels to plan a small problem on."""
    return LEVELS[: len(problem.stages) - 1]


def oracle_of(problem: Problem, family: str = "homogeneous") -> Instance:
    """The problem, taken apart, on the levels of small problems."""
    return of_problem(problem, levels_of(problem), family)


def value_of(problem: Problem, family: str = "homogeneous", **goal: Any) -> float:
    """The oracle's best value; infinite where nothing meets the constraints."""
    found = best(oracle_of(problem, family).with_goal(**goal))
    return math.inf if found is None else found.value


def taken_apart(plan: Plan, problem: Problem, instance: Instance) -> tuple[Route, Deployment]:
    """What a plan runs, in the oracle's words."""
    reached = [stage for stage in plan.stages if stage.reach > 0]
    subset = [stage.index for stage in reached]
    route = route_of(instance, subset, plan.routing.thresholds[: len(subset) - 1])
    stations = {stage.index: stage.replicas for stage in plan.stages}
    if plan.judge.replicas:
        stations[len(instance.models)] = plan.judge.replicas
    served = Served(instance, route)
    return route, tuple(
        tuple(sorted((engine_of(served, problem, at, group), group.count) for group in stations.get(at, ())))
        for at in range(len(served.stations))
    )


def engine_of(served: Served, problem: Problem, at: int, group: ReplicaGroup) -> int:
    pools = [pool.name for pool in problem.pools]
    (engine,) = (
        number
        for number, engine in enumerate(served.stations[at].engines)
        if (pools[engine.pool], engine.replica.shape.tp, engine.replica.shape.pp) == (group.pool, group.tp, group.pp)
    )
    return engine
