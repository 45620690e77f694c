"""Why there is no plan: the smallest set of constraints that contradict one another, and what would lift it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from cascadia_fast.blueprint import Metric
from cascadia_fast.errors import NoPlanError, PoolTooSmallError, QualityUnreachableError, RateTooHighError
from cascadia_fast.planning.confidence import requests_to_meet
from cascadia_fast.planning.conflicts import conflict_text, smallest_conflict
from cascadia_fast.planning.qualities import Qualities
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.solving import Effort, Minimise, Solver
from cascadia_fast.planning.subsets import Subset
from cascadia_fast.planning.survival import cannot_survive
from cascadia_fast.planning.surviving import solve_surviving
from cascadia_fast.planning.task import Task
from cascadia_fast.routing import QUALITY_SLACK
from cascadia_fast.schema import MAX_GPUS, Goal

# So small a part of the planned rate that every system is idle.
IDLE = 1e-6
# How many times the GPUs of a cluster are worth proposing.
MOST_SPARE = 32
# Time for each question of which constraints contradict one another.
QUESTION_S = 5.0
LATENCY_NAMES: dict[Metric, str] = {
    "max_stage_p95": "the slowest stage's p95",
    "end_to_end_p95": "the end-to-end p95",
    "ttft_p95": "the p95 of the first token",
}


def check_floor(subsets: Sequence[Subset], qualities: Qualities, goal: Goal) -> None:
    """Raise `QualityUnreachableError` when no routing reaches the floor of quality."""
    tops: list[tuple[float, int, Subset]] = [
        (float(quality[candidates].max()), int(candidates[np.argmax(quality[candidates])]), subset)
        for subset, quality in zip(subsets, qualities.floors, strict=True)
        if (candidates := subset.candidates(-math.inf)).size
    ]
    best_quality, routing, best = max(tops, key=lambda top: top[0])
    if best_quality >= goal.q_min - QUALITY_SLACK:
        return
    thresholds = best.grid.thresholds(routing)
    route = f" (thresholds {describe(thresholds)})" if thresholds else f" ({best.requests.models[0]} alone)"
    sure = ""
    if goal.q_confidence is not None:
        mean = max(float(subset.quality.max()) for subset in subsets)
        needed = requests_to_meet([(s.requests, s.grid) for s in subsets], qualities.floors, goal.q_min)
        more = "" if needed is None else f" (about {needed:,} scored requests would do)"
        sure = f" with confidence {100 * goal.q_confidence:g} %, though {mean:.2f} in the mean of this sample{more}"
    raise QualityUnreachableError(
        f"q_min is {goal.q_min:g}, but no routing of these requests reaches more than {best_quality:.2f}{route}{sure}; "
        "lower q_min or use better models",
        best_quality=best_quality,
        thresholds=thresholds,
    )


def why_no_plan(searches: Searches, qualities: Qualities, effort: Effort) -> NoPlanError:
    """Return the error for a task of which the search found no plan."""
    if not effort.complete:
        return NoPlanError(
            f"no plan was found in the {searches.task.goal.time_limit_s:g} s of time_limit_s, and none was ruled out; "
            "raise time_limit_s"
        )
    unfit = _unfit_model(searches)
    if unfit is not None:
        return unfit
    names = _constraints(searches)
    conflict = smallest_conflict(list(names), lambda kept: _feasible(searches, qualities, kept))
    if set(conflict) <= {"q_min", "rate"} and len(searches.task.pools) == 1:
        goal = searches.task.goal.model_copy(update={"survive": "none"})
        return _too_few_gpus(_eased(searches, goal), qualities)
    if "slo_s" in conflict:
        idle = _idle_error(searches, qualities)
        if idle is not None:
            return idle
    if "survive" in conflict and len(searches.task.pools) == 1:
        return cannot_survive(
            searches.task.goal.survive,  # type: ignore[arg-type]
            searches.task.gpus,
            lambda gpus: _survives(searches, qualities, gpus),
            MOST_SPARE * searches.task.gpus,
        )
    return NoPlanError(
        f"{conflict_text(conflict, names)} on {gpus_text(searches.task.gpus)}; {_advice(searches, qualities, conflict)}"
    )


def gpus_text(gpus: int) -> str:
    """Return a number of GPUs as people write it."""
    return f"{gpus:,} GPU" if gpus == 1 else f"{gpus:,} GPUs"


def describe(thresholds: Sequence[float]) -> str:
    """Return thresholds as people write them."""
    return " / ".join("never" if math.isinf(value) else f"{value:g}" for value in thresholds)


def floor_digits(value: float, digits: int = 4) -> float:
    """Round down to significant digits, so that the printed rate is one that can be carried."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.floor(value / unit) * unit


def _constraints(searches: Searches) -> dict[str, str]:
    """Everything that may be in the way, and how people say it; what is dropped first comes first."""
    task, goal = searches.task, searches.task.goal
    found = {}
    if goal.survive != "none":
        found["survive"] = f"survive {goal.survive}"
    limited = [stage.name for stage in searches.problem.stages if stage.min_replicas or stage.max_replicas]
    if limited:
        found["replicas"] = f"min_replicas and max_replicas of {', '.join(limited)}"
    if goal.budget_usd_per_hour is not None:
        found["budget_usd_per_hour"] = f"a budget of {goal.budget_usd_per_hour:g} USD per hour"
    if goal.slo_s is not None:
        found["slo_s"] = f"{goal.deadline_metric} within slo_s {goal.slo_s:g}"
    found["q_min"] = f"q_min {goal.q_min:g}"
    if goal.objective != "max_rate":
        found["rate"] = f"{task.workload.rate_per_s:g} requests/s"
    return found


def _feasible(searches: Searches, qualities: Qualities, kept: frozenset[str]) -> bool:
    """Whether there is a plan under these constraints alone."""
    goal = searches.task.goal
    relaxed: dict[str, dict[str, Any]] = {
        "survive": {"survive": "none"},
        "budget_usd_per_hour": {"budget_usd_per_hour": None},
        "slo_s": {"slo_s": None, "slo_metric": None},
        "q_min": {"q_min": 0.0, "q_confidence": None},
    }
    changes: dict[str, Any] = {"objective": "min_gpus", "slo_metric": goal.slo_s and goal.deadline_metric}
    for name, change in relaxed.items():
        if name not in kept:
            changes |= change
    eased = _eased(searches, goal.model_copy(update=changes))
    eased.free_replicas = "replicas" not in kept
    floors = qualities.floors if "q_min" in kept else None
    rate = None if "rate" in kept else searches.task.workload.rate_per_s * IDLE
    solver = Solver(eased, eased.subsets, floors, deadline_s=time.perf_counter() + QUESTION_S)
    # What is not ruled out in time counts as possible: fewer constraints are then blamed than might be.
    return solver.best("any", rate) is not None or not solver.effort.complete


def _eased(searches: Searches, goal: Goal) -> Searches:
    """The searches of the same task with another goal; engines and grids are shared."""
    return dataclasses.replace(searches, task=dataclasses.replace(searches.task, goal=goal), _made={}, _by_path={})


def _unfit_model(searches: Searches) -> NoPlanError | None:
    """The error where some model holds its longest request in no shape, and no cascade does without it."""
    judge = searches.problem.judge.hosted
    if judge is not None and searches.hosted_judge and searches.models.smallest_engine(len(searches.fleet) - 1) == 0:
        return NoPlanError(
            f"no shape of the {judge.name} holds the KV cache of its longest call, so that no cascade of several "
            "models can run; use fewer instruction_tokens, another judge, or larger memory_utilization"
        )
    unfit = [index for index, _ in enumerate(searches.problem.stages) if searches.models.smallest_engine(index) == 0]
    if not unfit or any(not set(unfit) & set(subset.indexes) for subset in searches.subsets):
        return None
    return NoPlanError(
        f"no shape of {searches.problem.stages[unfit[0]].name} holds the KV cache of its longest request; allow larger "
        "memory_utilization, use a smaller kv_dtype, or drop the longest requests"
    )


def _too_few_gpus(searches: Searches, qualities: Qualities) -> NoPlanError:
    """The GPUs do not carry the rate at the floor, deadlines or not."""
    task, q_min = searches.task, searches.task.goal.q_min
    pairs = [
        (searches.of(subset), subset.candidates(q_min, floor))
        for subset, floor in zip(searches.subsets, qualities.floors, strict=True)
    ]
    pairs = [(search, candidates) for search, candidates in pairs if candidates.size]
    enough = min(search.least_gpus(candidates=candidates) for search, candidates in pairs)
    max_rate_per_s = max(search.max_rate_per_s(gpus=task.gpus, candidates=candidates) for search, candidates in pairs)
    advice = f"{gpus_text(int(enough))} would be enough" if enough <= MAX_GPUS else f"not even {MAX_GPUS:,} are enough"
    if max_rate_per_s <= 0:
        return PoolTooSmallError(
            f"{gpus_text(task.gpus)} cannot hold a cascade that meets q_min {q_min:g} at any rate; {advice} for "
            f"{task.workload.rate_per_s:g} requests/s",
            gpus_needed=int(enough) if enough <= MAX_GPUS else MAX_GPUS + 1,
        )
    return RateTooHighError(
        f"no allocation of {gpus_text(task.gpus)} carries {task.workload.rate_per_s:g} requests/s at q_min {q_min:g} "
        f"under the utilisation cap; the largest rate is {floor_digits(max_rate_per_s):g}, and {advice}",
        max_rate_per_s=max_rate_per_s,
    )


def _idle_error(searches: Searches, qualities: Qualities) -> NoPlanError | None:
    """The error of a deadline that not even an idle system meets, with what the fastest path takes."""
    goal = searches.task.goal
    metric: Metric = goal.deadline_metric
    changes = {"objective": metric, "slo_s": None, "slo_metric": None, "survive": "none", "budget_usd_per_hour": None}
    eased = _eased(searches, goal.model_copy(update=changes))
    fastest = Solver(eased, eased.subsets, qualities.floors).best("latency", searches.task.workload.rate_per_s * IDLE)
    if fastest is None or goal.slo_s is None or fastest.value <= goal.slo_s:
        return None
    return NoPlanError(
        f"slo_s is {goal.slo_s:g}, but on an idle system already {LATENCY_NAMES[metric]} of the fastest path that "
        f"meets q_min {goal.q_min:g} is {_ceil_digits(fastest.value):g} s; allow at least that, or lower q_min"
    )


def _advice(searches: Searches, qualities: Qualities, conflict: Collection[str]) -> str:
    """What would be enough: a larger budget, a later deadline, or more GPUs of the one pool."""
    relax = "relax one of them" if len(conflict) > 1 else "relax it"
    goal = searches.task.goal
    if "budget_usd_per_hour" in conflict:
        update = {
            "objective": "min_cost",
            "budget_usd_per_hour": None,
            "slo_metric": goal.slo_s and goal.deadline_metric,
        }
        least = _best_value(_eased(searches, goal.model_copy(update=update)), qualities, "spend")
        return relax if least is None else f"{_ceil_digits(least):g} USD per hour would do, or {relax}"
    if "slo_s" in conflict:
        update = {"objective": goal.deadline_metric, "slo_s": None, "slo_metric": None}
        least = _best_value(_eased(searches, goal.model_copy(update=update)), qualities, "latency")
        relax = relax if least is None else f"slo_s {_ceil_digits(least):g} would do, or {relax}"
    if len(searches.task.pools) == 1 and goal.budget_usd_per_hour is None:
        for factor in (2, 4, 8, 16, 32):
            found = _with_gpus(searches, qualities, searches.task.gpus * factor)
            if found is not None:
                return f"{gpus_text(found)} would be enough, or {relax}"
    return relax


def _best_value(searches: Searches, qualities: Qualities, minimise: Minimise) -> float | None:
    """What the best plan comes to, if one is found in time."""
    deadline_s = time.perf_counter() + QUESTION_S
    found = Solver(searches, searches.subsets, qualities.floors, deadline_s=deadline_s).best(minimise)
    return None if found is None else found.value


def _with_gpus(searches: Searches, qualities: Qualities, gpus: int) -> int | None:
    """The fewest GPUs, of so many, that are enough."""
    larger = _larger(searches, gpus)
    found = Solver(larger, larger.subsets, qualities.floors).best("spend")
    return None if found is None else found.gpus


def _survives(searches: Searches, qualities: Qualities, gpus: int) -> bool:
    """Whether some plan on so many GPUs survives a loss."""
    if searches.task.goal.survive == "replica":
        return _with_gpus(searches, qualities, gpus) is not None
    larger = _larger(searches, gpus)
    return solve_surviving(larger, lambda one: Solver(one, one.subsets, qualities.floors)).found is not None


def _larger(searches: Searches, gpus: int) -> Searches:
    """The searches of the same task for the fewest GPUs of a pool of so many."""
    task = searches.task
    metric = task.goal.slo_s and task.goal.deadline_metric
    goal = task.goal.model_copy(update={"objective": "min_gpus", "slo_metric": metric})
    larger: Task = dataclasses.replace(task, pools=(task.pools[0].resized(gpus),), goal=goal)
    return dataclasses.replace(searches, task=larger, _made={}, _by_path={})


def _ceil_digits(value: float, digits: int = 4) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit) * unit
