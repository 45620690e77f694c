"""Simulated plans of other systems: routers, learned scores, gears, and the batching that a plan asks for."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cascadia_fast as cf
from cascadia_fast.blueprint import JudgePlan, Plan
from cascadia_fast.blueprint_routing import Gear, Router, Routing, Signal, Switching
from cascadia_fast.cli.planned import as_planned
from cascadia_fast.errors import InputError, UnsupportedError
from cascadia_fast.example import write_example
from cascadia_fast.explaining.explanation import explain
from cascadia_fast.problem import Problem
from cascadia_fast.signals import signal_values
from cascadia_fast.simulation import Simulation, simulate
from cascadia_fast.simulation.columns import ADMITTED, ARRIVED, FINISHED, FIRST_TOKEN
from cascadia_fast.simulation.paths import accepting_stages, held_back, paths
from cascadia_fast.simulation.system import build_system
from cascadia_fast.workload import Arrivals, ScoredRequests, Workload

MAIN = "from cascadia_fast.cli import main; main()"
GAIN = Signal("win_probability", 1.0, 0, 0.0, 10.0, 0.0)  # no noise: above 1/2 where the largest model is better
VERDICT = Signal("verification", 0.7, 0, 70.0, 20.0, 0.5, 8)
LEARNED = Signal("learned_score", 0.8, 0, 70.0, 25.0, 0.7)
ONE_OF_THREE = Routing("router", (), (), GAIN, Router((0.5, 0.9), (1, 2, 4)))
VERIFIED = Routing("router", (), (), VERDICT, Router((0.3, 0.6), (5, 3, 1)))
SCORED = Routing("cascade", (60.0, 75.0), ((None, math.inf),) * 2, LEARNED)
GEARS = Routing(
    "gears",
    (),
    (),
    gears=(Gear(20.0, (0, 2), (70.0,)), Gear(40.0, (0, 1), (70.0,)), Gear(None, (1,), ())),
    switching=Switching(5.0, 8.0),
)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.example()


@pytest.fixture(scope="module")
def ours(problem: Problem) -> Plan:
    plan = cf.plan(problem)
    assert len(plan.stages) == 3
    return plan


def of_system(ours: Plan, routing: Routing, **changes: Any) -> Plan:
    """The plan's deployment with another system's routing."""
    judge = ours.judge if routing.asks_judge else JudgePlan("external", 0.0, 0.0, None)
    solver = dataclasses.replace(ours.solver, method="baseline", bound=None, gap=None, highs=None)
    fields = {"system": "other", "status": "feasible", "routing": routing, "judge": judge, "solver": solver}
    return dataclasses.replace(ours, **{**fields, **changes})


@pytest.fixture(scope="module")
def routed(ours: Plan, problem: Problem) -> Simulation:
    return simulate(of_system(ours, ONE_OF_THREE), problem, 20_000, rate_per_s=15.0, arrivals="poisson")


@pytest.fixture(scope="module")
def verified(ours: Plan, problem: Problem) -> Simulation:
    return simulate(of_system(ours, VERIFIED), problem, 20_000, rate_per_s=15.0, arrivals="poisson")


@pytest.fixture(scope="module")
def ramped(ours: Plan, problem: Problem) -> Simulation:
    """Gears under a rate that rises from 10 to 60 per second and falls again."""
    rates_per_s = np.concatenate([np.linspace(10, 60, 3000), np.linspace(60, 10, 3000)])
    trace = Arrivals.from_times(np.cumsum(1 / rates_per_s))
    return simulate(of_system(ours, GEARS), ramp(problem, trace), 6000, arrivals="trace")


def ramp(problem: Problem, trace: Arrivals) -> Problem:
    return problem.replace(workload=Workload.build(problem.workload.requests, trace))


def four_requests() -> ScoredRequests:
    quality = np.array([[80.0, 50.0, 40.0, 70.0], [75.0, 60.0, 90.0, 70.0], [70.0, 51.0, 95.0, 70.0]])
    score = np.array([[90.0, 10.0, 60.0, 40.0], [10.0, 80.0, 20.0, 40.0], [math.nan] * 4])
    ones = np.ones((3, 4))
    ids = np.array(["a", "b", "c", "d"])
    return ScoredRequests(("small", "middle", "large"), ids, 10 * ones, 5 * ones, score, quality)


# Paths


def test_paths_by_hand() -> None:
    requests = four_requests()
    # The largest model gains -10, 1, 55 and 0 points over the smallest, of a spread of 10.
    assert signal_values(GAIN, requests) == pytest.approx([0.1587, 0.5398, 1.0, 0.5], abs=1e-4)
    assert paths(ONE_OF_THREE, requests).tolist() == [[1, 2, 4, 2]]
    assert paths(Routing("cascade", (60.0, 50.0), ((None, math.inf),) * 2), requests).tolist() == [[1, 3, 1, 7]]
    certain = dataclasses.replace(LEARNED, center=60.0, spread=0.5, noise_sd=0.0)
    # Scores are 100 or 0 as an answer is better or worse than 60; of equal quality, 50.
    assert paths(Routing("cascade", (50.0, 50.0), ((None, math.inf),) * 2, certain), requests).tolist() == [
        [1, 3, 3, 1]
    ]
    never = Gear(None, (1, 2), (math.inf,))
    gears = Routing("gears", (), (), gears=(Gear(1.0, (0, 2), (60.0,)), Gear(2.0, (2,), ()), never))
    assert paths(gears, requests).tolist() == [[1, 5, 1, 5], [4, 4, 4, 4], [6, 6, 6, 6]]


def test_the_last_stage_of_a_path_counts() -> None:
    every = np.arange(1, 2**16, dtype=np.uint16)
    assert accepting_stages(every).tolist() == [int(path).bit_length() - 1 for path in every]
    assert accepting_stages(np.array([[1, 2], [7, 5]], np.uint16)).tolist() == [[0, 1], [2, 2]]


def test_what_is_held_back() -> None:
    assert held_back(Routing("cascade", (1.0, 2.0), ((None, 3.0),) * 2), 3).tolist() == [3]
    assert held_back(Routing("cascade", (), ()), 1).tolist() == [0]
    assert held_back(SCORED, 3).tolist() == [3]
    assert held_back(ONE_OF_THREE, 3).tolist() == [0]
    assert held_back(VERIFIED, 3).tolist() == [1]
    assert held_back(GEARS, 3).tolist() == [1, 1, 0]


# A router that decides beforehand


def test_a_routed_request_visits_one_model_and_waits_for_no_judge(routed: Simulation) -> None:
    columns = routed.columns
    visited = np.stack([columns.visited(stage) for stage in range(3)])
    assert (visited.sum(axis=0) == 1).all()
    requests = routed.system.requests
    gain = (requests.quality[2] - requests.quality[0])[routed.drawn]
    assert np.array_equal(visited[0], gain < 0)
    assert np.array_equal(columns.accepted_by(), visited.argmax(axis=0))
    for stage in range(3):
        times = columns.times(stage)[visited[stage]]
        assert np.array_equal(routed.native.finished_s[visited[stage]], times[:, FINISHED])
        assert np.array_equal(routed.native.first_token_s[visited[stage]], times[:, FIRST_TOKEN])
        assert routed.stages[stage].reach == pytest.approx(visited[stage][routed.measured.rows].mean())
    assert columns.judge_calls() == 0
    assert routed.gear_shares == (1.0,)


def test_quality_and_cost_are_those_of_where_requests_went(routed: Simulation) -> None:
    rows = routed.measured.rows
    drawn, stage = routed.drawn[rows], routed.columns.accepted_by(rows)
    assert routed.quality is not None
    assert routed.quality.value == pytest.approx(routed.system.requests.quality[stage, drawn].mean())
    dear = routed.problem.replace(judge_usd_per_call=1.0)
    again = simulate(routed.plan, dear, 20_000, rate_per_s=15.0, arrivals="poisson")
    assert again.cost_usd_per_request == routed.cost_usd_per_request is not None


@pytest.mark.parametrize("routing", [ONE_OF_THREE, VERIFIED, SCORED], ids=["router", "verified", "scored"])
def test_nobody_is_faster_than_alone(routing: Routing, ours: Plan, problem: Problem) -> None:
    plan = of_system(ours, routing)
    assert simulate(plan, problem, 5000, rate_per_s=10.0).slo_scales[0] >= 1 - 1e-9
    for seed in range(5):
        assert simulate(plan, problem, 1, seed).slo_scales == pytest.approx([1.0])


# A model that verifies its own answer


def test_verification_is_work_of_the_first_model(verified: Simulation, problem: Problem) -> None:
    system, requests = verified.system, problem.workload.requests
    read = np.ceil(2 * requests.input_tokens[0] + requests.output_tokens[0])
    assert system.tokens_in[0].tolist() == read.tolist()
    assert system.tokens_out[0].tolist() == (np.ceil(requests.output_tokens[0]) + 8).tolist()
    assert np.array_equal(system.tokens_in[1:], np.ceil(requests.input_tokens[1:]))
    assert np.array_equal(system.tokens_out[1:], np.ceil(requests.output_tokens[1:]))


def test_a_verified_request_may_skip_a_model(verified: Simulation) -> None:
    columns = verified.columns
    visited = np.stack([columns.visited(stage) for stage in range(3)])
    assert visited[0].all()
    assert not (visited[1] & visited[2]).any()
    stage = columns.accepted_by()
    assert set(stage) == {0, 1, 2}
    handed_s = columns.times(2)[stage == 2, ARRIVED]
    assert np.array_equal(handed_s, columns.times(0)[stage == 2, FINISHED])  # nobody judges in between
    # The first model's answer is shown once it is verified; the others stream.
    assert np.array_equal(verified.native.first_token_s[stage == 0], verified.native.finished_s[stage == 0])
    assert np.array_equal(verified.native.first_token_s[stage == 2], columns.times(2)[stage == 2, FIRST_TOKEN])
    assert columns.judge_calls() == 0


# A learned score


def test_a_learned_score_is_a_judge_without_delay(ours: Plan, problem: Problem) -> None:
    """The same run as of a judge who says the same at once."""
    requests = problem.workload.requests
    told = dataclasses.replace(requests, score=signal_values(LEARNED, requests))
    workload = dataclasses.replace(problem.workload, requests=told)
    instant = problem.replace(judge_latency_s=0.0, workload=workload)
    judged = dataclasses.replace(SCORED, signal=None)
    expected = simulate(of_system(ours, judged), instant, 10_000, rate_per_s=15.0)
    found = simulate(of_system(ours, SCORED), problem, 10_000, rate_per_s=15.0)
    for name in ("status", "arrived_s", "first_token_s", "finished_s", "times_s"):
        assert np.array_equal(getattr(found.native, name), getattr(expected.native, name), equal_nan=True), name
    assert found.columns.judge_calls() == 0 < expected.columns.judge_calls()
    assert found.slo_scales.tolist() == expected.slo_scales.tolist()


# Gears


def test_gears_that_are_alike_are_a_cascade(ours: Plan, problem: Problem) -> None:
    thresholds = ours.routing.thresholds
    alike = (Gear(20.0, (0, 1, 2), thresholds), Gear(None, (0, 1, 2), thresholds))
    geared = of_system(ours, Routing("gears", (), (), gears=alike, switching=Switching(1.0, 8.0)))
    expected = simulate(ours, problem, 10_000)
    found = simulate(geared, problem, 10_000)
    assert set(found.native.gear) == {0, 1}
    for name in ("status", "arrived_s", "first_token_s", "finished_s", "times_s"):
        assert np.array_equal(getattr(found.native, name), getattr(expected.native, name), equal_nan=True), name
    assert found.slo_scales.tolist() == expected.slo_scales.tolist()
    assert found.columns.judge_calls() == expected.columns.judge_calls()
    assert found.quality is not None
    assert expected.quality is not None
    assert found.quality.value == expected.quality.value
    assert found.quality.low == pytest.approx(expected.quality.low)
    assert sum(found.gear_shares) == pytest.approx(1)


def test_requests_keep_the_gear_they_came_in_with(ramped: Simulation) -> None:
    gear, drawn = ramped.native.gear, ramped.drawn
    assert set(gear) == {0, 1, 2}
    assert gear[0] == gear[200] == 0
    assert 2 in gear[2000:4000]
    visited = sum(ramped.columns.visited(stage).astype(int) << stage for stage in range(3))
    assert np.array_equal(visited, ramped.system.path[gear, drawn])
    assert np.array_equal(ramped.columns.accepted_by(), accepting_stages(ramped.system.path)[gear, drawn])
    counts = np.bincount(gear[ramped.measured.rows], minlength=3)
    assert ramped.gear_shares == pytest.approx((counts / counts.sum()).tolist())


def test_the_last_model_of_a_gear_is_not_judged(ramped: Simulation) -> None:
    columns, gear = ramped.columns, ramped.native.gear
    stage, judge_s = columns.accepted_by(), ramped.problem.judge.latency_s
    assert judge_s > 0
    first = stage == 0  # of two, so judged
    assert ramped.native.finished_s[first] == pytest.approx(columns.times(0)[first, FINISHED] + judge_s)
    assert np.array_equal(ramped.native.first_token_s[first], ramped.native.finished_s[first])
    middle = stage == 1  # the last of its gear, whether it is the only one or not
    assert set(gear[middle]) == {1, 2}
    assert np.array_equal(ramped.native.finished_s[middle], columns.times(1)[middle, FINISHED])
    assert np.array_equal(ramped.native.first_token_s[middle], columns.times(1)[middle, FIRST_TOKEN])
    assert columns.judge_calls() == pytest.approx(columns.visited(0).mean())


def test_scales_of_gears_are_of_the_paths_taken(ramped: Simulation) -> None:
    system, drawn, gear = ramped.system, ramped.drawn, ramped.native.gear
    path = system.path[gear, drawn]
    alone_s = np.zeros(drawn.size)
    for stage in range(3):
        alone_s += np.where(path >> stage & 1, system.alone_s(stage)[drawn], 0.0)
    alone_s += np.where(path & 1, ramped.problem.judge.latency_s, 0.0)
    assert ramped.columns.slo_scale() == pytest.approx(ramped.latency_s / alone_s)


def test_quality_of_gears_is_that_of_the_answers(ramped: Simulation) -> None:
    rows = ramped.measured.rows
    answered = ramped.system.requests.quality[ramped.columns.accepted_by(rows), ramped.drawn[rows]]
    assert ramped.quality is not None
    assert ramped.quality.value == pytest.approx(answered.mean())
    assert ramped.quality.low is not None
    assert ramped.quality.high is not None
    assert ramped.quality.low < ramped.quality.value < ramped.quality.high


def test_a_backlog_keeps_the_gear(ours: Plan, problem: Problem) -> None:
    """After a burst the first stage is full: the gear for it stays on while the queue factor says so."""
    gears = (Gear(30.0, (2,), ()), Gear(None, (0, 2), (0.0,)))
    burst = np.concatenate([np.linspace(0, 5, 3000), 5 + np.arange(1, 300) / 5])
    plans = [
        of_system(ours, Routing("gears", (), (), gears=gears, switching=Switching(1.0, factor)))
        for factor in (0.0, 1e9)
    ]
    eager, patient = (
        simulate(plan, ramp(problem, Arrivals.from_times(burst)), burst.size, arrivals="trace").native.gear
        for plan in plans
    )
    assert eager[:500].tolist() == patient[:500].tolist()
    assert eager[-1] == 0
    assert np.count_nonzero(patient == 1) > np.count_nonzero(eager == 1)


def test_gears_are_told(ramped: Simulation, tmp_path: Path) -> None:
    assert "in gear 1, " in ramped.summary(width=200)
    assert ramped.to_dict()["gear_shares"] == list(ramped.gear_shares)
    ramped.write_table(tmp_path / "rows.jsonl")
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert first["gear"] == 1


def test_one_gear_is_no_news(routed: Simulation) -> None:
    assert "gear" not in routed.summary()
    assert "gear" not in routed.table().column_names


# Batching and the judge


def test_a_plan_says_how_its_engines_batch(ours: Plan, problem: Problem) -> None:
    whole = of_system(ours, ours.routing, batching="prompts_first")
    found = simulate(whole, problem, 5000)
    assert found.settings.batching == "prompts_first"
    asked = simulate(ours, problem, 5000, batching="prompts_first")
    assert np.array_equal(found.latency_s, asked.latency_s)
    assert not np.array_equal(found.latency_s, simulate(ours, problem, 5000).latency_s)
    assert simulate(whole, problem, 100, batching="chunked").settings.batching == "chunked"


def test_who_asks_no_judge_needs_none(ours: Plan, problem: Problem) -> None:
    hosted = problem.replace(
        gpus=36, judge_latency_s=0.0, judge_model="llama-3.1-8b", judge_weights="fp8", judge_output_tokens=16
    )
    for routing in (ONE_OF_THREE, VERIFIED, SCORED):
        run = simulate(of_system(ours, routing), hosted, 500)
        assert run.judge is None
        assert run.columns.judge_rows == ()
    with pytest.raises(InputError, match=r"plan\.judge\.kind is 'simulated' and the problem's judge is hosted"):
        build_system(of_system(ours, GEARS), hosted)


# Around


def test_the_problem_of_another_systems_plan_is_found(ours: Plan, problem: Problem) -> None:
    plan = of_system(ours, ONE_OF_THREE, q_min=60.0)
    found = as_planned(problem, plan)
    assert (found.goal.q_min, found.goal.method) == (60.0, problem.goal.method)


def test_plans_of_others_are_not_explained(ours: Plan, problem: Problem) -> None:
    def no_planner(_: object) -> Any:
        raise AssertionError("nothing is to be planned")

    for plan in (of_system(ours, GEARS), of_system(ours, ours.routing), of_system(ours, SCORED, system=ours.system)):
        with pytest.raises(UnsupportedError, match=f"plan {plan.plan_id} is one of .* only cascades that"):
            explain(plan, problem, no_planner, no_planner)


def test_the_command_simulates_another_systems_plan(ours: Plan, problem: Problem, tmp_path: Path) -> None:
    of_system(ours, VERIFIED, batching="prompts_first").write(tmp_path / "plan.json")
    (file,) = (path for path in write_example(tmp_path / "example") if path.suffix == ".yaml")
    command = [sys.executable, "-c", MAIN, "simulate", str(tmp_path / "plan.json"), "--problem", str(file)]
    done = subprocess.run([*command, "--requests", "300", "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["batching"] == "prompts_first"


def test_the_first_to_be_admitted_need_not_wait(routed: Simulation) -> None:
    """Each model's station works on its own: an idle one admits at once."""
    for stage in range(3):
        times = routed.columns.times(stage)
        first = int(np.flatnonzero(routed.columns.visited(stage))[0])
        assert times[first, ADMITTED] == times[first, ARRIVED]
