"""From what the search found to a `Plan`: predictions, placement, comparison and provenance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, get_args

import numpy as np

from cascadia_fast import _core
from cascadia_fast.allocation import Allocation
from cascadia_fast.alternating import Round
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
    SingleModel,
    SolverReport,
    StageCalibration,
    StagePlan,
)
from cascadia_fast.fleet import StageFleet
from cascadia_fast.placement import Placement, place
from cascadia_fast.prediction import EndToEnd, end_to_end
from cascadia_fast.problem import Problem
from cascadia_fast.routing import QUALITY_SLACK, RoutingGrid, middle_thresholds, quality_ci95, threshold_intervals
from cascadia_fast.simulated_plan import SimulatedPlan
from cascadia_fast.simulated_stages import CascadeRun
from cascadia_fast.workload import Workload, bursty_warning

if TYPE_CHECKING:
    from cascadia_fast.profile import Status

POOL = "pool0"


@dataclass(frozen=True)
class Draft:
    """Everything a plan is drawn up from."""

    problem: Problem
    fleet: tuple[StageFleet, ...]
    workload: Workload
    gpus: int
    q_min: float
    max_utilization: float
    paper_strict: bool
    method: str
    grid: RoutingGrid
    search: _core.CascadeSearch
    routing: int
    deployment: tuple[_core.Choice, ...]
    certificate: str
    evaluated: int
    pruned: int
    proved: bool
    rounds: tuple[Round, ...]
    proof: Allocation
    simulated: SimulatedPlan | None = None

    def shape(self, stage: int) -> _core.Shape:
        """Return the shape a stage runs in."""
        return self.fleet[stage].replicas[self.deployment[stage].shape].shape

    def status(self, stage: int) -> Status:
        """Return how far the predicted times of a stage can be trusted."""
        return self.fleet[stage].statuses[self.deployment[stage].shape]

    @property
    def running(self) -> list[int]:
        """Stages that run at least one replica."""
        return [stage for stage, choice in enumerate(self.deployment) if choice.replicas > 0]

    def gpus_usd_per_hour(self, gpus: int) -> float | None:
        """Return the price of some GPUs, if known."""
        price = self.problem.price_usd_per_hour
        return None if price is None else price * gpus


def draft_plan(draft: Draft, elapsed_s: Callable[[], float]) -> Plan:
    """Draw up the plan; `elapsed_s` is asked last, so that `solver.seconds` covers everything."""
    problem = draft.problem
    details = {
        stage: draft.search.evaluate(
            draft.routing, stage, draft.deployment[stage].shape, draft.deployment[stage].replicas
        )
        for stage in draft.running
    }
    placement = place(
        [
            (stage, draft.deployment[stage].replicas, draft.shape(stage).tp, draft.shape(stage).pp)
            for stage in draft.running
        ],
        draft.gpus,
        problem.gpus_per_node,
    )
    latency_s = max(choice.latency_s for choice in draft.deployment)
    routing = _routing(draft)
    return Plan(
        status="optimal" if draft.proved else "feasible",
        objective=problem.goal.objective,
        latency_s=latency_s,
        q_min=draft.q_min,
        max_utilization=draft.max_utilization,
        paper_strict=draft.paper_strict,
        predicted=_predicted(draft, details, latency_s),
        routing=routing,
        stages=tuple(_stage(draft, stage, details[stage], placement, at) for at, stage in enumerate(draft.running)),
        skipped_models=tuple(stage.name for index, stage in enumerate(problem.stages) if index not in draft.running),
        judge=JudgePlan(
            kind=problem.judge.kind,  # type: ignore[arg-type]
            latency_s=problem.judge.latency_s,
            usd_per_call=problem.judge.usd_per_call,
            simulated_auc=problem.judge.simulated_auc,
        ),
        idle_gpus=placement.idle,
        pools=(Pool(POOL, problem.gpu.name, draft.gpus, problem.gpus_per_node, problem.price_usd_per_hour),),
        workload=_planned_workload(draft.workload),
        best_single_model=_best_single_model(draft),
        warnings=_warnings(draft, routing),
        calibration=_calibration(draft),
        provenance=_provenance(draft),
        solver=_solver(draft, details, latency_s, elapsed_s),
    )


def _predicted(draft: Draft, details: dict[int, _core.StageDetail], latency_s: float) -> Predicted:
    requests = draft.workload.requests
    thresholds = draft.grid.thresholds(draft.routing)
    reached = {stage: detail for stage, detail in details.items() if detail["reach"] > 0}
    path: EndToEnd | CascadeRun
    if draft.simulated is not None:
        path = draft.simulated.run
        latency_s = max(path.stage_p95_s.values())
    else:
        path = end_to_end(
            requests,
            thresholds,
            draft.grid.cells,
            {stage: (detail["latency_s"], detail["first_token_s"]) for stage, detail in reached.items()},
            draft.problem.judge.latency_s,
        )
    most = min(
        draft.deployment[stage].replicas * detail["capacity_per_s"] / detail["reach"]
        for stage, detail in reached.items()
    )
    return Predicted(
        max_stage_p95_s=latency_s,
        end_to_end_p50_s=path.p50_s,
        end_to_end_p95_s=path.p95_s,
        ttft_p95_s=path.ttft_p95_s,
        quality=float(draft.grid.quality[draft.grid.combination(draft.routing)]),
        quality_ci95=quality_ci95(requests, thresholds),
        max_rate_per_s=float(most) * draft.max_utilization,
        cost_usd_per_hour=_cost_usd_per_hour(draft, details),
    )


def _cost_usd_per_hour(draft: Draft, details: dict[int, _core.StageDetail]) -> float | None:
    """Return the price of the GPUs that run and of the judge, who is asked by every stage but the last that runs."""
    gpus_usd = draft.gpus_usd_per_hour(sum(choice.gpus for choice in draft.deployment))
    if gpus_usd is None:
        return None
    judged = sum(detail["reach"] for stage, detail in details.items() if stage != max(details))
    return gpus_usd + judged * draft.workload.rate_per_s * 3600 * draft.problem.judge.usd_per_call


def _routing(draft: Draft) -> Routing:
    requests = draft.workload.requests
    thresholds = draft.grid.thresholds(draft.routing)
    used = len(draft.running) - 1
    intervals = [
        (None if low <= 0 and not (requests.score[stage] < high).any() else low, high)
        for stage, (low, high) in enumerate(threshold_intervals(requests, thresholds))
    ]
    return Routing("cascade", middle_thresholds(requests, thresholds)[:used], tuple(intervals[:used]))


def _stage(draft: Draft, stage: int, detail: _core.StageDetail, placement: Placement, at: int) -> StagePlan:
    problem, choice, shape = draft.problem, draft.deployment[stage], draft.shape(stage)
    spec = problem.stages[stage]
    simulated_s = draft.simulated.run.stage_p95_s if draft.simulated else {}
    group = ReplicaGroup(
        count=choice.replicas,
        gpu=problem.gpu.name,
        pool=POOL,
        tp=shape.tp,
        pp=shape.pp,
        ep=1,
        share=1.0,
        capacity_per_s=detail["capacity_per_s"],
        nodes=placement.replicas[at],
        max_num_seqs=problem.max_num_seqs,
        max_batched_tokens=problem.max_batched_tokens,
        max_model_len=spec.model.max_model_len,
    )
    return StagePlan(
        index=stage,
        model=spec.name,
        weights=spec.weights,
        kv_dtype=spec.kv_dtype,
        gpus=choice.replicas * shape.gpus,
        reach=detail["reach"],
        rate_per_s=detail["reach"] * draft.workload.rate_per_s,
        p95_s=simulated_s.get(stage, detail["p95_s"]),
        utilization=detail["utilization"],
        mean_batch=detail["mean_batch"],
        replicas=(group,),
    )


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


def _best_single_model(draft: Draft) -> SingleModel:
    """Return the fastest single model that meets the floor, or the best one where none does."""
    requests = draft.workload.requests
    qualities = np.average(requests.quality, axis=1, weights=requests.weight)
    options = []
    for stage, quality in enumerate(qualities):
        choice = draft.simulated.singles[stage] if draft.simulated else draft.search.single(stage, draft.gpus)
        carries = math.isfinite(choice.latency_s)
        options.append(
            SingleModel(
                model=draft.problem.stages[stage].name,
                gpus=choice.gpus if carries else draft.gpus,
                p95_s=choice.latency_s if carries else None,
                quality=float(quality),
                cost_usd_per_hour=draft.gpus_usd_per_hour(choice.gpus if carries else draft.gpus),
                feasible=bool(carries and quality >= draft.q_min - QUALITY_SLACK),
            )
        )
    feasible = [option for option in options if option.feasible]
    if feasible:
        return min(feasible, key=lambda option: option.p95_s or math.inf)
    return max(options, key=lambda option: option.quality)


def _warnings(draft: Draft, routing: Routing) -> tuple[str, ...]:
    # Simulation takes the arrivals as they are.
    found = [bursty_warning(draft.workload.arrivals) if draft.simulated is None else None]
    for stage, threshold in enumerate(routing.thresholds):
        if math.isinf(threshold):
            found.append(
                f"Stage {stage + 1} ({draft.problem.stages[stage].name}) accepts no answer, so every request waits for "
                "it in vain: plan the cascade without it and compare"
            )
    statuses = {draft.problem.stages[stage].name: draft.status(stage) for stage in draft.running}
    found += [
        f"Step times of {name} are {status.level}: {status.reason}"
        for name, status in statuses.items()
        if status.level in ("transferred", "roofline")
    ]
    return tuple(sentence for sentence in found if sentence)


def _calibration(draft: Draft) -> Calibration:
    stages = tuple(StageCalibration(draft.problem.stages[stage].name, *draft.status(stage)) for stage in draft.running)
    weakest = max((stage.status for stage in stages), key=get_args(CalibrationStatus).index)
    return Calibration(draft.problem.profile.name, weakest, stages)


def _provenance(draft: Draft) -> Provenance:
    problem = draft.problem
    inputs = problem.input_hashes()
    if draft.workload is not problem.workload:
        inputs["workload"] = draft.workload.content_hash()
    catalog = {problem.gpu.name: problem.gpu.source} | {
        stage.model.name: stage.model.source for stage in problem.stages
    }
    return Provenance(_version(), inputs, catalog)


@cache
def _version() -> str:
    return version("cascadia-fast")


def _solver(
    draft: Draft, details: dict[int, _core.StageDetail], latency_s: float, elapsed_s: Callable[[], float]
) -> SolverReport:
    proof, simulated = draft.proof, None
    if draft.simulated is not None:
        simulated = SimulatedLatency(
            requests=draft.simulated.requests,
            seed=draft.simulated.seed,
            runs=draft.simulated.found.simulations,
            screen=draft.simulated.found.screen,
            formula_latency_s=max(detail["p95_s"] for detail in details.values()),
        )
    return SolverReport(
        method=draft.method,  # type: ignore[arg-type]
        certificate=draft.certificate,
        levels=tuple(len(levels) for levels in draft.grid.levels),
        distinct_routings=draft.grid.distinct,
        evaluated=draft.evaluated,
        pruned=draft.pruned,
        bound=latency_s if draft.proved else None,
        gap=0.0 if draft.proved else None,
        seconds=elapsed_s(),
        highs=HighsProof(proof.status, proof.latency_s, proof.columns, proof.seconds),
        trace=tuple(_iteration(draft.grid, step) for step in draft.rounds),
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
