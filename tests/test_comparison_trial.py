"""One cell: who sees which half, what is measured, and over which latencies a scale is told."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comparison_cases import ALTERNATING, BROKEN, HOPELESS, OURS, TOO_SMALL, PlainSystem, example

import cascadia_fast.comparison.trial as module
from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.blueprint import Plan
from cascadia_fast.comparison.cells import Cell
from cascadia_fast.comparison.measuring import SCALES, WINDOW, _quality, measured
from cascadia_fast.comparison.splitting import split
from cascadia_fast.comparison.trial import Row, Trials, reference_s
from cascadia_fast.errors import NoPlanError
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.fleet import build_fleet
from cascadia_fast.problem import Problem
from cascadia_fast.simulation import Simulation, simulate
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests
from cascadia_fast.workload import Arrivals, Workload

SYSTEMS = {system.name: system for system in (OURS, ALTERNATING, TOO_SMALL, HOPELESS, BROKEN)}
CELL = Cell("example", "ours", 53.0, 30.0, 32, 1)
REQUESTS = 2000


@pytest.fixture(scope="module")
def trials() -> Trials:
    return Trials(example(), SYSTEMS, REQUESTS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def row(trials: Trials) -> Row:
    return trials.row(CELL)


def runs_of(trials: Trials, monkeypatch: pytest.MonkeyPatch, *cells: Cell) -> list[Simulation]:
    """The simulated runs behind some cells."""
    found: list[Simulation] = []

    def kept(*arguments: Any, **settings: Any) -> Simulation:
        found.append(simulate(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr(module, "simulate", kept)
    for cell in cells:
        trials.row(cell)
    return found


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for one in value.values():
            yield from numbers(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, int | float):
        yield value


def test_systems_see_the_planning_half_and_serve_the_test_half(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Case] = []

    def spy(case: Case) -> Plan:
        seen.append(case)
        return case.planner().plan()

    problem = example()
    trials = Trials(problem, {"spy": PlainSystem("spy", spy)}, REQUESTS)  # type: ignore[dict-item]
    cell = dataclasses.replace(CELL, system="spy", rate_per_s=20.0, q_min=52.0, gpus=24)
    (run,) = runs_of(trials, monkeypatch, cell)
    halves = split(problem.workload.requests, cell.seed)
    assert seen[0].requests.content_hash() == halves.planning.content_hash()
    assert run.problem.workload.requests.content_hash() == halves.test.content_hash()
    assert (seen[0].rate_per_s, seen[0].q_min, seen[0].gpus) == (20.0, 52.0, 24)
    assert run.settings.rate_per_s == pytest.approx(20.0)
    assert not set(halves.planning.request_ids) & set(run.problem.workload.requests.request_ids)


def test_what_systems_draw_when_they_plan_is_nothing_of_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trace, arrivals are drawn: who tunes by simulation must not tune on those that it is tried with."""
    seen: list[Case] = []

    def spy(case: Case) -> Plan:
        seen.append(case)
        return case.planner().plan()

    problem = example()
    rate_only = problem.replace(
        workload=Workload.build(problem.workload.requests, Arrivals.from_rate(30.0, 1.3)),
    )
    trials = Trials(rate_only, {"spy": PlainSystem("spy", spy)}, REQUESTS)  # type: ignore[dict-item]
    for seed in range(3):
        (run,) = runs_of(trials, monkeypatch, dataclasses.replace(CELL, system="spy", seed=seed))
        drawn_s = arrival_times(seen[-1].problem.workload, "gamma", 30.0, REQUESTS, seen[-1].seed)
        assert np.isclose(drawn_s, run.native.arrived_s).mean() < 0.01
        assert not np.array_equal(drawn_requests(seen[-1].requests, REQUESTS, seen[-1].seed), run.drawn)


@pytest.mark.parametrize(
    "goal",
    [
        {},
        {"slo_s": 100.0, "slo_metric": "ttft_p95"},
        {"objective": "ttft_p95"},
        {"objective": "min_cost", "slo_s": 100.0},
        {"objective": "min_gpus", "slo_s": 100.0},
        {"budget_usd_per_hour": 50.0},
        {"survive": "node"},
        {"mixed_shapes": True},
        {"paper_strict": True},
        {"method": "alternating"},
        {"latency": "simulated"},
    ],
)
def test_systems_plan_for_what_is_compared(goal: dict[str, Any]) -> None:
    """Latency of whole paths on all GPUs; what also decides which answers are good enough stays as it is."""
    seen: list[Case] = []

    def spy(case: Case) -> Plan:
        seen.append(case)
        raise NoPlanError("that will do")

    kept = {"max_utilization": 0.8, "skip_models": True}
    problem = example().replace(**{"objective": "max_stage_p95", **goal, **kept})  # type: ignore[arg-type]
    Trials(problem, {"ours": PlainSystem("ours", spy)}, REQUESTS).row(CELL)  # type: ignore[dict-item]
    plain = example().replace(objective="end_to_end_p95", q_min=CELL.q_min, **kept).goal  # type: ignore[arg-type]
    assert seen[0].problem.goal == plain


def test_all_systems_get_the_same_requests_at_the_same_times(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, later = runs_of(
        trials,
        monkeypatch,
        CELL,
        dataclasses.replace(CELL, system="alternating"),
        dataclasses.replace(CELL, seed=2),
    )
    assert np.array_equal(first.drawn, second.drawn)
    assert np.array_equal(first.native.arrived_s, second.native.arrived_s)
    assert not np.array_equal(first.drawn, later.drawn)
    assert not np.array_equal(first.native.arrived_s, later.native.arrived_s)


def test_a_cell_is_the_same_whatever_came_before_it(trials: Trials, row: Row) -> None:
    def without_timings(found: Row) -> Row:
        plan = {name: value for name, value in found["plan"].items() if name != "seconds"}
        return {**found, "plan": plan, "seconds": None}

    for other in (dataclasses.replace(CELL, seed=0), dataclasses.replace(CELL, rate_per_s=10.0, gpus=20)):
        trials.row(other)
        assert without_timings(trials.row(CELL)) == without_timings(row)
    assert without_timings(Trials(example(), SYSTEMS, REQUESTS).row(CELL)) == without_timings(row)  # type: ignore[arg-type]


def test_a_row_has_what_results_promise(row: Row) -> None:
    assert row["status"] == "served"
    assert row["why"] is None
    assert set(row["plan"]) >= {"plan_id", "seconds", "status", "routing", "batching", "predicted_quality", "stages"}
    assert set(row["plan"]["stages"][0]) == {"model", "gpus", "replicas", "planned_reach"}
    figures = row["measured"]
    assert len(figures["attainment"]) == len(SCALES)
    assert figures["attainment"] == sorted(figures["attainment"])
    assert len(figures["reach"]) == 3
    assert figures["quality_low"] <= figures["quality"] <= figures["quality_high"]
    assert figures["p50_s"] <= figures["p95_s"]
    assert figures["ttft_p95_s"] <= figures["p95_s"]
    assert figures["usd_per_1000"] > 0
    assert all(math.isfinite(number) for number in numbers(row))


def test_figures_are_those_of_the_measured_requests(trials: Trials, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    (run,) = runs_of(trials, monkeypatch, CELL)
    first, last = (int(share * REQUESTS) for share in WINDOW)
    latency_s = (run.native.finished_s - run.native.arrived_s)[first:last]
    reference = reference_s(run.problem, trials.planner.fleet, run.problem.workload.requests)[run.drawn[first:last]]
    place = math.ceil(0.95 * latency_s.size) - 1
    assert row["measured"]["p95_s"] == np.sort(latency_s)[place]
    assert row["measured"]["scale95"] == np.sort(latency_s / reference)[place]
    assert row["measured"]["attainment"][5] == pytest.approx(np.mean(latency_s <= SCALES[5] * reference), abs=1e-6)
    test = run.system.requests
    quality = test.quality[run.system.accepted_by[0], np.arange(test.size)]
    assert row["measured"]["quality"] == pytest.approx(np.average(quality, weights=test.weight))
    came = run.native.arrived_s[first:last]
    assert row["measured"]["offered_per_s"] == pytest.approx((came.size - 1) / (came[-1] - came[0]))
    stages = [stage.index for stage in run.plan.stages]
    for place, index in enumerate(stages):
        visited = run.columns.replica(place)[first:last] >= 0
        assert row["measured"]["reach"][index] == pytest.approx(visited.mean(), abs=1e-6)
    assert all(row["measured"]["reach"][index] == 0 for index in {0, 1, 2} - set(stages))


def test_a_scale_of_one_is_the_largest_model_alone_whatever_serves(trials: Trials) -> None:
    requests = example().workload.requests
    found = reference_s(example(), trials.planner.fleet, requests)
    tokens = [
        np.maximum(np.ceil(array[-1]), 1).astype(np.int32) for array in (requests.input_tokens, requests.output_tokens)
    ]
    alone = [_core.StepCosts(replica).alone_s(*tokens)[1] for replica in trials.planner.fleet[2].replicas]
    assert np.array_equal(found, np.min(alone, axis=0))
    assert np.all(found > 0)


def test_a_scale_of_one_is_on_an_engine_that_the_cluster_holds() -> None:
    fields = example().fields.model_dump(exclude_unset=True, mode="json")
    fields["cascade"] = fields["cascade"][:2]
    problem = Problem.from_dict(fields, base_dir=EXAMPLE_DIR)
    requests, fleet = problem.workload.requests, build_fleet(problem)
    whole, two = (reference_s(one, fleet, requests) for one in (problem, problem.replace(gpus=2)))
    assert np.all(two > whole)


def test_an_overload_is_unstable_and_says_why() -> None:
    row = Trials(example(), SYSTEMS, 8000).row(dataclasses.replace(CELL, system="too-small"))  # type: ignore[arg-type]
    assert row["status"] == "unstable"
    assert "is overloaded: " in row["why"]
    assert row["measured"]["scale95"] > 1
    assert row["plan"] is not None


def test_where_nothing_can_be_planned_the_reason_is_kept(trials: Trials) -> None:
    row = trials.row(dataclasses.replace(CELL, system="hopeless"))
    assert (row["status"], row["why"]) == ("no_plan", "it fits nowhere; use larger GPUs")
    assert row["plan"] is row["measured"] is None


def test_a_mistake_in_a_system_is_no_result(trials: Trials) -> None:
    with pytest.raises(ZeroDivisionError):
        trials.row(dataclasses.replace(CELL, system="broken"))


def test_a_half_simulated_cell_is_no_result(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass
    class Stopped:
        interrupted: bool = True

    monkeypatch.setattr(module, "simulate", lambda *_, **__: Stopped())
    with pytest.raises(KeyboardInterrupt):
        trials.row(CELL)


def test_who_is_not_served_is_beyond_every_deadline(trials: Trials) -> None:
    problem = example()
    plan = trials.planner.plan(rate_per_s=6.0, objective="min_gpus")
    run = simulate(plan, problem, requests=REQUESTS, seed=0, rate_per_s=30.0, timeout_s=20.0)
    assert run.counts["timed_out"] > REQUESTS / 10
    found = measured(run, reference_s(problem, trials.planner.fleet, problem.workload.requests))
    assert found["p95_s"] is found["scale95"] is found["ttft_p95_s"] is None
    assert found["attainment"][-1] < 0.9
    assert found["short"] is True


def test_quality_is_sure_as_far_as_independent_requests_go() -> None:
    """Neither draws nor copies of few requests make many: the interval is that of a mean over those behind them."""
    problem = example()
    plan = Trials(problem, SYSTEMS, REQUESTS).planner.plan(q_min=50.0)  # type: ignore[arg-type]
    few = problem.workload.requests.select(np.arange(40))
    found = []
    for requests in (few, few.select(np.repeat(np.arange(40), 7))):
        small = problem.replace(workload=problem.workload.replace(requests=requests))
        run = simulate(plan, small, requests=1000, seed=0, rate_per_s=30.0)
        figures = measured(run, np.ones(requests.size))
        quality = run.system.requests.quality[run.system.accepted_by[0], np.arange(requests.size)]
        half_width = (figures["quality_high"] - figures["quality_low"]) / 2
        found.append((figures["quality"], half_width))
        of_forty = quality[:: requests.size // 40]
        expected = 2.0227 * of_forty.std(ddof=1) / math.sqrt(40)  # Student's t with 39 degrees of freedom
        assert half_width == pytest.approx(expected, rel=1e-3)
    assert found[0] == pytest.approx(found[1])


def test_of_lost_requests_those_served_count(trials: Trials) -> None:
    problem = example()
    plan = trials.planner.plan(rate_per_s=6.0, objective="min_gpus")
    run = simulate(plan, problem, requests=REQUESTS, seed=0, rate_per_s=30.0, timeout_s=20.0)
    rows = slice(*(int(share * REQUESTS) for share in WINDOW))
    served = run.native.status[rows] == 0
    assert 0 < served.sum() < served.size
    quality = run.system.requests.quality[run.system.accepted_by[0][run.drawn[rows]], run.drawn[rows]][served]
    found = measured(run, np.ones(problem.workload.requests.size))
    assert found["quality"] == pytest.approx(quality.mean())


def test_gears_count_as_often_as_they_are_in_use_in_the_whole_run() -> None:
    class Requests:
        size = 2
        quality = np.array([[0.0, 20.0], [100.0, 80.0]])
        weight = np.ones(2)
        source = np.arange(2)

    class System:
        requests = Requests
        accepted_by = np.array([[0, 0], [1, 1]])

    class Columns:
        system = System
        drawn = np.zeros(10, np.int32)

        @staticmethod
        def in_gears(rows: slice = slice(None)) -> np.ndarray:
            """The first gear is in use for the first half, of which the window sees less."""
            return np.bincount((np.arange(10) >= 5)[rows].astype(int), minlength=2)

        @staticmethod
        def accepted_by(rows: slice) -> np.ndarray:
            return np.zeros(10, np.int8)[rows]

    assert _quality(Columns, slice(2, 9))["quality"] == pytest.approx((10 + 90) / 2)  # type: ignore[arg-type]


def test_problem_is_left_alone(trials: Trials) -> None:
    problem = Problem.example()
    before = problem.workload.content_hash()
    Trials(problem, SYSTEMS, REQUESTS).row(CELL)  # type: ignore[arg-type]
    assert problem.workload.content_hash() == before
