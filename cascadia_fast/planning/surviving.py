"""The search for a plan that survives any one loss, and the check of every single loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cascadia_fast.blueprint import Metric
from cascadia_fast.errors import CascadiaError
from cascadia_fast.placement import place_in_pools
from cascadia_fast.planning.deployment import path_latency_s, stations_of
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.solving import Effort, Found, Group, Solver
from cascadia_fast.planning.station_latency import latency_of
from cascadia_fast.planning.survival import (
    Loss,
    PlacedGroups,
    check_losses,
    most_on_one_node,
    spare_for_nodes,
    worst_loss,
)
from cascadia_fast.summary_units import duration

# A deadline that the search holds to the last bit may be missed by rounding when it is checked another way.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Surviving:
    """A plan that survives, if one was found, the searches that found it, and what they did."""

    found: Found | None
    searches: Searches
    effort: Effort


def solve_surviving(searches: Searches, solver_of: Callable[[Searches], Solver]) -> Surviving:
    """Return the best plan found that survives the loss of any one node.

    Plans with one replica to spare at every station are no worse than those that survive a node, so the first of them
    bounds the result; where nodes hold several replicas of a station, the plan found may be worse than the best.
    """
    last: list[Surviving] = []
    tried: list[Solver] = []

    def plan(spare: tuple[int, ...]) -> Found | None:
        spared = dataclasses.replace(searches, spare_replicas=dict(enumerate(spare)), _made={}, _by_path={})
        solver = solver_of(spared)
        tried.append(solver)
        found = solver.solve()
        if found is not None:
            last.append(Surviving(found, spared, solver.effort))
        return found

    def most_lost(found: Found) -> tuple[int, ...]:
        groups = _groups(searches, found)
        models = [model for model, _ in groups]
        lost = list(most_on_one_node(models, _placed(searches, groups), len(searches.fleet)))
        # A node may take replicas of several stations at once, which the search does not: such plans need one more.
        for loss in losses_of(last[-1].searches, found):
            if not loss.survives:
                for model, taken in zip(models, loss.lost, strict=True):
                    spare = last[-1].searches.spare_replicas[model]
                    lost[model] = max(lost[model], spare + 1) if taken else lost[model]
        return tuple(lost)

    spared = spare_for_nodes(plan, most_lost, len(searches.fleet))
    if spared is None:
        return Surviving(None, searches, tried[-1].effort)
    # What no plan with a single spare replica is better than bounds every plan with more.
    last[-1].effort.bound = last[0].effort.bound
    last[-1].effort.complete = all(one.effort.complete for one in last)
    return last[-1]


def checked_losses(searches: Searches, found: Found) -> tuple[Loss, ...]:
    """Return what every single loss would do to a plan that is said to survive them.

    Raises
    ------
    CascadiaError
        It does not survive them all.
    """
    losses = losses_of(searches, found)
    if not all(loss.survives for loss in losses):
        worst = worst_loss(losses)
        raise CascadiaError(
            f"the plan does not survive the loss of one {worst.kind} ({deadline_metric(searches)} "
            f"{worst.latency_s:.4g} s); this is a defect, please report it with the problem file"
        )
    return losses


def losses_of(searches: Searches, found: Found) -> tuple[Loss, ...]:
    """Return what every single loss would do to a plan, with the load that is left to the survivors."""
    groups, goal = _groups(searches, found), searches.task.goal
    deadline_s = math.inf if goal.slo_s is None else goal.slo_s * (1 + ROUNDING)
    kind = "node" if goal.survive == "node" else "replica"
    return check_losses(
        kind,  # type: ignore[arg-type]
        [group.replicas for _, group in groups],
        _placed(searches, groups),
        lambda survivors: _latency_s(searches, found, survivors),
        deadline_s,
    )


def deadline_metric(searches: Searches) -> Metric:
    """Return the latency that a deadline counts by; without one, the objective's, so that it can be stated."""
    task = searches.task
    return task.metric if task.goal.slo_s is None else task.goal.deadline_metric


def losses_text(losses: Sequence[Loss], metric: Metric) -> str:
    """Return one clause on the losses that were checked."""
    worst = worst_loss(losses)
    each = f"each of {len(losses)} losses" if len(losses) > 1 else "the one loss"
    return f"{each} of one {worst.kind} checked, {metric} {duration(worst.latency_s)} after the worst"


def _groups(searches: Searches, found: Found) -> list[tuple[int, Group]]:
    models = searches.stations(found.subset)
    return [(model, group) for model, groups in zip(models, found.stations, strict=True) for group in groups]


def _placed(searches: Searches, groups: Sequence[tuple[int, Group]]) -> list[PlacedGroups]:
    pools = searches.task.pools
    requests = []
    for model, group in groups:
        fleet = searches.fleet[model]
        shape = fleet.replicas[group.option].shape
        requests.append((fleet.pools[group.option], (model, group.replicas, shape.tp, shape.pp)))
    placements = place_in_pools(requests, [(pool.name, pool.gpus, pool.gpus_per_node) for pool in pools], spread=True)
    return [
        PlacedGroups(pool.name, tuple(at for at, (index, _) in enumerate(requests) if index == number), placement)
        for number, (pool, placement) in enumerate(zip(pools, placements, strict=True))
    ]


def _latency_s(searches: Searches, found: Found, survivors: tuple[int, ...]) -> float:
    """The plan's latency with fewer replicas of some groups."""
    left = iter(survivors)
    stations = []
    for place, (before, groups) in enumerate(zip(stations_of(searches, found), found.stations, strict=True)):
        kept = tuple(dataclasses.replace(group, replicas=count) for group in groups if (count := next(left)) > 0)
        shared = _rebalanced(searches, found, place, kept, before.rate_per_s)
        if shared is None:
            return math.inf
        stations.append(shared)
    reduced = dataclasses.replace(found, stations=tuple(stations), choices=None)
    served = stations_of(searches, reduced)
    if any(station.peak_utilization > searches.task.goal.max_utilization * (1 + ROUNDING) for station in served):
        return math.inf
    metric = deadline_metric(searches)
    if metric == "max_stage_p95":
        return max(station.p95_s for station in served)
    return path_latency_s(searches, reduced, served, metric, 0.95)


def _rebalanced(
    searches: Searches, found: Found, place: int, groups: tuple[Group, ...], rate_per_s: float
) -> tuple[Group, ...] | None:
    """The groups left at a station, each engine with what it takes within one latency; None: they cannot carry it."""
    if rate_per_s == 0:  # nobody comes
        return tuple(dataclasses.replace(group, rate_per_s=0.0) for group in groups)
    if not groups:
        return None
    if len(groups) == 1:
        return (dataclasses.replace(groups[0], rate_per_s=rate_per_s / groups[0].replicas),)
    model = searches.stations(found.subset)[place]
    replicas = np.zeros(len(searches.fleet[model].replicas), np.int64)
    for group in groups:
        replicas[group.option] = group.replicas
    row = np.array([searches.row(found.subset, place, found.routing)], np.int64)
    latency_s, per_s = latency_of(
        lambda limit_s: found.search.capacities(station=place, prefixes=row, limit_s=limit_s)[0], replicas, rate_per_s
    )
    if math.isinf(latency_s):
        return None
    scale = rate_per_s / float(replicas @ per_s)
    return tuple(dataclasses.replace(group, rate_per_s=float(per_s[group.option]) * scale) for group in groups)
