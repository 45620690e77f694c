"""From what the search found to a `Plan`: predictions, placement, comparison and provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, get_args

from cascadia_fast.blueprint import (
    Calibration,
    CalibrationStatus,
    HighsProof,
    Iteration,
    JudgePlan,
    Plan,
    PlannedWorkload,
    Pool,
    Predicted,
    Provenance,
    ReplicaGroup,
    Routing,
    SimulatedLatency,
    SolverReport,
    StageCalibration,
    StagePlan,
)
from cascadia_fast.economics import cost_usd_per_hour, energy_j_per_request, usd_per_request
from cascadia_fast.placement import Placement, place_in_pools
from cascadia_fast.planning.allocation import Allocation
from cascadia_fast.planning.alternating import Round
from cascadia_fast.planning.certificate import Certificate
from cascadia_fast.planning.deployment import Station, path_latency_s, stations_of
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.simulated_plan import SimulatedPlan
from cascadia_fast.planning.single_models import Single, best_single_model
from cascadia_fast.planning.solving import Found
from cascadia_fast.planning.task import Task
from cascadia_fast.problem import Problem
from cascadia_fast.routing import RoutingGrid, middle_thresholds, quality_ci95, threshold_intervals
from cascadia_fast.workload import Workload, bursty_warning

if TYPE_CHECKING:
    from cascadia_fast.stations import Stage


@dataclass(frozen=True, eq=False)
class Draft:
    """Everything a plan is drawn up from."""

    searches: Searches
    found: Found
    certificate: Certificate
    singles: Sequence[Single]
    quality_lower: float | None
    warnings: tuple[str, ...]
    rounds: tuple[Round, ...] = ()
    proof: Allocation | None = None
    simulated: SimulatedPlan | None = None

    @property
    def problem(self) -> Problem:
        """The problem planned."""
        return self.searches.problem

    @property
    def task(self) -> Task:
        """The task planned."""
        return self.searches.task

    @property
    def workload(self) -> Workload:
        """The traffic at the planned rate."""
        workload, rate_per_s = self.task.workload, self.found.rate_per_s
        return workload if rate_per_s == workload.rate_per_s else workload.with_rate(rate_per_s)

    @property
    def prices(self) -> dict[str, float | None]:
        """Price per hour of one GPU of every pool."""
        return {pool.name: pool.price_usd_per_hour for pool in self.task.pools}

    def spec(self, station: Station) -> Stage:
        """Return the model of a station."""
        models = self.problem.stages
        if station.model < len(models):
            return models[station.model]
        assert self.problem.judge.hosted is not None
        return self.problem.judge.hosted


def draft_plan(draft: Draft, elapsed_s: Callable[[], float]) -> Plan:
    """Draw up the plan; `elapsed_s` is asked last, so that `solver.seconds` covers everything."""
    problem, task, goal, found = draft.problem, draft.task, draft.task.goal, draft.found
    served = stations_of(draft.searches, found)
    stations = [station for station in served if station.groups]
    models = [station for station in stations if station.model < len(problem.stages)]
    groups, placements = _placed(draft, stations)
    stages = tuple(_stage(draft, station, groups[station.model]) for station in models)
    judge = _judge(draft, next((s for s in stations if s not in models), None), groups)
    routing = _routing(found, len(models) - 1)
    predicted = _predicted(draft, served, stages, judge)
    latency_s = found.value if task.minimises_latency else getattr(predicted, _FIELD[task.metric])
    value = predicted.cost_usd_per_hour if goal.objective == "min_cost" else found.value
    running = {station.model for station in models}
    return Plan(
        status="optimal" if draft.certificate.proved else "feasible",
        objective=goal.objective,
        objective_value=value,
        latency_metric=task.metric,
        latency_s=latency_s,
        q_min=goal.q_min,
        q_confidence=goal.q_confidence,
        slo_s=goal.slo_s,
        slo_metric=None if goal.slo_s is None else goal.deadline_metric,
        budget_usd_per_hour=goal.budget_usd_per_hour,
        survive=goal.survive,
        max_utilization=goal.max_utilization,
        paper_strict=goal.paper_strict,
        predicted=predicted,
        routing=routing,
        stages=stages,
        skipped_models=tuple(stage.name for index, stage in enumerate(problem.stages) if index not in running),
        judge=judge,
        pools=tuple(
            Pool(pool.name, pool.spec.name, pool.gpus, pool.gpus_per_node, pool.price_usd_per_hour, placement.idle)
            for pool, placement in zip(task.pools, placements, strict=True)
        ),
        workload=_planned_workload(draft.workload),
        best_single_model=best_single_model(draft.singles, draft.prices, goal.q_min, draft.task.gpus),
        warnings=_warnings(draft, routing, models),
        calibration=_calibration(draft, stations),
        provenance=_provenance(draft),
        solver=_solver(draft, value, stations, elapsed_s),
    )


_FIELD = {
    "max_stage_p95": "max_stage_p95_s",
    "end_to_end_p95": "end_to_end_p95_s",
    "ttft_p95": "ttft_p95_s",
}


def _placed(
    draft: Draft, stations: Sequence[Station]
) -> tuple[dict[int, tuple[ReplicaGroup, ...]], tuple[Placement, ...]]:
    """Each station's groups with the GPUs they take, and every pool's placement."""
    pools = draft.task.pools
    flat = [(station, group) for station in stations for group in station.groups]
    requests = [
        (group.pool, (station.model, group.replicas, group.shape.tp, group.shape.pp)) for station, group in flat
    ]
    sizes = [(pool.name, pool.gpus, pool.gpus_per_node) for pool in pools]
    placements = place_in_pools(requests, sizes, spread=draft.task.goal.survive != "none")
    left = [iter(placement.replicas) for placement in placements]
    groups: dict[int, list[ReplicaGroup]] = {}
    for station, group in flat:
        problem, spec = draft.problem, draft.spec(station)
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
                max_batched_tokens=problem.max_batched_tokens,
                max_model_len=spec.model.max_model_len,
            )
        )
    return {model: tuple(made) for model, made in groups.items()}, placements


def _stage(draft: Draft, station: Station, groups: tuple[ReplicaGroup, ...]) -> StagePlan:
    spec, found = draft.spec(station), draft.found
    simulated_s = draft.simulated.run.stage_p95_s if draft.simulated else {}
    return StagePlan(
        index=station.model,
        model=spec.name,
        weights=spec.weights,
        kv_dtype=spec.kv_dtype,
        gpus=station.gpus,
        reach=float(found.subset.reach[found.subset.indexes.index(station.model), found.routing]),
        rate_per_s=station.rate_per_s,
        p95_s=simulated_s.get(station.model, station.p95_s),
        utilization=station.utilization,
        mean_batch=station.mean_batch,
        replicas=groups,
    )


def _judge(draft: Draft, station: Station | None, groups: dict[int, tuple[ReplicaGroup, ...]]) -> JudgePlan:
    judge = draft.problem.judge
    kind = judge.kind if station is not None or judge.kind != "hosted" else "external"
    plan = JudgePlan(
        kind=kind,  # type: ignore[arg-type]
        latency_s=judge.latency_s,
        usd_per_call=judge.usd_per_call,
        simulated_auc=judge.simulated_auc,
    )
    if station is None:
        return plan
    spec = draft.spec(station)
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
        p95_s=station.p95_s,
        utilization=station.utilization,
        replicas=groups[station.model],
    )


def _predicted(
    draft: Draft, stations: tuple[Station, ...], stages: tuple[StagePlan, ...], judge: JudgePlan
) -> Predicted:
    found, task, rate_per_s = draft.found, draft.task, draft.found.rate_per_s
    grid, requests = found.subset.grid, found.subset.requests
    slowest_s = max(station.p95_s for station in stations)
    if draft.simulated is not None:
        run = draft.simulated.run
        slowest_s = max(run.stage_p95_s.values())
        path_s = (run.p50_s, run.p95_s, run.ttft_p95_s)
    else:
        path_s = (
            path_latency_s(draft.searches, found, stations, "end_to_end_p95", 0.5),
            path_latency_s(draft.searches, found, stations, "end_to_end_p95", 0.95),
            path_latency_s(draft.searches, found, stations, "ttft_p95", 0.95),
        )
    busiest = max(station.peak_utilization for station in stations)
    cost = cost_usd_per_hour(stages, judge, draft.prices)
    return Predicted(
        max_stage_p95_s=slowest_s,
        end_to_end_p50_s=path_s[0],
        end_to_end_p95_s=path_s[1],
        ttft_p95_s=path_s[2],
        quality=found.quality,
        quality_ci95=quality_ci95(requests, grid.thresholds(found.routing)),
        max_rate_per_s=rate_per_s * task.goal.max_utilization / busiest,
        cost_usd_per_hour=cost,
        usd_per_request=usd_per_request(cost, rate_per_s),
        energy_j_per_request=energy_j_per_request(
            stages, judge, {pool.spec.name: pool.spec.power_w for pool in task.pools}, rate_per_s
        ),
        quality_lower=draft.quality_lower,
    )


def _routing(found: Found, thresholds_used: int) -> Routing:
    requests = found.subset.requests
    thresholds = found.subset.grid.thresholds(found.routing)
    intervals = [
        (None if low <= 0 and not (requests.score[stage] < high).any() else low, high)
        for stage, (low, high) in enumerate(threshold_intervals(requests, thresholds))
    ]
    middle = middle_thresholds(requests, thresholds)
    return Routing("cascade", middle[:thresholds_used], tuple(intervals[:thresholds_used]))


def _planned_workload(workload: Workload) -> PlannedWorkload:
    return PlannedWorkload(
        scored_requests=workload.requests.size,
        effective_size=workload.requests.effective_size,
        rate_per_s=workload.rate_per_s,
        rate_from=workload.rate_from,
        headroom=workload.headroom,
        cv=workload.cv,
        dispersion={f"{window_s:g}": value for window_s, value in workload.arrivals.dispersion.items()},
    )


def _warnings(draft: Draft, routing: Routing, models: Sequence[Station]) -> tuple[str, ...]:
    # Simulation takes the arrivals as they are.
    found = [bursty_warning(draft.workload.arrivals) if draft.simulated is None else None, *draft.warnings]
    for station, threshold in zip(models, routing.thresholds, strict=False):
        if math.isinf(threshold):
            found.append(
                f"Stage {station.model + 1} ({draft.spec(station).name}) accepts no answer, so every request waits for "
                "it in vain: plan the cascade without it and compare"
            )
    for station in models:
        weak = {group.status for group in station.groups if group.status.level in ("transferred", "roofline")}
        found += [f"Step times of {draft.spec(station).name} are {s.level}: {s.reason}" for s in sorted(weak)]
    return tuple(dict.fromkeys(sentence for sentence in found if sentence))


def _calibration(draft: Draft, stations: Sequence[Station]) -> Calibration:
    order = get_args(CalibrationStatus)
    weakest = [
        (draft.spec(station).name, max((group.status for group in station.groups), key=lambda s: order.index(s.level)))
        for station in stations
    ]
    stages = tuple(StageCalibration(name, *status) for name, status in weakest)
    return Calibration(draft.problem.profile.name, max((stage.status for stage in stages), key=order.index), stages)


def _provenance(draft: Draft) -> Provenance:
    problem = draft.problem
    inputs = problem.input_hashes()
    if draft.task.workload is not problem.workload:
        inputs["workload"] = draft.task.workload.content_hash()
    specs = [*problem.stages, *([problem.judge.hosted] if problem.judge.hosted is not None else [])]
    catalog = {pool.spec.name: pool.spec.source for pool in problem.pools} | {
        spec.model.name: spec.model.source for spec in specs
    }
    return Provenance(_version(), inputs, catalog)


@cache
def _version() -> str:
    return version("cascadia-fast")


def _solver(
    draft: Draft, value: float | None, stations: Sequence[Station], elapsed_s: Callable[[], float]
) -> SolverReport:
    certificate, effort = draft.certificate, draft.certificate.effort
    simulated = None
    if draft.simulated is not None:
        simulated = SimulatedLatency(
            requests=draft.simulated.requests,
            seed=draft.simulated.seed,
            runs=draft.simulated.found.simulations,
            screen=draft.simulated.found.screen,
            formula_latency_s=max(station.p95_s for station in stations),
        )
    full, proof = draft.searches.subsets[0].grid, draft.proof
    return SolverReport(
        method=draft.task.goal.method,
        certificate=certificate.text,
        family=certificate.family,
        subsets=effort.subsets,
        levels=tuple(len(levels) for levels in full.levels),
        distinct_routings=effort.distinct,
        evaluated=effort.evaluated,
        pruned=effort.pruned,
        complete=effort.complete,
        time_limit_s=draft.task.goal.time_limit_s,
        bound=certificate.bound(value),
        gap=certificate.gap(value),
        seconds=elapsed_s(),
        highs=None if proof is None else HighsProof(proof.status, proof.latency_s, proof.columns, proof.seconds),
        trace=tuple(_iteration(draft.found.subset.grid, step) for step in draft.rounds),
        simulated=simulated,
    )


def _iteration(grid: RoutingGrid, step: Round) -> Iteration:
    return Iteration(
        thresholds=grid.thresholds(step.routing),
        gpus=tuple(choice.gpus for choice in step.deployment),
        latency_s=step.latency_s,
        quality=float(grid.quality[grid.combination(step.routing)]),
        objective=step.objective,
    )
