"""Our own plan with one thing changed, mostly a freedom taken away; everything else is planned as it is, exactly.

* `uniform-parallelism` (arXiv 2506.04203, section 5.4): the models, thresholds and GPUs per model are chosen, the
  shape of the engines is not. Every model runs with the largest tensor parallelism that a node (and, where that is
  less, its attention heads) allows, as few pipeline stages as hold it, and replicas across nodes.
* `uniform-allocation` (section 5.4): every model that runs gets the same number of GPUs, N / C each; where that leaves
  some over, the largest models get one more. Models, thresholds and shapes are chosen, so that a cascade of two models
  splits the GPUs in halves: models may be skipped, as in our plan, which favours it.
* `common-threshold`: all thresholds of a cascade are equal.
* `no-skipping`: the cascade is of all models in order, as the paper has it, and every request begins at the first.
* `alternating`: the paper's own method, deployment and routing in turn (its algorithm 1) for the slowest stage's p95,
  over the cascade of all models. Deadline and budget are no part of it.
* `paper-objective`: the slowest stage's p95 is made least, as in the paper, where ours is planned for the p95 of whole
  paths or whatever else the file asks for.
* `confident`: the floor holds with a confidence of 80 % for the traffic behind the requests, not only for the mean of
  the planning half (`q_confidence`). It shows what certainty costs, and that the cheapest routing that meets a floor on
  a small sample is one that the sample flatters. Where no routing is so certain, the surest one is taken.
* `tried`: of the best plans of all cascades, by our latency model, the one with the least p95 when each is simulated on
  the planning half, as `single`, `sarathi` and `cascadeserve` are tuned. It shows what the model's errors cost.

What cannot be planned (a floor out of reach, a rate beyond what the GPUs carry) is served all the same, as it is for
our own plan; a cascade that fits no GPUs is not.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.relaxing import plan_anyway
from cascadia_fast.baselines.trying import simulated_p95_s
from cascadia_fast.baselines.uniform_allocation import plan_equally
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError, UnsupportedError
from cascadia_fast.planning.subsets import Subset, subsets_of

if TYPE_CHECKING:
    from cascadia_fast.length_cells import LengthCells
    from cascadia_fast.planning.task import Task

CONFIDENCE = 0.8


def plan_uniform_parallelism(case: Case) -> Plan:
    """Plan with one shape for each model: tensor parallelism over the node."""
    uniform = {model: _widest(stage.replicas) for model, stage in enumerate(case.fleet)}
    return _ablated(case.keeping(lambda model, engine: engine.shape == uniform[model]), "uniform-parallelism")


def plan_uniform_allocation(case: Case) -> Plan:
    """Plan with equal numbers of GPUs."""
    name = "uniform-allocation"
    return plan_anyway(case, name, lambda eased: plan_equally(eased, name))


def plan_common_threshold(case: Case) -> Plan:
    """Plan with one threshold for all models."""
    return _ablated(case, "common-threshold", cascades=_equal_thresholds)


def plan_no_skipping(case: Case) -> Plan:
    """Plan the cascade of all models.

    Raises
    ------
    UnsupportedError
        The judge is hosted: then models may be skipped.
    """
    _require_external_judge(case, "no-skipping")
    return _ablated(case.replace(skip_models=False), "no-skipping")


def plan_alternating(case: Case) -> Plan:
    """Plan by the paper's loop.

    Raises
    ------
    UnsupportedError
        The judge is hosted, or there are several pools: the paper knows neither.
    """
    case.require_one_pool()
    _require_external_judge(case, "alternating")
    as_the_paper = case.replace(
        method="alternating",
        objective="max_stage_p95",
        slo_s=None,
        budget_usd_per_hour=None,
        survive="none",
        mixed_shapes=False,
        q_confidence=None,
    )
    return _ablated(as_the_paper, "alternating")


def plan_paper_objective(case: Case) -> Plan:
    """Plan for the slowest stage's p95."""
    return _ablated(case.replace(objective="max_stage_p95"), "paper-objective")


def plan_confident(case: Case) -> Plan:
    """Plan for a floor that holds with confidence."""
    return _ablated(case.replace(q_confidence=CONFIDENCE), "confident")


def plan_tried(case: Case) -> Plan:
    """Plan every cascade, and take the one that simulation finds fastest."""
    models = range(case.models)
    found = []
    for chosen in itertools.chain.from_iterable(itertools.combinations(models, size + 1) for size in models):
        with suppress(NoPlanError):
            found.append(case.planner(cascades=partial(_only, chosen)).plan())
    if not found:
        return _ablated(case, "tried")
    best = min(found, key=lambda plan: simulated_p95_s(case, plan)) if len(found) > 1 else found[0]
    return dataclasses.replace(best, system="tried", status="feasible")


def _require_external_judge(case: Case, system: str) -> None:
    if case.problem.judge.hosted is not None:
        raise UnsupportedError(
            f"{system} is planned with an external judge only, and the judge is hosted; leave it out"
        )


def _only(models: tuple[int, ...], task: Task, cells: Sequence[LengthCells]) -> tuple[Subset, ...]:
    return tuple(subset for subset in subsets_of(task, cells) if subset.indexes == models)


def _ablated(case: Case, system: str, **options: object) -> Plan:
    def attempt(eased: Case) -> Plan:
        return dataclasses.replace(eased.planner(**options).plan(), system=system)

    return plan_anyway(case, system, attempt)


def _widest(engines: Sequence[_core.Replica]) -> _core.Shape:
    """The largest tensor parallelism, with the fewest pipeline stages."""
    return max((engine.shape for engine in engines), key=lambda shape: (shape.tp, -shape.pp))


def _equal_thresholds(task: Task, cells: Sequence[LengthCells]) -> tuple[Subset, ...]:
    """The cascades that a task may be planned with, with the routings of equal thresholds only."""
    return tuple(_diagonal(subset) for subset in subsets_of(task, cells))


def _diagonal(subset: Subset) -> Subset:
    grid = subset.grid
    if len(grid.levels) < 2:
        return subset
    alike = {
        grid.routing_of(subset.requests, (level,) * len(grid.levels))
        for level in np.unique(np.concatenate(grid.levels))
        if all(level in levels for levels in grid.levels)
    }
    kept = np.ascontiguousarray(grid.routings[sorted(alike)])
    return dataclasses.replace(subset, grid=dataclasses.replace(grid, routings=kept))
