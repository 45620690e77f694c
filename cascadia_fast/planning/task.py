"""What one call plans: the problem's goal and traffic with the call's overrides, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cascadia_fast.blueprint import Metric
from cascadia_fast.contradictions import check_goal_here
from cascadia_fast.errors import InputError
from cascadia_fast.planning.alternating import Options
from cascadia_fast.routing import Levels
from cascadia_fast.schema import MAX_GPUS, Goal, checked_goal
from cascadia_fast.workload import Workload

if TYPE_CHECKING:
    from cascadia_fast.pools import GpuPool
    from cascadia_fast.problem import Problem

METRICS: tuple[Metric, ...] = ("max_stage_p95", "end_to_end_p95", "ttft_p95")


@dataclass(frozen=True, eq=False)
class Task:
    """One planning task.

    Parameters
    ----------
    workload
        Traffic to plan for.
    pools
        The GPUs that may be used.
    goal
        Objective, floor, deadline, budget and how to search.
    levels
        Threshold levels, as `routing_grid` takes them.
    alternating
        Settings of method ``alternating``.
    """

    workload: Workload
    pools: tuple[GpuPool, ...]
    goal: Goal
    levels: Levels = None
    alternating: Options = field(default_factory=Options)

    @property
    def gpus(self) -> int:
        """GPUs of all pools."""
        return sum(pool.gpus for pool in self.pools)

    @property
    def metric(self) -> Metric:
        """The latency that is minimised, or else the one that the deadline counts by."""
        if self.goal.objective in METRICS:
            return self.goal.objective
        return self.goal.deadline_metric

    @property
    def minimises_latency(self) -> bool:
        """Whether the objective is a latency."""
        return self.goal.objective in METRICS

    def ceiling_s(self, metric: Metric) -> float:
        """Return the deadline on a latency; infinite where there is none."""
        return math.inf if self.goal.slo_s is None or self.goal.deadline_metric != metric else self.goal.slo_s

    @property
    def mixed(self) -> bool:
        """Whether two shapes may serve a stage; what must survive a loss has one, whose survivors are known."""
        return self.goal.mixed_shapes and self.goal.survive == "none"

    @property
    def by_path(self) -> bool:
        """Whether one request's whole path matters, not only each stage by itself."""
        metrics = [metric for metric in METRICS if math.isfinite(self.ceiling_s(metric))]
        return any(metric != "max_stage_p95" for metric in metrics + [self.metric] * self.minimises_latency)


def task_of(
    problem: Problem,
    *,
    workload: Workload | None,
    gpus: int | None,
    rate_per_s: float | None,
    levels: Levels,
    alternating: Options | None,
    goal: Mapping[str, Any],
) -> Task:
    """Return the task of a call; what is not given, or is None, is the problem's.

    Raises
    ------
    InputError
        An override is out of range, or a workload's models are not the cascade's.
    """
    workload = problem.workload if workload is None else workload
    models = tuple(stage.name_in_requests for stage in problem.stages)
    if workload.requests.models != models:
        given = ", ".join(workload.requests.models)
        raise InputError(f"the workload scores the models {given}; the cascade has {', '.join(models)}")
    if rate_per_s is not None:
        if not (0 < rate_per_s < float("inf")):
            raise InputError(f"rate_per_s is {rate_per_s:g}; give a positive number of requests per second")
        arrivals = workload.arrivals.rescaled(rate_per_s)
        workload = Workload.build(workload.requests, arrivals, workload.rate_from, workload.headroom)
    return Task(
        workload=workload,
        pools=problem.pools if gpus is None else (_resized(problem, gpus),),
        goal=_changed(problem, {name: value for name, value in goal.items() if value is not None}),
        levels=levels,
        alternating=alternating or Options(),
    )


def _changed(problem: Problem, changes: Mapping[str, Any]) -> Goal:
    if not changes:
        return problem.goal
    goal = checked_goal(problem.goal, changes, "the call")
    check_goal_here(goal, problem.fields.judge, problem.pools, "the call")
    return goal


def _resized(problem: Problem, gpus: int) -> GpuPool:
    if not 1 <= gpus <= MAX_GPUS:
        raise InputError(f"gpus is {gpus}; give 1 to {MAX_GPUS:,}")
    if len(problem.pools) > 1:
        names = ", ".join(pool.name for pool in problem.pools)
        raise InputError(f"gpus is {gpus}, but the cluster has the pools {names}; change a pool in the problem instead")
    return problem.pools[0].resized(gpus)
