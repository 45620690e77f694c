"""What is served where a goal cannot be met: the nearest plan there is, and what it lacks said in it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import below_floor, draw_plan
from cascadia_fast.baselines.loads import MOST_UTILIZATION, CascadeVisits, StationLoads
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import (
    CascadiaError,
    ModelDoesNotFitError,
    NoPlanError,
    PoolTooSmallError,
    QualityUnreachableError,
    RateTooHighError,
    UnsupportedError,
)
from cascadia_fast.planning.plan_parts import cascade_routing

if TYPE_CHECKING:
    from cascadia_fast.blueprint import ReplicaGroup
    from cascadia_fast.changes import Changes

# No rate changes these.
HOPELESS = (PoolTooSmallError, ModelDoesNotFitError, UnsupportedError)
# The largest rate is found to this, relatively: an overload is one at 99 % of it as well.
RATE_GAP = 0.01
LEAST_SHARE = 1e-6
JUST_BELOW = 1 - 1e-6

Attempt = Callable[[Case], Plan]


def plan_anyway(case: Case, system: str, attempt: Attempt) -> Plan:
    """Return what `attempt` plans, or what comes nearest where it finds that there is no plan.

    A floor out of reach becomes the best quality in reach. A rate that cannot be carried within the cap on utilisation
    is planned within 0.99, then without deadline, budget and spare replicas, and at last gets the plan of the largest
    rate that can be carried: it serves the whole rate all the same, and is ``unstable``.

    Parameters
    ----------
    case, system
        What is planned, by whom.
    attempt
        Plans a case, or raises a `NoPlanError`.

    Raises
    ------
    NoPlanError
        The models that the floor needs do not fit these GPUs, at any rate; or several pools do not carry the rate.
    """
    started_s = time.perf_counter()
    try:
        return attempt(case)
    except QualityUnreachableError as error:
        lower = plan_anyway(case.replace(q_min=error.best_quality), system, attempt)
        status = "feasible" if lower.status == "optimal" else lower.status
        warnings = (*lower.warnings, below_floor(lower.predicted.quality, case.q_min))
        return dataclasses.replace(lower, q_min=case.q_min, status=status, warnings=warnings)
    except HOPELESS:
        raise
    except NoPlanError as error:
        last: NoPlanError = error
    for changes in _relaxations(case):
        eased = case.replace(**changes)
        try:
            plan = attempt(eased)
            return dataclasses.replace(plan, warnings=(*plan.warnings, f"The goal as it is cannot be met: {last}"))
        except HOPELESS:
            raise
        except NoPlanError as error:
            last = error
    if len(case.problem.pools) > 1:
        raise last  # an overload is served on one pool only
    return _overloaded(case, system, _largest(eased, attempt, last), started_s)


def _relaxations(case: Case) -> list[Changes]:
    goal = case.problem.goal
    capped: Changes = {"max_utilization": max(goal.max_utilization, MOST_UTILIZATION)}
    bound = goal.slo_s is not None or goal.budget_usd_per_hour is not None or goal.survive != "none"
    if goal.objective in ("max_stage_p95", "end_to_end_p95", "ttft_p95") and not bound and not goal.mixed_shapes:
        return [capped]
    free: Changes = {
        "slo_s": None,
        "budget_usd_per_hour": None,
        "survive": "none",
        "mixed_shapes": False,  # one shape per model can be told from the plan
        "objective": goal.objective if goal.objective.endswith("p95") else goal.deadline_metric,
    }
    return [capped, {**capped, **free}]


def _largest(case: Case, attempt: Attempt, error: NoPlanError) -> Plan:
    """The plan of nearly the largest share of the rate that there is a plan for."""
    mean_per_s = case.problem.workload.arrivals.rate_per_s
    low, high, found = 0.0, 1.0, None
    share = 0.5
    if isinstance(error, RateTooHighError):
        share = error.max_rate_per_s / case.rate_per_s * JUST_BELOW
    while low < high * (1 - RATE_GAP):
        try:
            found, low = attempt(case.replace(rate_per_s=mean_per_s * share)), share
            if isinstance(error, RateTooHighError):
                break
        except HOPELESS:
            raise
        except NoPlanError:
            high = share
        if high < LEAST_SHARE:
            break
        share = high / 2 if low == 0 else math.sqrt(low * high)
    if found is None:
        raise error
    return found


def _overloaded(case: Case, system: str, plan: Plan, started_s: float) -> Plan:
    """A plan for a smaller rate, serving the whole one."""
    running = [stage for stage in plan.stages if stage.rate_per_s > 0]
    indexes = [stage.index for stage in running]
    thresholds = plan.routing.thresholds[: len(running) - 1]
    who = CascadeVisits.of(case.requests, indexes, thresholds)
    loads = StationLoads(case, who.visits, judged=who.judged)
    groups = {stage.index: stage.replicas for stage in running}
    if plan.judge.replicas:
        groups[case.models] = plan.judge.replicas
    return draw_plan(
        case,
        system,
        loads,
        {model: loads.choice(model, *_engine(case, model, replicas)) for model, replicas in groups.items()},
        cascade_routing(case.requests.of_models(indexes), thresholds, len(running)),
        quality=who.quality,
        note=f"the plan for {plan.workload.rate_per_s:.4g} requests/s, about the most that can be carried",
        started_s=started_s,
        evaluated=plan.solver.evaluated,
    )


def _engine(case: Case, model: int, groups: tuple[ReplicaGroup, ...]) -> tuple[int, int]:
    """The engine in the fleet, and how many there are."""
    if len(groups) != 1:
        raise CascadiaError(f"{len(groups)} groups of replicas serve one model; this is a defect, please report it")
    shapes = [(replica.shape.tp, replica.shape.pp) for replica in case.fleet[model].replicas]
    return shapes.index((groups[0].tp, groups[0].pp)), groups[0].count
