"""Plans as a whole: what they say is what their parts give, overrides are replacements, re-planning stays close."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_reweighting
from reference.brute_force import engine

from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import InputError
from cascadia_fast.monitor import Monitor
from cascadia_fast.planner import Planner, plan
from cascadia_fast.problem import Problem
from cascadia_fast.routing import route, routing_grid
from cascadia_fast.workload import Arrivals, ScoredRequests, Workload


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(Problem.example(), threads=1)


@pytest.fixture(scope="module")
def example(planner: Planner) -> Plan:
    return planner.plan()


def untimed(plan: Plan) -> Plan:
    """Without what differs from call to call."""
    assert plan.solver.highs is not None
    solver = dataclasses.replace(plan.solver, seconds=0.0, highs=dataclasses.replace(plan.solver.highs, seconds=0.0))
    return dataclasses.replace(plan, solver=solver)


def cascade_problem(models: list[str], workload: Workload, **sections: Any) -> Problem:
    names = workload.requests.models
    fields = {
        "cascade": [
            {"model": model, "name_in_requests": name, **({"weights": "fp8"} if "405b" in model else {})}
            for model, name in zip(models, names, strict=True)
        ],
        "cluster": [{"gpu": "h100-sxm-80gb", "nodes": 4, "gpus_per_node": 8}],
        "workload": {"requests": "given in memory", "rate_per_s": 1.0},
        "goal": {"q_min": 0},
        **sections,
    }
    return Problem.from_dict(fields).replace(workload=workload)


def test_the_stages_add_up(example: Plan) -> None:
    assert example.status == "optimal"
    assert example.gpus <= example.pool_gpus == 32
    assert example.latency_s == example.predicted.max_stage_p95_s == max(stage.p95_s or 0 for stage in example.stages)
    used = 0
    for stage in example.stages:
        (group,) = stage.replicas
        assert stage.gpus == group.count * group.tp * group.pp
        assert stage.rate_per_s == pytest.approx(stage.reach * example.workload.rate_per_s)
        assert stage.utilization == pytest.approx(stage.rate_per_s / (group.count * group.capacity_per_s))
        assert stage.utilization <= example.max_utilization
        assert stage.mean_batch is not None
        assert 0 < stage.mean_batch <= group.max_num_seqs
        used += stage.gpus
    idle = sum(piece[2] for piece in example.idle_gpus)
    assert used + idle == 32
    assert example.predicted.max_rate_per_s == pytest.approx(
        example.max_utilization * example.workload.rate_per_s / max(stage.utilization for stage in example.stages)
    )


def test_routing_and_quality_are_those_of_the_requests(planner: Planner, example: Plan) -> None:
    requests = planner.problem.workload.requests
    thresholds = [*example.routing.thresholds, *[0.0] * (2 - len(example.routing.thresholds))]
    accepted_by = route(requests, thresholds)
    served = requests.quality[accepted_by, np.arange(requests.size)]
    assert example.predicted.quality == pytest.approx(np.average(served, weights=requests.weight))
    assert example.predicted.quality >= example.q_min - 1e-9
    low, high = example.predicted.quality_ci95
    assert low < example.predicted.quality < high
    for stage in example.stages:
        assert stage.reach == pytest.approx((requests.weight * (accepted_by >= stage.index)).sum() / requests.size)


def stage_p95s(made: Plan, problem: Problem) -> list[tuple[float | None, float]]:
    """Of every stage of a three-stage plan the p95, planned and evaluated again."""
    requests, swings = problem.workload.requests, problem.workload.swings
    grid = routing_grid(requests)
    accepted_by = route(requests, made.routing.thresholds)
    models = ["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"]
    found = []
    for stage in made.stages:
        (group,) = stage.replicas
        cells = grid.cells[stage.index]
        reaches = accepted_by >= stage.index
        weight = np.bincount(cells.cell_of[reaches], requests.weight[reaches], cells.tokens_in.size) / requests.size
        (p95_s,) = _core.latency_quantiles(
            replica=engine(models[stage.index], group.tp, group.pp, stage.weights),
            tokens_in=cells.tokens_in,
            tokens_out=cells.tokens_out,
            share=weight[None],
            rate_per_s=np.array([stage.rate_per_s / group.count]),
            arrival_scv=1 + (made.workload.cv**2 - 1) * stage.reach,
            replicas=group.count,
            spread_out=cells.spread_out,
            dispersion=swings if swings.size and stage.index == 0 else None,
        )
        found.append((stage.p95_s, float(p95_s)))
    return found


def test_latencies_are_those_of_the_load_model(planner: Planner, example: Plan) -> None:
    """All stages where gaps are independent; under a trace the first, since the others see a thinned part of it."""
    renewal = planner.problem.workload.replace(arrivals=Arrivals.from_rate(60.0, cv=1.5), cv=1.5)
    problem = planner.problem.replace(workload=renewal)
    for planned_s, p95_s in stage_p95s(Planner(problem).plan(), problem):
        assert planned_s == pytest.approx(p95_s, rel=1e-6)
    planned_s, p95_s = stage_p95s(example, planner.problem)[0]
    assert example.stages[0].reach == pytest.approx(1)
    assert planned_s == pytest.approx(p95_s, rel=1e-6)


def test_a_request_on_its_whole_path_waits_longer_than_at_its_slowest_stage(example: Plan) -> None:
    predicted = example.predicted
    assert predicted.end_to_end_p50_s is not None
    assert predicted.end_to_end_p95_s is not None
    assert predicted.ttft_p95_s is not None
    assert predicted.end_to_end_p50_s < predicted.end_to_end_p95_s
    assert predicted.ttft_p95_s < predicted.end_to_end_p95_s
    # Never the sum of the stages' p95s: one request seldom meets the worst of all of them.
    assert predicted.end_to_end_p95_s < sum(stage.p95_s or 0 for stage in example.stages) + 2 * example.judge.latency_s


def test_the_best_single_model_is_compared_fairly(planner: Planner, example: Plan) -> None:
    best = example.best_single_model
    assert best is not None
    requests = planner.problem.workload.requests
    qualities = dict(zip((stage.name for stage in planner.problem.stages), requests.quality.mean(axis=1), strict=True))
    assert best.quality == pytest.approx(qualities[best.model])
    alone = planner.plan(q_min=0.0, method="exact")
    assert best.p95_s is None or alone.latency_s is None or best.p95_s >= alone.latency_s - 1e-9
    assert best.feasible == (best.p95_s is not None and best.quality >= example.q_min)


def test_proof_and_certificate_are_attached(example: Plan) -> None:
    solver = example.solver
    assert solver.highs is not None
    assert solver.highs.status == "optimal"
    assert solver.highs.objective == pytest.approx(example.latency_s, rel=1e-6)
    assert (solver.bound, solver.gap, solver.trace) == (example.latency_s, 0.0, ())
    assert solver.evaluated >= 1
    meeting = int(solver.certificate.split(": ")[1].split(" of ")[0].replace(",", ""))
    assert solver.evaluated + solver.pruned == meeting
    assert f"of {solver.distinct_routings:,} distinct routings of all 7 cascades meet the floor" in solver.certificate


def test_overrides_are_replacements(planner: Planner) -> None:
    problem = planner.problem
    changes: list[dict[str, Any]] = [
        {"gpus": 48},
        {"q_min": 65.0},
        {"rate_per_s": 12.0},
        {"gpus": 20, "rate_per_s": 4.0},
    ]
    for change in changes:
        called, replaced = planner.plan(**change), Planner(problem.replace(**change)).plan()
        # They differ in what they were given, not in what they found.
        assert called.stages == replaced.stages, change
        assert (called.routing, called.predicted, called.idle_gpus) == (
            replaced.routing,
            replaced.predicted,
            replaced.idle_gpus,
        )


def test_a_planner_keeps_nothing_of_earlier_workloads(planner: Planner, example: Plan) -> None:
    workload = planner.problem.workload
    other = workload.replace(requests=workload.requests.bootstrap(3)).with_rate(9.0)
    planner.plan(gpus=64, workload=other)
    planner.plan(q_min=60.0, method="alternating")
    assert untimed(planner.plan()) == untimed(example)
    assert untimed(planner.plan()).plan_id == untimed(example).plan_id == example.plan_id


def test_rate_source_and_headroom_make_the_planned_rate() -> None:
    problem = Problem.example().replace(rate_from="peak_1min", headroom=1.2)
    planned = Planner(problem).plan(rate_per_s=10.0, gpus=64)
    peak = problem.workload.arrivals.rescaled(10.0).peak_1min_per_s
    assert planned.workload.rate_per_s == pytest.approx(1.2 * peak)
    assert planned.predicted.max_rate_per_s * planned.max_utilization >= planned.workload.rate_per_s * (1 - 1e-9)


@pytest.mark.parametrize("rate_per_s", [1e-6, 1e-3])
def test_a_rate_of_next_to_nothing_is_a_rate(planner: Planner, rate_per_s: float) -> None:
    """A trace stretched over centuries has more seconds than memory has room for."""
    found = planner.plan(rate_per_s=rate_per_s)
    assert found.workload.rate_per_s == rate_per_s
    assert found.latency_s is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gpus": 0}, "gpus is 0; give 1 to 1,000,000"),
        ({"gpus": 2_000_000}, "gpus is 2000000"),
        ({"q_min": 101.0}, "q_min is 101"),
        ({"q_min": math.nan}, "q_min is nan"),
        ({"rate_per_s": 0.0}, "rate_per_s is 0; give a positive number"),
        ({"rate_per_s": math.inf}, "rate_per_s is inf"),
        ({"method": "magic"}, "method is 'magic'; it must be one of 'exact' or 'alternating'"),
    ],
)
def test_bad_arguments_get_a_sentence(planner: Planner, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planner.plan(**arguments)
    with pytest.raises(InputError, match="threads is 0"):
        Planner(planner.problem, threads=0)


def test_a_workload_of_other_models_is_refused(planner: Planner) -> None:
    workload = planner.problem.workload
    requests = dataclasses.replace(workload.requests, models=("a", "b", "c"))
    with pytest.raises(InputError, match="the workload scores the models a, b, c; the cascade has Llama-3.1-8B"):
        planner.plan(workload=workload.replace(requests=requests))


def test_one_model_is_a_cascade_too() -> None:
    requests = Problem.example().workload.requests
    only = ScoredRequests(
        models=("Llama-3.1-8B",),
        request_ids=requests.request_ids,
        input_tokens=requests.input_tokens[:1],
        output_tokens=requests.output_tokens[:1],
        score=np.full((1, requests.size), math.nan),
        quality=requests.quality[:1],
    )
    workload = Workload.build(only, Arrivals.from_rate(20.0))
    found = plan(cascade_problem(["llama-3.1-8b"], workload))
    assert (found.routing.thresholds, found.solver.distinct_routings, len(found.stages)) == ((), 1, 1)
    assert found.predicted.quality == pytest.approx(only.quality.mean())
    assert found.best_single_model is not None
    assert found.best_single_model.p95_s == found.latency_s
    alternating = Planner(cascade_problem(["llama-3.1-8b"], workload)).plan(method="alternating")
    assert alternating.latency_s == found.latency_s


def test_the_papers_own_setting_gives_every_model_a_replica_and_is_no_better(planner: Planner) -> None:
    free = planner.plan(q_min=55.0, gpus=32)
    assert len(free.stages) < 3  # the comparison says something: a model is left out where it is allowed
    strict = Planner(planner.problem.replace(paper_strict=True)).plan(q_min=55.0, gpus=32)
    assert [stage.index for stage in strict.stages] == [0, 1, 2]
    assert strict.paper_strict
    assert strict.latency_s is not None
    assert free.latency_s is not None
    assert strict.latency_s >= free.latency_s
    assert strict.solver.highs is not None
    assert strict.solver.highs.columns == 3 * 33  # the program as written: one column per stage and number of GPUs
    for stage in strict.stages:
        if stage.reach == 0:
            assert (stage.utilization, stage.rate_per_s) == (0.0, 0.0)


def test_replan_keeps_gpus_and_floor(planner: Planner) -> None:
    before = planner.plan(gpus=40, q_min=68.0)
    workload = planner.problem.workload.with_rate(15.0)
    after = planner.replan(workload, previous=before)
    assert (after.pool_gpus, after.q_min) == (40, 68.0)
    assert after.workload.rate_per_s == 15.0
    assert after.stages == planner.plan(gpus=40, q_min=68.0, workload=workload).stages


def symmetric_workload(first_longer: float) -> Workload:
    """Everybody passes the first model, so both see the same requests; one may answer longer."""
    size = 40
    rng = np.random.default_rng(0)
    lengths = np.ceil(np.exp(rng.normal(6, 0.8, (2, size))))
    requests = ScoredRequests(
        models=("first", "second"),
        request_ids=np.array([f"r{k}" for k in range(size)]),
        input_tokens=np.tile(lengths[0], (2, 1)),
        output_tokens=np.vstack([lengths[1] * first_longer, lengths[1]]),
        score=np.zeros((2, size)),
        quality=np.repeat([[10.0], [70.0]], size, axis=1),
    )
    return Workload.build(requests, Arrivals.from_rate(2.0))


@pytest.mark.parametrize("first_longer", [1.5, 0.6])
def test_replan_prefers_what_runs_among_ties(first_longer: float) -> None:
    """Two models of one architecture with one load on 3 GPUs: either may have two, so nothing moves."""
    models, goal = ["llama-3-8b", "llama-3.1-8b"], {"q_min": 60, "skip_models": False}
    planner = Planner(cascade_problem(models, symmetric_workload(first_longer), goal=goal))
    before = planner.plan(gpus=3)
    # Once first, once second has the longer answers and therefore two GPUs.
    assert [stage.gpus for stage in before.stages] == ([2, 1] if first_longer > 1 else [1, 2])
    after = planner.replan(symmetric_workload(1.0), previous=before)
    assert [stage.gpus for stage in after.stages] == [stage.gpus for stage in before.stages]


def test_live_censored_traffic_is_planned_closer_to_the_truth(planner: Planner) -> None:
    """Traffic grew harder and wordier; a plan has censored it. Planning on the raked reference beats the old one."""
    everyone, difficulty = test_reweighting.population(40_000, seed=1)
    rng = np.random.default_rng(2)
    tilt = np.exp(0.8 * difficulty) * everyone.output_tokens[0] ** 0.4
    live = everyone.select(rng.choice(everyone.size, 3_000, p=tilt / tilt.sum()))
    reference = Workload.build(
        everyone.select(rng.choice(everyone.size, 1_500, replace=False)), Arrivals.from_rate(20.0)
    )
    monitor = Monitor(3, window_s=600.0)
    test_reweighting.censored_traffic(monitor, live, rate_per_s=20.0, seed=3)
    raked = monitor.workload(reference)
    truth = Workload.build(live, raked.arrivals)
    unweighted = Workload.build(reference.requests, raked.arrivals)
    problem = cascade_problem(["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"], truth)
    planner = Planner(problem, threads=1)
    floors = (45.0, 50.0, 55.0)

    def figures(workload: Workload) -> np.ndarray:
        # With the full cascade, so that a change of models does not count as a change of traffic.
        plans = [planner.plan(gpus=64, q_min=floor, workload=workload, skip_models=False) for floor in floors]
        return np.log([(found.latency_s, found.predicted.end_to_end_p95_s, found.gpus) for found in plans])

    expected = figures(truth)
    with_raking = np.abs(figures(raked) - expected)
    without = np.abs(figures(unweighted) - expected)
    assert with_raking[:, 0].mean() < 0.5 * without[:, 0].mean()
    assert with_raking.mean() < 0.5 * without.mean()
    # What a plan made without raking delivers on the true traffic falls short of its floor; with it, hardly.
    shortfalls = []
    for workload in (raked, unweighted):
        found = planner.plan(gpus=64, q_min=50.0, workload=workload, skip_models=False)
        thresholds = [*found.routing.thresholds, *[0.0] * (2 - len(found.routing.thresholds))]
        served = live.quality[route(live, thresholds), np.arange(live.size)]
        shortfalls.append(50.0 - served.mean())
    assert shortfalls[0] < 0.5 * shortfalls[1]


def test_a_written_plan_is_the_plan(example: Plan, tmp_path: Path) -> None:
    example.write(tmp_path / "plan.json")
    again = Plan.read(tmp_path / "plan.json")
    assert again == example
    again.write(tmp_path / "again.json")
    assert (tmp_path / "plan.json").read_bytes() == (tmp_path / "again.json").read_bytes()
