"""From what the search found to a `Plan`: predictions, placement, comparison and provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cascadia_fast.blueprint import (
    HighsProof,
    Iteration,
    JudgePlan,
    Plan,
    Predicted,
    ReplicaGroup,
    Routing,
    SimulatedLatency,
    SolverReport,
    StagePlan,
)
from cascadia_fast.planning.allocation import Allocation
from cascadia_fast.planning.alternating import Round
from cascadia_fast.planning.certificate import Certificate
from cascadia_fast.planning.deployment import Station, path_latency_s, stations_of
from cascadia_fast.planning.plan_parts import (
    calibration_of,
    cascade_routing,
    judge_plan,
    placed_groups,
    planned_workload,
    predicted_of,
    provenance_of,
    spec_of,
    stage_plan,
    weak_calibration,
)
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.simulated_plan import SimulatedPlan
from cascadia_fast.planning.single_models import Single, best_single_model
from cascadia_fast.planning.solving import Found
from cascadia_fast.planning.task import Task
from cascadia_fast.problem import Problem
from cascadia_fast.routing import RoutingGrid, quality_ci95
from cascadia_fast.workload import Workload, bursty_warning


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


def draft_plan(draft: Draft, elapsed_s: Callable[[], float]) -> Plan:
    """Draw up the plan; `elapsed_s` is asked last, so that `solver.seconds` covers everything."""
    problem, task, goal, found = draft.problem, draft.task, draft.task.goal, draft.found
    served = stations_of(draft.searches, found)
    stations = [station for station in served if station.groups]
    models = [station for station in stations if station.model < len(problem.stages)]
    groups, pools = placed_groups(problem, task.pools, stations, spread=goal.survive != "none")
    stages = _stages(draft, models, groups)
    hosted = next((station for station in stations if station not in models), None)
    judge = judge_plan(problem, hosted, () if hosted is None else groups[hosted.model])
    routing = cascade_routing(found.subset.requests, found.subset.grid.thresholds(found.routing), len(models))
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
        pools=pools,
        workload=planned_workload(draft.workload),
        best_single_model=best_single_model(draft.singles, draft.prices, goal.q_min, draft.task.gpus),
        warnings=_warnings(draft, routing, models),
        calibration=calibration_of(problem, stations),
        provenance=provenance_of(problem, task.workload),
        solver=_solver(draft, value, stations, elapsed_s),
    )


_FIELD = {
    "max_stage_p95": "max_stage_p95_s",
    "end_to_end_p95": "end_to_end_p95_s",
    "ttft_p95": "ttft_p95_s",
}


def _stages(
    draft: Draft, stations: Sequence[Station], groups: dict[int, tuple[ReplicaGroup, ...]]
) -> tuple[StagePlan, ...]:
    subset, routing = draft.found.subset, draft.found.routing
    simulated_s = draft.simulated.run.stage_p95_s if draft.simulated else {}
    return tuple(
        stage_plan(
            spec=spec_of(draft.problem, station.model),
            station=station,
            groups=groups[station.model],
            reach=float(subset.reach[subset.indexes.index(station.model), routing]),
            p95_s=simulated_s.get(station.model, station.p95_s),
        )
        for station in stations
    )


def _predicted(
    draft: Draft, stations: tuple[Station, ...], stages: tuple[StagePlan, ...], judge: JudgePlan
) -> Predicted:
    found, task = draft.found, draft.task
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
    return predicted_of(
        task.pools,
        stages,
        judge,
        rate_per_s=found.rate_per_s,
        max_rate_per_s=found.rate_per_s
        * task.goal.max_utilization
        / max(station.peak_utilization for station in stations),
        slowest_s=slowest_s,
        path_s=path_s,
        quality=found.quality,
        quality_ci95=quality_ci95(found.subset.requests, found.subset.grid.thresholds(found.routing)),
        quality_lower=draft.quality_lower,
    )


def _warnings(draft: Draft, routing: Routing, models: Sequence[Station]) -> tuple[str, ...]:
    # Simulation takes the arrivals as they are.
    found = [bursty_warning(draft.workload.arrivals) if draft.simulated is None else None, *draft.warnings]
    for station, threshold in zip(models, routing.thresholds, strict=False):
        if math.isinf(threshold):
            name = spec_of(draft.problem, station.model).name
            found.append(
                f"Stage {station.model + 1} ({name}) accepts no answer, so every request waits for it in vain: plan "
                "the cascade without it and compare"
            )
    for station in models:
        found += weak_calibration(draft.problem, station)
    return tuple(dict.fromkeys(sentence for sentence in found if sentence))


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
