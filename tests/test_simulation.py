"""Simulated plans: what is sent, what the run says of it, and which plans and arguments are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cascadia_fast as cf
from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import InputError
from cascadia_fast.fleet import build_fleet
from cascadia_fast.problem import Problem
from cascadia_fast.simulation import Simulation, simulate
from cascadia_fast.simulation.columns import REFUSED, SERVED, TIMED_OUT, UNFINISHED
from cascadia_fast.simulation.settings import Settings
from cascadia_fast.simulation.system import SimulatedSystem, build_system
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests, judge_delays, whole_tokens
from cascadia_fast.workload import Arrivals, ScoredRequests, Workload

SETTINGS = Settings(3, 0, 1.0, "trace", None, "capacity_weighted", "chunked", "fcfs", 0.0, None, None, 0.0)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem.example()


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return cf.plan(problem)


@pytest.fixture(scope="module")
def run(plan: Plan, problem: Problem) -> Simulation:
    return simulate(plan, problem, 30_000, slo_s=60.0)


def scored(size: int, models: int = 2, **changes: Any) -> ScoredRequests:
    ones = np.ones((models, size))
    fields = {"input_tokens": 10 * ones, "output_tokens": 5 * ones, "score": 50 * ones, "quality": 50 * ones}
    names = tuple(f"model {stage}" for stage in range(models))
    return ScoredRequests(names, np.array([f"r{i}" for i in range(size)]), **{**fields, **changes})


# What is sent


def test_requests_are_drawn_by_weight() -> None:
    requests = scored(4, weight=np.array([0.0, 1.0, 3.0, 0.0]))
    drawn = drawn_requests(requests, 40_000, seed=1)
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.05)
    assert drawn.dtype == np.int32
    assert np.array_equal(drawn, drawn_requests(requests, 40_000, seed=1))
    assert not np.array_equal(drawn, drawn_requests(requests, 40_000, seed=2))
    equal = np.bincount(drawn_requests(scored(4), 40_000, seed=1))
    assert equal == pytest.approx(10_000, rel=0.05)


def test_a_trace_is_stretched_and_repeated() -> None:
    workload = Workload.build(scored(1), Arrivals.from_times([10.0, 11.0, 11.0, 14.0]))
    rate_per_s = workload.arrivals.rate_per_s
    assert arrival_times(workload, "trace", rate_per_s, 3, 0).tolist() == [0, 1, 1]
    period_s = 4 / rate_per_s
    expected = [0, 1, 1, 4, period_s, period_s + 1, period_s + 1, period_s + 4, 2 * period_s]
    assert arrival_times(workload, "trace", rate_per_s, 9, 0) == pytest.approx(expected)
    assert arrival_times(workload, "trace", 4 * rate_per_s, 9, 0) == pytest.approx(np.array(expected) / 4)
    long = arrival_times(workload, "trace", 2.0, 4001, 0)
    assert 4000 / long[-1] == pytest.approx(2.0)


def test_a_repeated_trace_ascends_whatever_rounding_does() -> None:
    """In a trace that was begun between two simultaneous arrivals, each round ends just where the next begins."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        times_s = np.sort(rng.random(7))
        arrivals = Arrivals.from_times(times_s)
        rotated = dataclasses.replace(arrivals, rate_per_s=7 / arrivals.duration_s)
        workload = Workload.build(scored(1), rotated)
        found = arrival_times(workload, "trace", float(rng.random() * 3 + 0.1), 70, 0)
        assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize(("kind", "cv", "expected"), [("poisson", 3.0, 1.0), ("gamma", 3.0, 3.0), ("gamma", 0.3, 0.3)])
def test_renewal_arrivals_have_the_rate_and_the_variation(kind: str, cv: float, expected: float) -> None:
    workload = Workload.build(scored(1), Arrivals.from_rate(5.0, cv))
    times_s = arrival_times(workload, kind, 8.0, 200_000, seed=3)
    gaps_s = np.diff(times_s)
    assert (gaps_s >= 0).all()
    assert gaps_s.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(expected, rel=0.03)
    assert np.array_equal(times_s, arrival_times(workload, kind, 8.0, 200_000, seed=3))


def test_arrivals_without_variation_are_a_metronome() -> None:
    workload = Workload.build(scored(1), Arrivals.from_rate(5.0, 0.0))
    assert arrival_times(workload, "gamma", 4.0, 3, seed=3).tolist() == [0, 0.25, 0.5]
    wild = Workload.build(scored(1), Arrivals.from_rate(5.0, 1e9))
    with pytest.raises(InputError, match="the workload's cv is 1e\\+09; gamma arrivals have at most 1000"):
        arrival_times(wild, "gamma", 4.0, 3, seed=3)
    with pytest.raises(InputError, match="has only a rate; use poisson or gamma"):
        arrival_times(workload, "trace", 4.0, 3, seed=3)


def test_judge_delays_have_the_mean_and_the_variation() -> None:
    assert judge_delays(0.3, 0.0).tolist() == [0.3]
    assert judge_delays(0.0, 2.0).tolist() == [0.0]
    delays_s = judge_delays(0.3, 0.5)
    assert delays_s.mean() == pytest.approx(0.3)
    assert delays_s.std() / 0.3 == pytest.approx(0.5, rel=0.01)
    assert np.median(delays_s) == pytest.approx(0.3 / math.sqrt(1.25), rel=0.01)


def test_tokens_are_whole_and_at_least_one() -> None:
    assert whole_tokens(np.array([[0.2, 1.0, 1.1]]), "input").tolist() == [[1, 1, 2]]
    with pytest.raises(InputError, match="5,000,000,000 output tokens"):
        whole_tokens(np.array([[5e9]]), "output")


# Columns of a run made by hand: two stages, three requests, of which the second goes on to the second stage.


class Alone:
    """An engine on which a request alone takes half a second per output token, and as long to its first."""

    def alone_s(self, tokens_in: np.ndarray, tokens_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(tokens_in.shape, 0.5), 0.5 * tokens_out


def hand_made(
    times_s: Any, status: Any, judge_s: float = 0.25, timeout_s: float | None = None, slo_s: float | None = None
) -> Simulation:
    """A run of two stages with one replica each; `times_s` has shape (2, N, 4)."""
    times = np.array(times_s, float)
    visited = ~np.isnan(times[:, :, 0])
    count = times.shape[1]
    served = np.array(status) == SERVED
    last = np.where(visited[1], 1, 0)
    finished_s = times[last, np.arange(count), 3] + np.where(last == 0, judge_s, 0.0)
    first_s = np.where(last == 1, times[1, :, 2], finished_s)
    native = SimpleNamespace(
        status=np.array(status, np.uint8),
        arrived_s=times[0, :, 0],
        first_token_s=np.where(served, first_s, np.nan),
        finished_s=np.where(served, finished_s, np.nan),
        times_s=times,
        replica=np.where(visited, 0, -1).astype(np.int32),
        preempted=np.zeros(visited.shape, np.uint8),
        station=np.array([0, 1]),
        busy_s=np.array([4.0, 2.0]),
        preemptions=np.array([0, 3]),
        peak_kv_share=np.array([0.5, 0.25]),
        ended_s=10.0,
        interrupted=UNFINISHED in status,
    )
    requests = scored(
        count,
        output_tokens=np.array([[2.0] * count, [5.0] * count]),
        quality=np.array([[10.0], [90.0]]) * np.ones(count),
    )
    system = SimulatedSystem(
        requests,
        np.where(last == 1, 3, 1).astype(np.uint16)[None],
        np.array([1], np.uint16),
        whole_tokens(requests.input_tokens, "input"),
        whole_tokens(requests.output_tokens, "output"),
        (((Alone(), 1, 1.0),), ((Alone(), 1, 1.0),)),  # type: ignore[arg-type]
    )
    plan = SimpleNamespace(
        stages=tuple(SimpleNamespace(index=stage, model=f"model {stage}", gpus=2) for stage in range(2)),
        pools=(SimpleNamespace(name="pool"),),
        groups=[SimpleNamespace(pool="pool", count=2, tp=1, pp=1) for stage in range(2)],
    )
    judge = SimpleNamespace(latency_s=judge_s, usd_per_call=0.5)
    problem = SimpleNamespace(judge=judge, pools=(SimpleNamespace(price_usd_per_hour=3600.0),))
    settings = dataclasses.replace(SETTINGS, requests=count, timeout_s=timeout_s, slo_s=slo_s)
    return Simulation(plan, problem, settings, system, np.arange(count, dtype=np.int32), native)  # type: ignore[arg-type]


NONE = [math.nan] * 4
THREE = [[[0, 0, 0.5, 1], [1, 1.5, 2, 2.5], [3, 3, 3.5, 4]], [NONE, [2.75, 3.75, 4.5, 6.5], NONE]]


def test_columns_of_a_run_made_by_hand() -> None:
    run = hand_made(THREE, [SERVED] * 3)
    assert run.latency_s.tolist() == [1.25, 5.5, 1.25]
    assert run.ttft_s.tolist() == [1.25, 3.5, 1.25]
    assert run.queueing_s.tolist() == [0, 1.5, 0]
    assert run.tpot_s.tolist() == [0.5, 0.5, 0.5]
    assert run.columns.accepted_by().tolist() == [0, 1, 0]
    # Alone, two tokens take 1 s and five take 2.5 s; a judge call takes 0.25 s and follows the first stage only.
    assert run.columns.slo_scale().tolist() == [1, 5.5 / 3.75, 1]
    assert run.slo_scales.tolist() == [5.5 / 3.75]  # of the one that is measured
    assert run.attainment(1) == 0
    assert run.attainment(1.5) == 1
    assert run.smallest_slo_scale() == pytest.approx(5.5 / 3.75)
    assert run.columns.judge_calls() == 1
    assert run.quality is not None
    assert run.quality.value == 90
    assert run.counts == {"served": 3, "timed_out": 0, "refused": 0, "unfinished": 0}


def test_one_output_token_has_no_time_per_output_token() -> None:
    run = hand_made(THREE, [SERVED] * 3)
    run.system.tokens_out[0, 0] = 1
    assert np.isnan(run.tpot_s).tolist() == [True, False, False]


def test_stages_of_a_run_made_by_hand() -> None:
    run = hand_made(THREE, [SERVED] * 3, slo_s=2.0)
    measured = run.measured
    # A p99 latency after the start and before the end holds everything; half of the others are measured all the same.
    assert (measured.start, measured.stop, measured.short) == (1, 2, True)
    assert run.mask.tolist() == [False, True, False]
    first, second = run.stages
    assert (first.visits, second.visits) == (3, 1)
    assert (first.reach, second.reach) == (1.0, 1.0)
    assert (first.busy_share, second.busy_share) == (0.4, 0.2)
    # All that is measured arrived at once, so that rates and means are those of the whole run of 10 s.
    assert (first.mean_running, first.mean_queue) == pytest.approx((0.3, 0.05))
    assert (first.peak_queue, second.peak_queue) == (1, 1)
    assert second.preemptions_per_visit == 3
    assert second.latency is not None
    assert second.latency.p95.value == 3.75
    assert run.within_slo == 0
    assert run.throughput_per_s == 0.3
    assert run.goodput_per_s() == 0.2
    assert run.cost_usd_per_request == pytest.approx(4 / 0.3 + 0.5)


def test_rates_are_those_while_requests_arrive() -> None:
    arrived_s = np.arange(1000.0)
    times = np.stack([arrived_s, arrived_s, arrived_s + 0.25, arrived_s + 0.5], axis=1)
    run = hand_made([times, np.full_like(times, np.nan)], [SERVED] * 1000, judge_s=0.0, slo_s=0.5)
    assert (run.measured.start, run.measured.stop) == (1, 999)
    assert run.offered_per_s == run.throughput_per_s == run.goodput_per_s() == run.goodput_per_s(scale=1.0) == 1.0
    assert run.goodput_per_s(scale=0.4) == 0.0
    assert run.cost_usd_per_request == pytest.approx(4 + 0.5)
    assert run.stages[0].mean_running == pytest.approx(0.5, rel=2e-3)


def test_who_is_cancelled_or_refused_leaves() -> None:
    nan = math.nan
    first = [[0, 0, 1, 2], [0, 1, nan, nan], [0, nan, nan, nan], [0, nan, nan, nan], [5, 5, nan, nan]]
    run = hand_made([first, [NONE] * 5], [SERVED, TIMED_OUT, TIMED_OUT, REFUSED, UNFINISHED], timeout_s=3.0)
    columns = run.columns
    assert columns.visit_ends_s(0).tolist() == [2, 3, 3, 0, math.inf]
    assert columns.visit_admissions_s(0).tolist() == [0, 1, 3, 0, 5]
    over = run.over_time(points=10)
    assert over.times_s.tolist() == list(range(1, 11))
    assert over.running[0].tolist() == [2, 1, 0, 0, 1, 1, 1, 1, 1, 1]
    assert over.waiting[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert over.finished_per_s[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert over.busy_share[0].tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1, 1]
    assert run.interrupted


# Whole runs


def test_littles_law_holds_at_every_stage(run: Simulation) -> None:
    """Everybody's time in the stage is the area under the number present, counted in quite another way."""
    over = run.over_time(5000)
    for stage in range(3):
        spent_s = float(np.nansum(run.columns.stage_latency_s(stage)))
        present = float((over.running[stage] + over.waiting[stage]).mean())
        assert present * run.native.ended_s == pytest.approx(spent_s, rel=1e-3)


def test_the_start_of_a_run_does_not_pull_latencies_down(plan: Plan, problem: Problem) -> None:
    """A run starts empty. Kept in, that start would lower the median by 6 % on average here."""
    truth = simulate(plan, problem, 500_000, seed=99, arrivals="poisson").latency
    runs = [simulate(plan, problem, 50_000, seed=seed, arrivals="poisson") for seed in range(12)]
    assert truth is not None
    medians_s = [run.latency.p50.value for run in runs if run.latency is not None]
    assert np.mean(medians_s) == pytest.approx(truth.p50.value, rel=0.03)
    for run in runs:
        measured, arrived_s = run.measured, run.native.arrived_s
        assert arrived_s[measured.start] - arrived_s[0] >= measured.p99_s > arrived_s[measured.start - 1] - arrived_s[0]
        assert arrived_s[-1] - arrived_s[measured.stop - 1] >= measured.p99_s
        assert run.latency is not None
        assert run.latency.sections == 3 <= measured.sections  # too short for more


def test_paths_are_those_of_the_plans_thresholds(run: Simulation, plan: Plan, problem: Problem) -> None:
    requests = problem.workload.requests
    first, second = plan.routing.thresholds
    for place in range(0, run.requests, 997):
        drawn = run.drawn[place]
        expected = 0 if requests.score[0, drawn] >= first else 1 if requests.score[1, drawn] >= second else 2
        assert run.columns.accepted_by()[place] == expected
        assert [run.columns.visited(stage)[place] for stage in range(3)] == [stage <= expected for stage in range(3)]
    for stage, planned in zip(run.stages, plan.stages, strict=True):
        assert stage.reach == pytest.approx(planned.reach, abs=0.01)
        assert (stage.model, stage.gpus) == (planned.model, planned.gpus)


def test_no_latency_is_below_that_on_an_idle_system(run: Simulation) -> None:
    assert run.slo_scales[0] >= 1 - 1e-9
    scales = np.linspace(1, 10, 40)
    curve = [run.attainment(scale) for scale in scales]
    assert curve == sorted(curve)
    assert run.attainment(1e9) == 1


def test_quality_is_that_of_the_plan(run: Simulation, plan: Plan) -> None:
    assert run.quality is not None
    assert run.quality.holds(plan.predicted.quality)
    assert plan.predicted.quality_ci95[0] == pytest.approx(run.quality.low, abs=2)


def test_equal_runs_are_equal_bytes(run: Simulation, plan: Plan, problem: Problem) -> None:
    again = simulate(plan, problem, 30_000, slo_s=60.0)
    assert again.to_json() == run.to_json()
    other = simulate(plan, problem, 30_000, seed=1, slo_s=60.0)
    assert other.to_json() != run.to_json()
    # Other arrivals serve the same requests.
    open_loop, closed = (simulate(plan, problem, 500, **how) for how in ({"arrivals": "poisson"}, {"concurrency": 9}))
    assert np.array_equal(open_loop.drawn, closed.drawn)


def test_predictions_are_compared_at_the_planned_rate(run: Simulation, plan: Plan, problem: Problem) -> None:
    by_name = {found.what: found for found in run.predictions}
    assert set(by_name) == {
        "stage 1 p95",
        "stage 2 p95",
        "stage 3 p95",
        "end to end p50",
        "end to end p95",
        "first token p95",
    }
    found = by_name["end to end p95"]
    assert run.latency is not None
    assert (found.predicted_s, found.simulated) == (plan.predicted.end_to_end_p95_s, run.latency.p95)
    assert found.predicted_s is not None
    assert found.error == pytest.approx(found.predicted_s / run.latency.p95.value - 1)
    assert not any("predictions are for" in note for note in run.notes)
    slow = simulate(plan, problem, 300, rate_per_s=10)
    assert any("predictions are for 60 requests/s" in note and "has 10" in note for note in slow.notes)


def test_json_is_strict_and_complete(run: Simulation) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    found = json.loads(run.to_json(), parse_constant=refuse)
    assert found["plan_id"] == run.plan.plan_id
    assert sum(found["requests"].values()) == 30_000
    assert found["measured"]["warm_up"] + found["measured"]["requests"] + found["measured"]["cool_down"] == 30_000
    assert found["slo"]["within_slo"] == run.within_slo
    assert found["slo"]["attainment"][0]["scale"] == 1.0
    assert [stage["model"] for stage in found["stages"]] == [stage.model for stage in run.plan.stages]
    p95 = found["latency_s"]["p95"]
    assert p95["low"] < p95["value"] < p95["high"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_fits(run: Simulation, width: int) -> None:
    text = run.summary(width=width, ascii_only=True)
    assert text.isascii()
    before_commands = text.split("Next:")[0]
    assert max(map(len, before_commands.splitlines())) <= width
    for words in ("MSER-5", "cool-down", "end to end p95", "TTFT", "note"):
        assert words in text


def test_one_request_is_simulated(plan: Plan, problem: Problem) -> None:
    run = simulate(plan, problem, 1)
    assert run.counts["served"] == 1
    assert run.latency is not None
    assert run.latency.p99.value == run.latency_s[0]
    assert run.latency.p99.low is None
    assert run.slo_scales == pytest.approx([1.0])
    assert any("Too few requests" in note for note in run.notes)
    json.loads(run.to_json())
    assert "1 request " in run.summary()


def test_a_closed_loop_keeps_its_clients_busy(plan: Plan, problem: Problem) -> None:
    run = simulate(plan, problem, 2000, concurrency=50)
    over = run.over_time(50)
    present = (over.running + over.waiting).sum(axis=0)
    assert present.max() <= 50
    assert np.median(present) > 35  # the others wait for the judge
    assert run.predictions == ()
    assert dict(run.figures).keys() >= {"stage 1 p95", "end to end p95"}
    assert "closed loop" in run.summary()


def test_overload_is_said_with_its_size(plan: Plan, problem: Problem) -> None:
    run = simulate(plan, problem, 40_000, rate_per_s=120, arrivals="poisson")
    found = [note for note in run.notes if "is overloaded" in note]
    assert found
    assert "requests/s arrive and" in found[0]
    assert "times what it can do" in found[0]
    assert "wait at the last arrival" in found[0]


def test_a_rate_that_no_clock_can_follow_is_refused(plan: Plan, problem: Problem) -> None:
    with pytest.raises(InputError, match=r"rate_per_s is 1e-09, so that 2,000 requests take .* give a higher rate"):
        cf.simulate(plan, problem, 2000, rate_per_s=1e-9)


def test_what_predictions_know_nothing_of_is_said(plan: Plan, problem: Problem) -> None:
    told = cf.simulate(plan, problem, 500, timeout_s=500.0, prefix_hit_share=0.5).notes
    assert any("know nothing of a timeout and prefix hits" in note for note in told)
    assert not any("know nothing" in note for note in cf.simulate(plan, problem, 500).notes)


def test_clients_that_send_only_once_are_said(plan: Plan, problem: Problem) -> None:
    told = cf.simulate(plan, problem, 300, concurrency=200).notes
    assert any("200 clients" in note and "at least 1,000" in note for note in told)
    assert not any("clients" in note for note in cf.simulate(plan, problem, 300, concurrency=20).notes)


@pytest.mark.parametrize("swapped", [True, False])
def test_a_plan_and_a_problem_are_asked_for(plan: Plan, problem: Problem, swapped: bool) -> None:
    with pytest.raises(InputError, match="give a P"):
        cf.simulate(problem, plan, 10) if swapped else cf.simulate(plan, None, 10)  # type: ignore[arg-type]


def test_a_carried_load_is_not_called_overload(plan: Plan, problem: Problem) -> None:
    for requests in (200, 2_000, 20_000):
        run = simulate(plan, problem, requests, arrivals="poisson")
        assert not any("overloaded" in note for note in run.notes)


def test_timeouts_are_counted_and_said(plan: Plan, problem: Problem) -> None:
    run = simulate(plan, problem, 3000, timeout_s=10.0)
    lost = run.counts["timed_out"]
    assert lost > 0
    assert run.counts["served"] + lost == 3000
    assert any(note.startswith(f"{lost:,} of 3,000 requests") and "timed out after 10 s" in note for note in run.notes)
    assert run.attainment(1e9) < 1
    assert run.attainment(1e9) == pytest.approx(run.slo_scales.size / run.measured.count)


def test_requests_that_fit_no_cache_are_refused(plan: Plan, problem: Problem) -> None:
    requests = problem.workload.requests
    enormous = requests.output_tokens.copy()
    enormous[:, ::10] = 5e7
    traffic = problem.workload.replace(requests=dataclasses.replace(requests, output_tokens=enormous))
    run = simulate(plan, problem.replace(workload=traffic), 2000)
    assert 100 < run.counts["refused"] < 300
    assert any("were refused, as no engine of their last stage has room" in note for note in run.notes)


def test_a_judge_that_varies_changes_latencies_but_not_their_mean(plan: Plan, problem: Problem) -> None:
    slow = problem.replace(judge_latency_s=5.0)
    steady, varying = (simulate(plan, slow, 2000, rate_per_s=1, judge_cv=cv) for cv in (0.0, 1.0))
    change_s = varying.latency_s - steady.latency_s
    assert change_s.std() > 2
    assert abs(change_s.mean()) < 0.5


def test_a_plan_that_skips_models_is_simulated(problem: Problem) -> None:
    few = problem.replace(q_min=65.0)
    plan = cf.plan(few)
    assert plan.skipped_models
    run = simulate(plan, few, 500)
    assert len(run.stages) == len(plan.stages)
    assert run.counts["served"] == 500
    assert repr(run) == f"Simulation(plan {plan.plan_id}: 500 served)"
    assert run.system.requests.models == problem.workload.requests.models[: len(plan.stages)]


def test_an_interrupted_run_says_how_far_it_came() -> None:
    first = [[0, 0, 1, 2], [1, 1, 2, 3], [2, 2, math.nan, math.nan], NONE]
    run = hand_made([first, [NONE] * 4], [SERVED, SERVED, UNFINISHED, UNFINISHED])
    from cascadia_fast.simulation.notes import _interrupted

    assert list(_interrupted(run)) == ["Interrupted: 2 of 4 requests are done, and all figures are of those"]
    assert run.columns.sent == 3
    assert run.measured.stop <= 3


def test_progress_is_told(plan: Plan, problem: Problem) -> None:
    told: list[int] = []
    simulate(plan, problem, 50_000, progress=told.append)
    assert told
    assert told == sorted(told)
    assert told[-1] <= 50_000


def test_engines_are_those_the_plan_was_made_with(plan: Plan, problem: Problem) -> None:
    """One home for engines: the simulated one takes what the planner's would for a request alone."""
    system = build_system(plan, problem)
    for stage, fleet in enumerate(build_fleet(problem)):
        group = plan.stages[stage].replicas[0]
        replica = next(r for r in fleet.replicas if (r.shape.tp, r.shape.pp) == (group.tp, group.pp))
        expected = _core.StepCosts(replica).alone_s(system.tokens_in[stage], system.tokens_out[stage])[1]
        assert np.array_equal(system.alone_s(stage), expected)


# What does not belong together


def changed(plan: Plan, number: int, **fields: Any) -> Plan:
    stages = list(plan.stages)
    stages[number] = dataclasses.replace(stages[number], **fields)
    return dataclasses.replace(plan, stages=tuple(stages))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "gpt-2"}, "plan.stages[1].model is 'gpt-2' and the problem has 'llama-3.1-70b' there"),
        ({"weights": "fp8"}, "plan.stages[1].weights is 'fp8' and the problem has 'bf16'"),
        ({"kv_dtype": "fp8"}, "plan.stages[1].kv_dtype is 'fp8'"),
        ({"index": 7}, "have the indexes [0, 7, 2]"),
    ],
)
def test_a_plan_of_other_models_is_refused(plan: Plan, problem: Problem, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        simulate(changed(plan, 1, **fields), problem, 10)
    assert words in str(error.value)


def test_a_plan_of_another_cluster_or_cascade_is_refused(plan: Plan, problem: Problem) -> None:
    with pytest.raises(InputError, match="uses 32 GPUs and the problem has 16"):
        simulate(plan, problem.replace(gpus=16), 10)
    others = problem.replace(pools={"h100-sxm-80gb": {"gpu": "a100-sxm-80gb"}})
    with pytest.raises(InputError, match="is for h100-sxm-80gb and the problem has a100-sxm-80gb; plan again"):
        simulate(plan, others, 10)
    pools = (dataclasses.replace(plan.pools[0], gpus_per_node=4),)
    with pytest.raises(InputError, match="4 GPUs per node and the problem 8"):
        simulate(dataclasses.replace(plan, pools=pools), problem, 10)
    with pytest.raises(InputError, match="skipped_models is tiny, where the problem has no models besides"):
        simulate(dataclasses.replace(plan, skipped_models=("tiny",)), problem, 10)
    with pytest.raises(InputError, match="stages\\[2\\].index is 3, but the problem has 3 models"):
        simulate(changed(plan, 2, index=3), problem, 10)


def test_a_changed_input_file_is_named(plan: Plan, problem: Problem) -> None:
    inputs = {**plan.provenance.inputs, "requests.csv.gz": "0" * 64}
    other = dataclasses.replace(plan, provenance=dataclasses.replace(plan.provenance, inputs=inputs))
    with pytest.raises(InputError, match="requests.csv.gz has changed since plan"):
        simulate(other, problem, 10)


def test_other_traffic_in_memory_is_welcome(plan: Plan, problem: Problem) -> None:
    busier = problem.replace(workload=problem.workload.with_rate(70.0))
    assert simulate(plan, busier, 100).settings.rate_per_s == pytest.approx(70)


def test_engines_without_a_cache_are_refused(plan: Plan) -> None:
    problem = Problem.example()
    problem.stages = (*problem.stages[:2], dataclasses.replace(problem.stages[2], weights="bf16"))
    with pytest.raises(InputError, match="llama-3.1-405b in bf16 on tp8 pp1 of h100-sxm-80gb holds no KV cache"):
        simulate(changed(plan, 2, weights="bf16"), problem, 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"requests": 0}, "requests is 0; it must be a whole number from 1 to 16,000,000"),
        ({"requests": 16_000_001}, "requests is 16000001"),
        ({"requests": 10.5}, "requests is 10.5; give a whole number"),
        ({"requests": True}, "requests is True"),
        ({"seed": -1}, "seed is -1"),
        ({"rate_per_s": 0.0}, "rate_per_s is 0; it must be a number from 1e-09"),
        ({"rate_per_s": math.nan}, "rate_per_s is nan"),
        ({"rate_per_s": math.inf}, "rate_per_s is inf"),
        ({"arrivals": "posson"}, "arrivals is 'posson'; did you mean 'poisson'?"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": 4, "rate_per_s": 2.0}, "concurrency and rate_per_s contradict each other"),
        ({"concurrency": 4, "arrivals": "trace"}, "concurrency and arrivals contradict each other"),
        ({"dispatch": "lucky"}, "dispatch is 'lucky'"),
        ({"batching": "static"}, "batching is 'static'"),
        ({"admission": "lifo"}, "admission is 'lifo'"),
        ({"prefix_hit_share": 1.1}, "prefix_hit_share is 1.1"),
        ({"prefix_hit_share": math.nan}, "prefix_hit_share is nan"),
        ({"timeout_s": 0.0}, "timeout_s is 0; it must be a positive number of seconds"),
        ({"timeout_s": math.inf}, "timeout_s is inf"),
        ({"slo_s": -1.0}, "slo_s is -1"),
        ({"judge_cv": -0.5}, "judge_cv is -0.5"),
        ({"judge_cv": math.nan}, "judge_cv is nan"),
    ],
)
def test_bad_arguments_are_refused(plan: Plan, problem: Problem, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        simulate(plan, problem, **{"requests": 10, **arguments})
    assert str(error.value).startswith(words)


# The table


def test_the_table_has_a_row_per_request(run: Simulation) -> None:
    table = run.table()
    assert table.num_rows == 30_000
    assert table["latency_s"].to_numpy() == pytest.approx(run.latency_s)
    first = table.slice(0, 1).to_pylist()[0]
    assert first["request"] == 0
    assert first["scored_request"] == str(run.system.requests.request_ids[run.drawn[0]])
    assert first["status"] == "served"
    assert first["path"] == ">".join(str(stage + 1) for stage in range(first["accepted_by"]))
    accepted = first["accepted_by"] - 1
    assert first["output_tokens"] == run.system.tokens_out[accepted, run.drawn[0]]
    assert first["slo_scale"] == run.columns.slo_scale()[0]
    assert first[f"stage{accepted + 1}_admitted_s"] >= first[f"stage{accepted + 1}_arrived_s"]
    assert table["stage3_replica"].null_count == int((~run.columns.visited(2)).sum())


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".csv", ".jsonl"])
def test_tables_are_written_in_every_format(
    run: Simulation, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.csv
    import pyarrow.ipc
    import pyarrow.json
    import pyarrow.parquet

    monkeypatch.setattr("cascadia_fast.simulation.table._ROWS", 7001)  # in five pieces
    path = tmp_path / f"run{suffix}"
    path.write_text("old")
    run.write_table(path)
    read = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".arrow": lambda name: pyarrow.ipc.open_file(name).read_all(),
    }
    table = read[suffix](path)
    assert table.column_names == run.table().column_names
    assert table["finished_s"].to_numpy() == pytest.approx(run.native.finished_s)
    assert table["request"].to_pylist() == list(range(30_000))
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_tables_that_cannot_be_written_leave_nothing(run: Simulation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no known suffix for a table; use one of .parquet, .arrow, .csv, .jsonl"):
        run.write_table(tmp_path / "run.xlsx")
    with pytest.raises(InputError, match="is no folder"):
        run.write_table(tmp_path / "nowhere" / "run.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        run.write_table(tmp_path / "folder.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


def test_without_pyarrow_the_message_says_what_to_install(run: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install 'cascadia-fast\\[parquet\\]'"):
        run.table()


def test_simulating_imports_nothing_heavy() -> None:
    code = (
        "import sys, cascadia_fast.simulation, cascadia_fast.simulation.summary, cascadia_fast.simulation.table; "
        "print([name for name in ('numba', 'highspy', 'pyarrow', 'scipy', 'matplotlib', 'cascadia_fast.planner') "
        "if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
