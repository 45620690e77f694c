"""The same number of GPUs for every model of a cascade, and the best that can be made of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.loads import CascadeVisits, StationLoads
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError, RateTooHighError
from cascadia_fast.planning.infeasible import check_floor
from cascadia_fast.planning.plan_parts import cascade_routing
from cascadia_fast.planning.qualities import qualities_of
from cascadia_fast.planning.searches import Searches, allowed_subsets
from cascadia_fast.planning.solving import FREE_USD_PER_HOUR, Minimise
from cascadia_fast.planning.subsets import Subset, subsets_of
from cascadia_fast.planning.task import Task, task_of

# The largest rate is found to this, relatively, and looked for down to this share of the planned one.
RATE_GAP, LEAST_SHARE = 0.01, 1e-6


@dataclass(frozen=True, eq=False)
class _Cascade:
    """A cascade with the routings that meet the floor, and the GPUs of every station's own."""

    subset: Subset
    candidates: NDArray[np.int64]
    gpus: NDArray[np.int32]  # (candidates, stations of the whole fleet)


def equal_gpus(gpus: int, stations: int) -> list[int]:
    """Return GPUs split equally; what is left over goes one each to the last, the largest models."""
    each, left = divmod(gpus, stations)
    return [each + (place >= stations - left) for place in range(stations)]


def plan_equally(case: Case, system: str) -> Plan:
    """Plan the best cascade, routing and engines on equal numbers of GPUs.

    Raises
    ------
    RateTooHighError
        No cascade that meets the floor carries the rate so; the largest rate is in it.
    NoPlanError
        None carries any rate.
    UnsupportedError
        The cluster has several pools.
    """
    case.require_one_pool()
    started_s = time.perf_counter()
    task = task_of(case.problem, workload=None, gpus=None, rate_per_s=None, levels=None, alternating=None, goal={})
    searches = _apart(case, task)
    cascades = tuple(_cascades(case, searches))
    found, at, evaluated = None, None, 0
    for cascade in cascades:
        result = _best(searches, cascade, case.rate_per_s, "latency", math.inf if found is None else found.value)
        evaluated += result.evaluated
        if result.routing >= 0 and (found is None or result.value < found.value):
            found, at = result, cascade
    if found is None or at is None:
        raise _too_fast(case, searches, cascades)
    thresholds = at.subset.grid.thresholds(found.routing)
    who = CascadeVisits.of(case.requests, at.subset.indexes, thresholds)
    return draw_plan(
        case,
        system,
        StationLoads(case, who.visits, judged=who.judged),
        dict(zip(searches.stations(at.subset), found.stages, strict=True)),
        cascade_routing(at.subset.requests, thresholds, len(at.subset.indexes)),
        quality=who.quality,
        note="the best cascade, thresholds and shapes with the same number of GPUs for every model that runs",
        started_s=started_s,
        evaluated=evaluated,
    )


def _apart(case: Case, task: Task) -> Searches:
    """Searches in which every station has GPUs of its own: to them, a pool of its own."""
    fleet = tuple(
        dataclasses.replace(stage, pools=(model,) * len(stage.replicas)) for model, stage in enumerate(case.fleet)
    )
    apart = dataclasses.replace(task, pools=task.pools * len(fleet))
    subsets = allowed_subsets(case.problem, subsets_of(task, case.cells))
    return Searches(case.problem, apart, fleet, subsets, case.cells, case.threads)


def _cascades(case: Case, searches: Searches) -> Iterator[_Cascade]:
    """Every cascade with routings that meet the floor, small ones first: what they reach prunes the large ones."""
    goal, subsets = searches.task.goal, searches.subsets
    qualities = qualities_of(subsets, goal, case.threads)
    check_floor(subsets, qualities, goal)
    for subset, floors in reversed(list(zip(subsets, qualities.floors, strict=True))):
        candidates, stations = subset.candidates(goal.q_min, floors), searches.stations(subset)
        gpus = np.zeros((candidates.size, len(searches.fleet)), np.int32)
        gpus[:, list(stations)] = equal_gpus(case.gpus, len(stations))
        if candidates.size:
            yield _Cascade(subset, candidates, gpus)


def _best(
    searches: Searches, cascade: _Cascade, rate_per_s: float, minimise: Minimise, beat: float = math.inf
) -> _core.ExactResult:
    """The best routing and engines of one cascade at some rate."""
    search = searches.at(cascade.subset, rate_per_s)
    return searches.paths(cascade.subset, search).exact(
        candidates=cascade.candidates,
        gpus=cascade.gpus,
        metric=searches.task.metric,
        minimise=minimise,
        usd_per_gpu=[FREE_USD_PER_HOUR] * len(searches.fleet),
        beat=beat,
        threads=searches.threads,
    )


def _too_fast(case: Case, searches: Searches, cascades: tuple[_Cascade, ...]) -> NoPlanError:
    """The error for a rate that no cascade carries, with the largest one that some do."""
    largest_per_s = 0.0
    for cascade in cascades:
        low, high = largest_per_s, case.rate_per_s  # carried, as far as known; not carried
        rate_per_s = low * (1 + RATE_GAP) if low > 0 else high / 2
        while high > max(low * (1 + RATE_GAP), case.rate_per_s * LEAST_SHARE):
            if _best(searches, cascade, rate_per_s, "any").routing >= 0:
                low = rate_per_s
            elif low == largest_per_s > 0:
                break  # no better than another cascade
            else:
                high = rate_per_s
            rate_per_s = math.sqrt(low * high) if low > 0 else high / 2
        largest_per_s = max(largest_per_s, low)
    sentence = (
        f"no cascade that meets q_min {case.q_min:g} carries {case.rate_per_s:g} requests/s with equal shares of "
        f"{case.gpus:,} GPUs; add GPUs, or lower the rate or q_min"
    )
    return RateTooHighError(sentence, max_rate_per_s=largest_per_s) if largest_per_s > 0 else NoPlanError(sentence)
