"""Ours under traffic that changes: a plan for each phase, made when it begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.drift_run import Deployment, Served
from benchmarks.drift_traffic import Traffic
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.relaxing import plan_anyway
from cascadia_fast.blueprint import OURS, Plan
from cascadia_fast.errors import NoPlanError
from cascadia_fast.planning.subsets import Subset, subsets_of
from cascadia_fast.problem import Problem
from cascadia_fast.simulation.statistics import smallest_scale
from cascadia_fast.simulation.system import build_system

if TYPE_CHECKING:
    from cascadia_fast.length_cells import LengthCells
    from cascadia_fast.planning.task import Task

SHARE = 0.95
# Old replicas make way for one new one at a time, as in the paper. Two at a time end at SLO scales 1.16 and 1.03 times
# as large on the DeepSeek traces (highest and third floors, five seeds), all at once at 2.2 and 1.25 times: old ones
# write their last answers for minutes and take no new requests meanwhile.
LANES = 1


def scale95(served: Served, traffic: Traffic, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Return the smallest SLO scale that 95 % of some requests attain; infinity where too few are served."""
    ratios = np.sort((served.latency_s / traffic.reference_s)[chosen])
    found = smallest_scale(ratios[np.isfinite(ratios)], SHARE, ratios.size)
    return float("inf") if found is None else found


def first_plan(traffic: Traffic) -> Plan:
    """Plan the first phase."""
    return _planned(traffic.phases[0].case, None)


def replanned(traffic: Traffic) -> list[Plan]:
    """Plan every phase anew; among equally good plans the one nearest to that in force is chosen."""
    plans = [first_plan(traffic)]
    for phase in traffic.phases[1:]:
        plans.append(_planned(phase.case, plans[-1]))
    return plans


def rehearsed(traffic: Traffic, rehearsal: Traffic, reload_s: Mapping[int, float], seed: int) -> list[Plan]:
    """Plan every phase in several ways, and take the one with the smallest SLO scale in simulation.

    What is tried on the planning half, the way there included: the best plan for the p95 end to end, for that of the
    slowest stage, and of single models; and, once there is a plan in force, that one, if it meets the floor, its
    replicas with other thresholds, and its shapes in other numbers. A plan is made for seconds, whoever they are of;
    which of these plans is best where each request has a deadline of its own shows only in simulation.
    """
    plans: list[Plan] = []
    for place, phase in enumerate(traffic.phases):
        so_far = rehearsal.until(place + 1)
        candidates = [*(_staying(phase.case, plans[-1]) if plans else ()), *_best(phase.case, plans[-1:])]
        scales = []
        for candidate in candidates:
            tried = Deployment([*plans, candidate], so_far, reload_s, LANES).run(seed)
            scales.append(scale95(tried, so_far, so_far.phase == place))
        plans.append(candidates[int(np.argmin(scales))])
    return plans


def _best(case: Case, in_force: Sequence[Plan]) -> Iterator[Plan]:
    previous = in_force[0] if in_force else None
    yield _planned(case, previous)
    yield _planned(case.replace(objective="max_stage_p95"), previous)
    yield _planned(case, previous, cascades=single_models)


def _planned(case: Case, previous: Plan | None, **options: Any) -> Plan:
    return plan_anyway(case, OURS, lambda eased: eased.planner(**options).plan(previous=previous))


def single_models(task: Task, cells: Sequence[LengthCells]) -> tuple[Subset, ...]:
    """Return the cascades of one model."""
    return tuple(subset for subset in subsets_of(task, cells) if len(subset.indexes) == 1)


def _staying(case: Case, plan: Plan) -> Iterator[Plan]:
    """The plan in force, its replicas, and its shapes, each as far as there is such a plan that meets the floor."""
    if case.meets(quality_of(plan, case.problem)):
        yield plan
    shape = {stage.index: (group.tp, group.pp) for stage in plan.stages for group in stage.replicas}
    same_shapes = case.keeping(lambda model, engine: shape.get(model) in (None, (engine.shape.tp, engine.shape.pp)))
    counts = {stage.model: sum(group.count for group in stage.replicas) for stage in plan.stages}
    same_replicas = same_shapes.replace(
        models={model: {"min_replicas": count, "max_replicas": count} for model, count in counts.items()}
    )
    for pinned in (same_replicas, same_shapes):
        with suppress(NoPlanError):
            yield pinned.planner().plan(previous=plan)


def quality_of(plan: Plan, problem: Problem) -> float:
    """Return the mean quality of a plan of one gear on a problem's requests."""
    system = build_system(plan, problem)
    requests = system.requests
    answers = requests.quality[system.accepted_by[0], np.arange(requests.size)]
    return float(np.average(answers, weights=requests.weight))
