"""Overload is told from a burst, and from a run that is too short to show it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cascadia_fast.blueprint import Plan
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.simulation import Simulation, simulate
from cascadia_fast.simulation.overload import Overload, overloads
from cascadia_fast.workload import Arrivals


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The 8B model alone on one GPU."""
    return Problem.example().replace(gpus=1, q_min=0.0, rate_per_s=5.0)


@pytest.fixture(scope="module")
def plan(problem: Problem) -> Plan:
    return Planner(problem).plan()


def served(plan: Plan, problem: Problem, times_s: np.ndarray) -> Simulation:
    """The plan under a trace."""
    workload = dataclasses.replace(problem.workload, arrivals=Arrivals.from_times(times_s))
    return simulate(plan, problem.replace(workload=workload), requests=times_s.size, seed=1)


def poisson(rate_per_s: float, count: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(5).exponential(1 / rate_per_s, count))


def told(run: Simulation) -> Overload | None:
    return next(overloads(run), None)


@pytest.fixture(scope="module")
def able_per_s(plan: Plan, problem: Problem) -> float:
    """What the engine carries."""
    found = told(served(plan, problem, poisson(60.0, 8000)))
    assert found is not None
    assert found.grows
    assert found.able_per_s is not None
    assert found.able_per_s < found.arrived_per_s
    return found.able_per_s


def test_a_burst_that_ends_a_run_is_no_overload(plan: Plan, problem: Problem, able_per_s: float) -> None:
    steady_s = poisson(0.5 * able_per_s, 4000)
    burst_s = steady_s[-1] + np.linspace(0.1, 5.0, 1500)
    run = served(plan, problem, np.concatenate([steady_s, burst_s]))
    # What growth between two instants would call one: a queue at the end, none before, and much that is unfinished.
    assert run.stations[0].peak_queue > 300
    assert told(run) is None
    assert not any("overloaded" in note for note in run.notes)


def test_a_queue_that_never_ends_is_one(plan: Plan, problem: Problem, able_per_s: float) -> None:
    run = served(plan, problem, poisson(1.3 * able_per_s, 12_000))
    found = told(run)
    assert found is not None
    assert found.able_per_s == pytest.approx(able_per_s, rel=0.1)
    (note,) = [note for note in run.notes if "is overloaded" in note]
    assert "times what it can do; " in note
    assert "latencies grow with the length of the run" in note


def test_what_keeps_up_is_none(plan: Plan, problem: Problem, able_per_s: float) -> None:
    assert told(served(plan, problem, poisson(0.8 * able_per_s, 12_000))) is None


def test_a_little_too_much_is_one_where_the_plan_says_so(plan: Plan, problem: Problem, able_per_s: float) -> None:
    """A few percent too much take long to show; the plan knows, and what the engine is able to do agrees."""
    times_s = poisson(1.04 * able_per_s, 12_000)
    assert told(served(plan, problem, times_s)) is None
    unstable = dataclasses.replace(plan, status="unstable")
    found = told(served(unstable, problem, times_s))
    assert found is not None
    assert found.grows
    calm = served(unstable, problem, poisson(0.8 * able_per_s, 12_000))
    assert told(calm) is None


def test_timeouts_keep_a_queue_short_and_overload_shows_all_the_same(
    plan: Plan, problem: Problem, able_per_s: float
) -> None:
    run = simulate(plan, problem, requests=8000, seed=1, rate_per_s=2 * able_per_s, arrivals="poisson", timeout_s=60.0)
    found = told(run)
    assert run.counts["timed_out"] > 100
    assert found is not None
