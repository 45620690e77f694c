"""Which station of a plan holds it back, and how much room its constraints leave."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cascadia_fast.blueprint import Plan, ReplicaGroup
from cascadia_fast.plan_json import Record
from cascadia_fast.summary_units import OBJECTIVES, duration, percent, plural

# The slowest requests of all, of which a p95 is the fastest, are this share: a station that fewer visit cannot set it.
_TAIL = 0.05
# So near to the cap or to a full batch, a station is said to be at it.
_FULL = 0.98


@dataclass(frozen=True, slots=True)
class Bottleneck(Record):
    """The station that the objective depends on most, and sentences why; `index` is None for a hosted judge."""

    station: str
    index: int | None
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Constraint(Record):
    """One limit, how far the plan goes, and what is `left` of it, in the unit of its `kind`."""

    what: str
    kind: Literal["quality", "latency", "cost", "gpus", "utilization"]
    limit: float
    reached: float | None
    left: float | None


@dataclass(frozen=True)
class _Station:
    """What a stage and a hosted judge have in common; `visited` is the share of requests that goes there."""

    name: str
    index: int | None
    gpus: int
    visited: float
    p95_s: float
    utilization: float
    mean_batch: float
    replicas: tuple[ReplicaGroup, ...]

    @property
    def label(self) -> str:
        return f"the judge ({self.name})" if self.index is None else f"stage {self.index + 1} ({self.name})"


def constraints_of(plan: Plan) -> tuple[Constraint, ...]:
    """Every limit of a plan with what is left of it."""
    predicted = plan.predicted
    quality, what = predicted.quality, "quality"
    if plan.q_confidence is not None and predicted.quality_lower is not None:
        quality, what = predicted.quality_lower, f"quality, with {percent(plan.q_confidence)} confidence"
    found = [Constraint(what, "quality", plan.q_min, quality, quality - plan.q_min)]
    if plan.slo_s is not None and plan.slo_metric is not None:
        found.append(
            _limit(OBJECTIVES[plan.slo_metric], "latency", plan.slo_s, getattr(predicted, f"{plan.slo_metric}_s"))
        )
    if plan.budget_usd_per_hour is not None:
        found.append(_limit("USD per hour", "cost", plan.budget_usd_per_hour, predicted.cost_usd_per_hour))
    busiest = max(_stations(plan), key=lambda station: station.utilization)
    found.append(_limit(f"utilisation of {busiest.label}", "utilization", plan.max_utilization, busiest.utilization))
    pools = (
        _limit(f"GPUs of {pool.name}", "gpus", pool.gpus, pool.gpus - _idle(plan, pool.name)) for pool in plan.pools
    )
    return (*found, *pools)


def _limit(
    what: str, kind: Literal["latency", "cost", "gpus", "utilization"], limit: float, reached: float | None
) -> Constraint:
    return Constraint(what, kind, limit, reached, None if reached is None else limit - reached)


def bottleneck_of(plan: Plan) -> Bottleneck:
    """The station that the objective depends on most, with the reasons."""
    stations = _stations(plan)
    if plan.objective in ("min_cost", "min_gpus"):
        station, why = _dearest(plan, stations)
    elif plan.objective == "max_rate" and plan.slo_s is None:
        station = max(stations, key=lambda station: station.utilization)
        why = f"it is the busiest of {plural(len(stations), 'station')}, and the rate is limited by nothing but load"
    else:
        station, why = _slowest(plan, stations)
    return Bottleneck(station.name, station.index, (f"{station.label}: {why}", *_load(plan, station)))


def _stations(plan: Plan) -> list[_Station]:
    found = [
        _Station(
            name=stage.model,
            index=stage.index,
            gpus=stage.gpus,
            visited=stage.reach,
            p95_s=math.inf if stage.p95_s is None else stage.p95_s,
            utilization=stage.utilization,
            mean_batch=stage.mean_batch or 0.0,
            replicas=stage.replicas,
        )
        for stage in plan.stages
    ]
    judge = plan.judge
    if judge.kind == "hosted" and len(plan.stages) > 1:
        p95_s = math.inf if judge.p95_s is None else judge.p95_s
        busy = judge.utilization or 0.0
        found.append(_Station(judge.model or "", None, judge.gpus, 1.0, p95_s, busy, 0.0, judge.replicas))
    return found


def _dearest(plan: Plan, stations: list[_Station]) -> tuple[_Station, str]:
    """The station that most of the money, or of the GPUs, goes to."""
    price = {pool.name: pool.price_usd_per_hour or 0.0 for pool in plan.pools}

    def cost(station: _Station) -> float:
        if plan.objective == "min_gpus":
            return float(station.gpus)
        return sum(group.count * group.tp * group.pp * price[group.pool] for group in station.replicas)

    station = max(stations, key=cost)
    why = f"it has {station.gpus:,} of the {plural(plan.gpus, 'GPU')} in use"
    total = plan.predicted.cost_usd_per_hour
    if plan.objective == "min_cost" and total:
        why += f", {percent(cost(station) / total)} of the cost"
    return station, why


def _slowest(plan: Plan, stations: list[_Station]) -> tuple[_Station, str]:
    """The station with the largest p95 of those that the metric depends on."""
    considered, among = stations, ""
    if plan.latency_metric != "max_stage_p95":
        considered = [station for station in stations if station.visited > _TAIL] or stations
        among = f" of the stations that more than {percent(_TAIL)} of the requests visit"
    if plan.latency_metric == "ttft_p95" and len(plan.stages) > 1:
        last = plan.stages[-1].index
        considered = [station for station in considered if station.index != last] or considered
        among += " and whose answers must be complete before the client sees a token"
    ordered = sorted(considered, key=lambda station: -station.p95_s)
    station = ordered[0]
    why = f"its p95 of {_time(station.p95_s)} is the largest{among}"
    if len(ordered) > 1:
        why += f"; next is {ordered[1].label} with {_time(ordered[1].p95_s)}"
    return station, why


def _load(plan: Plan, station: _Station) -> tuple[str, ...]:
    """How busy the station is, and what one more of its engines would take."""
    busy, cap = percent(station.utilization), percent(plan.max_utilization)
    if station.utilization >= _FULL * plan.max_utilization:
        found = [f"it is busy {busy} of the time, at the cap of {cap}: fewer of these engines could not carry its load"]
    else:
        found = [f"it is busy {busy} of the time, below the cap of {cap}: waiting and its own speed set its latency"]
    limit = max((group.max_num_seqs for group in station.replicas), default=0)
    if limit and station.mean_batch >= _FULL * limit:
        found.append(f"its batches are full: {station.mean_batch:,.0f} of {limit:,} sequences on average")
    if station.replicas:
        group = min(station.replicas, key=lambda group: group.tp * group.pp)
        size, idle = group.tp * group.pp, _idle(plan, group.pool)
        found.append(
            f"one more replica of it takes {plural(size, 'GPU')}, and {'none is' if not idle else _are(idle)} idle"
        )
    return tuple(found)


def _are(count: int) -> str:
    return f"{count:,} {'is' if count == 1 else 'are'}"


def _idle(plan: Plan, pool: str) -> int:
    used = sum(group.count * group.tp * group.pp for group in plan.groups if group.pool == pool)
    return next(found.gpus for found in plan.pools if found.name == pool) - used


def _time(seconds: float) -> str:
    return duration(None if math.isinf(seconds) else seconds)
