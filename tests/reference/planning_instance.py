"""A planning problem taken apart for `planning_oracle.py`: its models, pools, goal, and every routing it may choose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from reference.planning_stations import Engine, Lengths, Traffic, nodes_of

from cascadia_fast.fleet import StageFleet, build_fleet, build_judge_fleet
from cascadia_fast.length_cells import all_cells
from cascadia_fast.planning.paths import paths_of
from cascadia_fast.problem import Problem
from cascadia_fast.routing import route, routing_grid
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
SLACK = 1e-9  # relative, by which sums of floating-point numbers may miss a limit; of qualities in points


class Pool(NamedTuple):
    """GPUs of one type."""

    gpus: int
    gpus_per_node: int
    usd_per_gpu_hour: float


@dataclass(frozen=True, eq=False)
class Model:
    """One model: its engines, the length cells of its requests, and how many replicas it may have."""

    engines: tuple[Engine, ...]
    lengths: Lengths
    cell_of: NDArray[np.int32]  # (n,)
    least: int = 0
    most: int = 1_000_000


@dataclass(frozen=True, eq=False)
class Judge:
    """What scores answers: a delay and a price per call; with engines, a station of its own."""

    latency_s: float = 0.0
    usd_per_call: float = 0.0
    engines: tuple[Engine, ...] = ()
    instruction_tokens: int = 200
    output_tokens: int = 16


@dataclass(frozen=True)
class Goal:
    """What is pushed, and what must hold."""

    objective: str = "max_stage_p95"
    q_min: float = 0.0
    slo_s: float = math.inf
    slo_metric: str = "end_to_end_p95"
    budget_usd_per_hour: float = math.inf
    survive: str = "none"
    skip_models: bool = True
    family: str = "homogeneous"  # or "mixed": two shapes at a station; "pooled": any groups


class Paths(NamedTuple):
    """Requests with what their waits are drawn from: P paths of one subset of models."""

    request: NDArray[np.intp]  # (P,)
    node: NDArray[np.intp]  # (P, models of the subset): which sample of its cell a path meets at each model
    judge_node: NDArray[np.intp]  # (P, models of the subset): and at the judge after it


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem small enough to try everything. `levels` are those of every model but the last, ascending."""

    requests: ScoredRequests
    models: tuple[Model, ...]
    levels: tuple[tuple[float, ...], ...]
    pools: tuple[Pool, ...]
    traffic: Traffic
    judge: Judge = Judge()
    goal: Goal = Goal()
    known: dict[tuple[object, ...], object] = field(default_factory=dict, repr=False)

    def with_goal(self, **changes: object) -> Instance:
        return replace(self, goal=replace(self.goal, **changes))  # type: ignore[arg-type]

    def at_rate(self, rate_per_s: float) -> Instance:
        return replace(self, traffic=self.traffic._replace(rate_per_s=rate_per_s), known={})


class Route(NamedTuple):
    """Where one combination of thresholds sends the requests."""

    subset: tuple[int, ...]
    thresholds: tuple[float, ...]
    accepted_by: NDArray[np.intp]  # (n,): position in the subset
    quality: float


def of_problem(problem: Problem, levels: Sequence[Sequence[float]], family: str = "homogeneous") -> Instance:
    """The problem as it is read from its file, with these threshold levels and never."""
    requests, goal, workload = problem.workload.requests, problem.goal, problem.workload
    assert workload.swings.size == 0, "the oracle knows independent gaps only"
    judges = build_judge_fleet(problem)
    models = tuple(
        Model(
            _engines(fleet),
            Lengths(cells.tokens_in, cells.tokens_out, cells.spread_out),
            cells.cell_of,
            stage.min_replicas,
            stage.max_replicas or 1_000_000,
        )
        for fleet, cells, stage in zip(build_fleet(problem), all_cells(requests), problem.stages, strict=True)
    )
    return Instance(
        requests=requests,
        models=models,
        levels=tuple((*given, math.inf) for given in levels),
        pools=tuple(Pool(pool.gpus, pool.gpus_per_node, pool.price_usd_per_hour or 0.0) for pool in problem.pools),
        traffic=Traffic(workload.rate_per_s, workload.cv**2, goal.max_utilization),
        judge=Judge(
            problem.judge.latency_s,
            problem.judge.usd_per_call,
            () if judges is None else _engines(judges),
            problem.judge.instruction_tokens,
            problem.judge.output_tokens,
        ),
        goal=Goal(
            objective=goal.objective,
            q_min=goal.q_min,
            slo_s=math.inf if goal.slo_s is None else goal.slo_s,
            slo_metric=goal.deadline_metric,
            budget_usd_per_hour=math.inf if goal.budget_usd_per_hour is None else goal.budget_usd_per_hour,
            survive=goal.survive,
            skip_models=goal.skip_models,
            family=family,
        ),
    )


def _engines(fleet: StageFleet) -> tuple[Engine, ...]:
    return tuple(Engine(replica, pool) for replica, pool in zip(fleet.replicas, fleet.pools, strict=True))


def subsets(instance: Instance) -> list[tuple[int, ...]]:
    """Every cascade that may be planned: whoever must keep replicas is part of all of them."""
    models = range(len(instance.models))
    if not instance.goal.skip_models:
        return [tuple(models)]
    needed = {model for model in models if instance.models[model].least > 0}
    every = (subset for size in models for subset in itertools.combinations(models, size + 1))
    return [subset for subset in every if needed <= set(subset)]


def routings(instance: Instance) -> Iterator[Route]:
    """Every different routing that meets the floor; with skipping, those that reach all models of their subset."""
    goal = instance.goal
    for subset in subsets(instance):
        seen = set()
        for thresholds in itertools.product(*(instance.levels[model] for model in subset[:-1])):
            found = route_of(instance, subset, thresholds)
            reaches_all = found.accepted_by.max() == len(subset) - 1
            if found.quality < goal.q_min - SLACK or (goal.skip_models and not reaches_all):
                continue
            if found.accepted_by.tobytes() not in seen:
                seen.add(found.accepted_by.tobytes())
                yield found


def route_of(instance: Instance, subset: Sequence[int], thresholds: Sequence[float]) -> Route:
    requests = restricted(instance.requests, subset)
    accepted_by = route(requests, thresholds)
    served = requests.quality[accepted_by, np.arange(requests.size)]
    quality = float((served * requests.weight).sum() / requests.weight.sum())
    return Route(tuple(subset), tuple(thresholds), accepted_by, quality)


def restricted(requests: ScoredRequests, subset: Sequence[int]) -> ScoredRequests:
    rows = list(subset)
    return replace(
        requests,
        models=tuple(requests.models[model] for model in rows),
        input_tokens=requests.input_tokens[rows],
        output_tokens=requests.output_tokens[rows],
        score=requests.score[rows],
        quality=requests.quality[rows],
    )


def judge_lengths(instance: Instance) -> Lengths:
    """Calls after the answers of every model: the prompt is instruction, question and answer."""
    judge, cells = instance.judge, [model.lengths for model in instance.models]
    tokens_in = np.concatenate([judge.instruction_tokens + of.tokens_in + of.tokens_out for of in cells])
    return Lengths(tokens_in, np.full(tokens_in.size, float(judge.output_tokens)), np.zeros(tokens_in.size))


def draw_paths(instance: Instance, subset: Sequence[int]) -> Paths:
    """The planner's paths, taken apart: which draws there are is a convention, what is made of them is checked."""
    requests = restricted(instance.requests, subset)
    grid = routing_grid(requests, [instance.levels[model] for model in subset[:-1]])
    cells = [instance.models[model].lengths.size for model in subset]
    begins = [0, *np.cumsum([model.lengths.size for model in instance.models]).tolist()]
    nodes = [nodes_of(instance.models[model].lengths, instance.models[model].engines[0]) for model in subset]
    judge_cells = None
    judged = bool(instance.judge.engines) and len(subset) > 1
    if judged:
        judge_cells = [*(begins[model] for model in subset[:-1]), begins[-1]]
        nodes.insert(-1, nodes_of(judge_lengths(instance), instance.judge.engines[0]))
    drawn = paths_of(requests, grid, nodes, judge_cells)
    request = np.tile(np.arange(requests.size), drawn.weight.size // requests.size)
    sample = np.delete(drawn.sample, -2, axis=1) if judged else drawn.sample
    for at, model in enumerate(subset):
        assert np.array_equal(sample[:, at] % cells[at], instance.models[model].cell_of[request])
    judge_node = np.zeros((request.size, len(subset)), np.intp)
    if drawn.judge_sample is not None:
        judge_node[:, :-1] = drawn.judge_sample // begins[-1]
    return Paths(request, sample // np.array(cells), judge_node)
