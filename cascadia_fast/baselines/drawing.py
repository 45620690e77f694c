"""From a routing and a deployment to a `Plan` whose every figure is that of the planner's own latency model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.blueprint import Batching, JudgePlan, Plan, ReplicaGroup, Routing, SolverReport
from cascadia_fast.planning.deployment import Served, Station
from cascadia_fast.planning.paths import sampled_requests
from cascadia_fast.planning.plan_parts import (
    calibration_of,
    judge_plan,
    placed_groups,
    planned_workload,
    predicted_of,
    provenance_of,
    spec_of,
    stage_plan,
    weak_calibration,
)
from cascadia_fast.routing import served_ci95
from cascadia_fast.workload import bursty_warning

FloatArray = NDArray[np.float64]
PathTimes = tuple[float, float, float]


def draw_plan(
    case: Case,
    system: str,
    loads: StationLoads,
    choices: Mapping[int, _core.Choice],
    routing: Routing,
    *,
    quality: FloatArray,
    note: str,
    started_s: float,
    batching: Batching = "chunked",
    max_batched_tokens: int | None = None,
    evaluated: int = 1,
) -> Plan:
    """Draw up the plan of a system whose routing and deployment are known::

        started_s = time.perf_counter()
        ...
        return draw_plan(
            case, "frugalgpt", loads, choices, routing, quality=served, note="a list of models and thresholds of least "
            "token cost; a heuristic", started_s=started_s,
        )

    It is ``unstable``, with latencies of None, where a station is asked for more than it carries, and ``feasible``
    otherwise. Whole paths are predicted where every visit is 0 or 1. Its objective is the slowest stage's p95; the
    goal's deadline and budget do not bind it, and are not in it.

    Parameters
    ----------
    case, system
        What was planned, by whom: the name in `systems`.
    loads, choices
        Who visits which model, and the engines of each model in `loads.models`.
    routing
        Thresholds, router or gears, on the stages that run, in the order of their index.
    quality
        Shape (n,): (expected) quality of the answer that each scored request is given.
    note
        What the certificate says: how it was found, and that nothing is proved.
    started_s
        On the clock of `time.perf_counter`: when planning began.
    batching, max_batched_tokens
        How engines batch, and the tokens of one step; None: the problem's.
    evaluated
        How many alternatives were looked at.
    """
    problem, workload, goal = case.problem, case.problem.workload, case.problem.goal
    stations = [_station(case, loads, place, model, choices[model]) for place, model in enumerate(loads.models)]
    models = [station for station in stations if station.model < case.models]
    groups, pools = placed_groups(problem, problem.pools, stations, spread=False, max_batched_tokens=max_batched_tokens)
    stages = tuple(
        stage_plan(
            spec_of(problem, station.model),
            station,
            groups[station.model],
            float(loads.reach[station.model]),
            station.p95_s,
        )
        for station in models
    )
    hosted = next((station for station in stations if station.model >= case.models), None)
    judge = _judge(case, routing, hosted, () if hosted is None else groups[hosted.model])
    busiest = max(station.peak_utilization for station in stations)
    predicted = predicted_of(
        problem.pools,
        stages,
        judge,
        rate_per_s=loads.rate_per_s,
        max_rate_per_s=loads.rate_per_s * goal.max_utilization / busiest,
        slowest_s=max(station.p95_s for station in stations),
        path_s=_path_times(case, loads, stations, judge),
        quality=float(np.average(quality, weights=case.requests.weight)),
        quality_ci95=served_ci95(case.requests, quality),
        calls_per_s=loads.calls_per_s,
    )
    slowest_s = predicted.max_stage_p95_s
    running = {station.model for station in models}
    return Plan(
        status="unstable" if slowest_s is None else "feasible",
        objective="max_stage_p95",
        objective_value=slowest_s,
        latency_metric="max_stage_p95",
        latency_s=slowest_s,
        q_min=case.q_min,
        q_confidence=None,
        slo_s=None,
        slo_metric=None,
        budget_usd_per_hour=None,
        survive="none",
        max_utilization=goal.max_utilization,
        paper_strict=False,
        predicted=predicted,
        routing=routing,
        stages=stages,
        skipped_models=tuple(stage.name for index, stage in enumerate(problem.stages) if index not in running),
        judge=judge,
        pools=pools,
        workload=planned_workload(workload),
        best_single_model=None,
        warnings=_warnings(case, models, predicted.quality, busiest),
        calibration=calibration_of(problem, stations),
        provenance=provenance_of(problem, workload),
        system=system,
        batching=batching,
        solver=_solver(note, evaluated, time.perf_counter() - started_s),
    )


def below_floor(quality: float, q_min: float) -> str:
    """Return a sentence on a plan that does not meet its floor."""
    return f"The mean quality {quality:.2f} is below the floor of {q_min:g}: no choice of this system meets it"


def _station(case: Case, loads: StationLoads, place: int, model: int, choice: _core.Choice) -> Station:
    fleet, detail = case.fleet[model], loads.evaluate(model, choice)
    served = Served(
        option=choice.shape,
        replicas=choice.replicas,
        pool=fleet.pools[choice.shape],
        shape=fleet.replicas[choice.shape].shape,
        status=fleet.statuses[choice.shape],
        rate_per_s=loads.rate_per_s * float(loads.reach[model]) / choice.replicas,
        share=1.0,
        detail=detail,
    )
    return Station(model, place, (served,))


def _judge(case: Case, routing: Routing, hosted: Station | None, groups: tuple[ReplicaGroup, ...]) -> JudgePlan:
    """A router, or a signal of its own, asks no judge: it has none, at no cost."""
    if routing.kind == "router" or routing.signal is not None:
        return JudgePlan("external", 0.0, 0.0, None)
    return judge_plan(case.problem, hosted, groups)


def _path_times(case: Case, loads: StationLoads, stations: list[Station], judge: JudgePlan) -> PathTimes | None:
    """Median and p95 of whole paths, and the p95 of their final answers' first tokens.

    A request's lengths are its own at every model; its waits are drawn, one station from another independently, from
    the latency model's samples. None: visits in part do not say which of them go together.
    """
    if not np.isin(loads.visits, (0.0, 1.0)).all():
        return None
    if any(math.isinf(station.p95_s) for station in stations):
        return math.inf, math.inf, math.inf
    chosen, draw = sampled_requests(case.requests.size), np.random.default_rng(0)
    sizes = [cells.tokens_in.size for cells in loads.cells]
    judge_at = next((station for station in stations if station.model >= case.models), None)
    total_s, first_s = np.zeros(chosen.size), np.zeros(chosen.size)
    for station in stations:
        if station is judge_at:
            continue
        model, detail = station.model, station.groups[0].detail
        cell = loads.cells[model].cell_of[chosen]
        visits = loads.visits[model][chosen] > 0
        node = draw.integers(len(detail["latency_s"]), size=chosen.size)
        first_s[visits] = (total_s + detail["first_token_s"][node, cell])[visits]
        total_s += np.where(visits, detail["latency_s"][node, cell], 0.0)
        if loads.judged is not None:
            asked = loads.judged[model][chosen] > 0
            delay_s = np.full(chosen.size, judge.latency_s)
            if judge_at is not None:
                samples = judge_at.groups[0].detail["latency_s"]
                delay_s += samples[draw.integers(len(samples), size=chosen.size), sum(sizes[:model]) + cell]
            total_s += np.where(asked, delay_s, 0.0)
            first_s[asked] = total_s[asked]  # nobody reads an answer that may yet be refused
    weight = case.requests.weight[chosen]
    return (
        weighted_quantile(total_s, weight, 0.5),
        weighted_quantile(total_s, weight, 0.95),
        weighted_quantile(first_s, weight, 0.95),
    )


def weighted_quantile(values: FloatArray, weight: FloatArray, share: float) -> float:
    """Return the least value that this share of the weight does not exceed."""
    order = np.argsort(values)
    passed = np.cumsum(weight[order])
    return float(values[order][min(int(np.searchsorted(passed, share * passed[-1])), values.size - 1)])


def _warnings(case: Case, models: list[Station], quality: float, busiest: float) -> tuple[str, ...]:
    found = [bursty_warning(case.problem.workload.arrivals)]
    if not case.meets(quality):
        found.append(below_floor(quality, case.q_min))
    if busiest >= 1:
        found.append(f"The busiest engines are asked for {busiest:.2f} times what they carry: queues grow without end")
    elif busiest > case.problem.goal.max_utilization * (1 + 1e-9):
        found.append(
            f"The busiest engines run at utilisation {busiest:.3f}, above the cap of "
            f"{case.problem.goal.max_utilization:g}"
        )
    for station in models:
        found += weak_calibration(case.problem, station)
    return tuple(dict.fromkeys(sentence for sentence in found if sentence))


def _solver(note: str, evaluated: int, seconds: float) -> SolverReport:
    return SolverReport(
        method="baseline",
        certificate=note,
        family="homogeneous",
        subsets=1,
        levels=(),
        distinct_routings=evaluated,
        evaluated=evaluated,
        pruned=0,
        complete=True,
        time_limit_s=None,
        bound=None,
        gap=None,
        seconds=seconds,
    )
