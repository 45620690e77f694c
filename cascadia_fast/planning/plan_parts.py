"""The parts of a `Plan` that are drawn up alike whatever method found it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, get_args

from cascadia_fast.blueprint import (
    Calibration,
    CalibrationStatus,
    JudgePlan,
    PlannedWorkload,
    Pool,
    Predicted,
    Provenance,
    ReplicaGroup,
    Routing,
    Signal,
    StageCalibration,
    StagePlan,
)
from cascadia_fast.economics import cost_usd_per_hour, energy_j_per_request, usd_per_request
from cascadia_fast.placement import Placement, place_in_pools
from cascadia_fast.routing import middle_thresholds, threshold_intervals

if TYPE_CHECKING:
    from cascadia_fast.planning.deployment import Station
    from cascadia_fast.pools import GpuPool
    from cascadia_fast.problem import Problem
    from cascadia_fast.stations import Stage
    from cascadia_fast.workload import ScoredRequests, Workload


def finite(seconds: float) -> float | None:
    """Return a latency as plans hold it: None where load is unstable."""
    return seconds if math.isfinite(seconds) else None


def spec_of(problem: Problem, model: int) -> Stage:
    """Return the model of a station: one of the problem's, or the hosted judge after them."""
    if model < len(problem.stages):
        return problem.stages[model]
    assert problem.judge.hosted is not None
    return problem.judge.hosted


def placed_groups(
    problem: Problem,
    pools: Sequence[GpuPool],
    stations: Sequence[Station],
    *,
    spread: bool,
    max_batched_tokens: int | None = None,
) -> tuple[dict[int, tuple[ReplicaGroup, ...]], tuple[Pool, ...]]:
    """Place every station's replicas.

    Parameters
    ----------
    problem
        The models and the limits of their engines.
    pools
        The GPUs that may be used.
    stations
        What runs.
    spread
        Whether replicas of one model lie on as many nodes as possible.
    max_batched_tokens
        Tokens per step of every engine; None: the problem's.

    Returns
    -------
    The groups of every model, and the pools with the GPUs that are left idle.
    """
    flat = [(station, group) for station in stations for group in station.groups]
    requests = [
        (group.pool, (station.model, group.replicas, group.shape.tp, group.shape.pp)) for station, group in flat
    ]
    placements = place_in_pools(requests, [(pool.name, pool.gpus, pool.gpus_per_node) for pool in pools], spread=spread)
    left = [iter(placement.replicas) for placement in placements]
    groups: dict[int, list[ReplicaGroup]] = {}
    for station, group in flat:
        groups.setdefault(station.model, []).append(
            ReplicaGroup(
                count=group.replicas,
                gpu=pools[group.pool].spec.name,
                pool=pools[group.pool].name,
                tp=group.shape.tp,
                pp=group.shape.pp,
                ep=1,
                share=group.share,
                capacity_per_s=group.detail["capacity_per_s"],
                nodes=next(left[group.pool]),
                max_num_seqs=problem.max_num_seqs,
                max_batched_tokens=max_batched_tokens or problem.max_batched_tokens,
                max_model_len=spec_of(problem, station.model).model.max_model_len,
            )
        )
    return {model: tuple(made) for model, made in groups.items()}, _pools(pools, placements)


def stage_plan(
    spec: Stage, station: Station, groups: tuple[ReplicaGroup, ...], reach: float, p95_s: float
) -> StagePlan:
    """Return one model that runs."""
    return StagePlan(
        index=station.model,
        model=spec.name,
        weights=spec.weights,
        kv_dtype=spec.kv_dtype,
        gpus=station.gpus,
        reach=reach,
        rate_per_s=station.rate_per_s,
        p95_s=finite(p95_s),
        utilization=station.utilization,
        mean_batch=station.mean_batch if math.isfinite(p95_s) else None,
        replicas=groups,
    )


def judge_plan(problem: Problem, station: Station | None, groups: tuple[ReplicaGroup, ...] = ()) -> JudgePlan:
    """Return the problem's judge; without a station of its own it is not hosted, as nothing would ask it."""
    judge = problem.judge
    if station is None:
        kind = judge.kind if judge.kind != "hosted" else "external"
        return JudgePlan(kind, judge.latency_s, judge.usd_per_call, judge.simulated_auc)  # type: ignore[arg-type]
    spec = spec_of(problem, station.model)
    return JudgePlan(
        kind="hosted",
        latency_s=judge.latency_s,
        usd_per_call=judge.usd_per_call,
        simulated_auc=judge.simulated_auc,
        model=spec.name,
        weights=spec.weights,
        kv_dtype=spec.kv_dtype,
        gpus=station.gpus,
        rate_per_s=station.rate_per_s,
        p95_s=finite(station.p95_s),
        utilization=station.utilization,
        replicas=groups,
    )


def cascade_routing(
    requests: ScoredRequests, thresholds: Sequence[float], stages: int, signal: Signal | None = None
) -> Routing:
    """Return a cascade's routing: thresholds in the middle of the intervals that send the requests where these do.

    Parameters
    ----------
    requests
        Of the cascade's models; with a `signal`, its values in place of the scores.
    thresholds
        One fewer than the models.
    stages
        How many of the models run, from the first.
    signal
        What decides in place of the judge's scores.
    """
    intervals = [
        (None if low <= 0 and not (requests.score[stage] < high).any() else low, high)
        for stage, (low, high) in enumerate(threshold_intervals(requests, thresholds))
    ]
    middle, used = middle_thresholds(requests, thresholds), stages - 1
    return Routing("cascade", middle[:used], tuple(intervals[:used]), signal)


def predicted_of(
    pools: Sequence[GpuPool],
    stages: tuple[StagePlan, ...],
    judge: JudgePlan,
    *,
    rate_per_s: float,
    max_rate_per_s: float,
    slowest_s: float,
    path_s: tuple[float, float, float] | None,
    quality: float,
    quality_ci95: tuple[float, float],
    quality_lower: float | None = None,
    calls_per_s: float | None = None,
) -> Predicted:
    """Return what a plan promises, and what it costs.

    Parameters
    ----------
    rate_per_s, max_rate_per_s
        Requests per second that are planned, and that can be carried at most.
    slowest_s, path_s
        p95 of the slowest stage; median, p95 and p95 to the first token of whole paths, None where they are not known.
    quality, quality_ci95, quality_lower
        Mean quality, its interval, and its bound with the goal's confidence.
    calls_per_s
        Calls of the judge; None: one after every stage but the last.
    """
    prices = {pool.name: pool.price_usd_per_hour for pool in pools}
    cost = cost_usd_per_hour(stages, judge, prices, calls_per_s)
    path = (None, None, None) if path_s is None else [finite(seconds) for seconds in path_s]
    return Predicted(
        max_stage_p95_s=finite(slowest_s),
        end_to_end_p50_s=path[0],
        end_to_end_p95_s=path[1],
        ttft_p95_s=path[2],
        quality=quality,
        quality_ci95=quality_ci95,
        max_rate_per_s=max_rate_per_s,
        cost_usd_per_hour=cost,
        usd_per_request=usd_per_request(cost, rate_per_s),
        energy_j_per_request=energy_j_per_request(
            stages, judge, {pool.spec.name: pool.spec.power_w for pool in pools}, rate_per_s
        ),
        quality_lower=quality_lower,
    )


def planned_workload(workload: Workload) -> PlannedWorkload:
    """Return the traffic as the plan names it."""
    return PlannedWorkload(
        scored_requests=workload.requests.size,
        effective_size=workload.requests.effective_size,
        rate_per_s=workload.rate_per_s,
        rate_from=workload.rate_from,
        headroom=workload.headroom,
        cv=workload.cv,
        dispersion={f"{window_s:g}": value for window_s, value in workload.arrivals.dispersion.items()},
    )


def calibration_of(problem: Problem, stations: Sequence[Station]) -> Calibration:
    """Return how far the predicted times can be trusted; each station by its weakest engine."""
    order = get_args(CalibrationStatus)
    stages = tuple(
        StageCalibration(
            spec_of(problem, station.model).name,
            *max((group.status for group in station.groups), key=lambda status: order.index(status.level)),
        )
        for station in stations
    )
    return Calibration(problem.profile.name, max((stage.status for stage in stages), key=order.index), stages)


def weak_calibration(problem: Problem, station: Station) -> list[str]:
    """Return a sentence for each kind of a station's engines whose times were not measured near it."""
    weak = {group.status for group in station.groups if group.status.level in ("transferred", "roofline")}
    name = spec_of(problem, station.model).name
    return [f"Step times of {name} are {status.level}: {status.reason}" for status in sorted(weak)]


def provenance_of(problem: Problem, workload: Workload) -> Provenance:
    """Return where the inputs of a plan for some workload come from."""
    inputs = problem.input_hashes()
    if workload is not problem.workload:
        inputs["workload"] = workload.content_hash()
    specs = [*problem.stages, *([problem.judge.hosted] if problem.judge.hosted is not None else [])]
    catalog = {pool.spec.name: pool.spec.source for pool in problem.pools} | {
        spec.model.name: spec.model.source for spec in specs
    }
    return Provenance(_version(), inputs, catalog)


def _pools(pools: Sequence[GpuPool], placements: Sequence[Placement]) -> tuple[Pool, ...]:
    return tuple(
        Pool(pool.name, pool.spec.name, pool.gpus, pool.gpus_per_node, pool.price_usd_per_hour, placement.idle)
        for pool, placement in zip(pools, placements, strict=True)
    )


@cache
def _version() -> str:
    return version("cascadia-fast")
