"""Whole plans, warm: one `Planner`, and for every call new traffic that it has never seen.

Sixteen bootstrapped workloads take turns, each at a rate of its own: 10 % around nine tenths of the case's, which the
heaviest draws just carry. Every call gets fresh arrays, made outside the timing, so that nothing that a workload or a
plan remembers survives a call. The rate grows with the cluster, so that every size is loaded alike. `alternating`, the
paper's algorithm, is the baseline of `exact`.
"""

from __future__ import annotations

import itertools
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cascadia_fast.blueprint import Plan
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.workload import Workload

CASES = Path(__file__).parent / "cases"
DRAWS = 16
ROTATIONS = 3
RATE_SHARE, RATE_SPREAD = 0.9, 0.1


@cache
def problem_of(case: str) -> Problem:
    return Problem.read(CASES / f"{case}.yaml")


def workload_of(case: str, gpus: int, draw: int) -> Workload:
    """Traffic number `draw`: requests drawn with replacement, at a rate of its own."""
    problem = problem_of(case)
    factor = RATE_SHARE * (1 + RATE_SPREAD * (2 * draw / (DRAWS - 1) - 1))
    rate_per_s = problem.workload.rate_per_s * gpus / problem.gpus * factor
    return problem.workload.replace(requests=problem.workload.requests.bootstrap(draw)).with_rate(rate_per_s)


def assert_highs_agrees(plan: Plan) -> None:
    assert plan.solver.highs is not None
    assert plan.solver.highs.status == "optimal"
    assert plan.solver.highs.objective == pytest.approx(plan.latency_s, rel=1e-6)


def assert_optimal(plan: Plan, case: str, gpus: int, method: str, draw: int) -> None:
    """A planner that has planned nothing else makes the same plan, and `exact` is never beaten."""
    workload = workload_of(case, gpus, draw)
    fresh = Planner(problem_of(case))
    assert fresh.plan(gpus=gpus, method=method, workload=workload).plan_id == plan.plan_id
    other = fresh.plan(gpus=gpus, method="alternating" if method == "exact" else "exact", workload=workload)
    exact, alternating = (plan, other) if method == "exact" else (other, plan)
    assert (exact.latency_s or 0) <= (alternating.latency_s or 0) * (1 + 1e-9)


@pytest.mark.parametrize("gpus", [32, 80, 1024, 10240])
@pytest.mark.parametrize("case", ["deepseek", "llama20k"])
@pytest.mark.parametrize("method", ["exact", "alternating"])
def test_plan(benchmark: BenchmarkFixture, case: str, gpus: int, method: str) -> None:
    benchmark.group = f"plan, {case}, {gpus:,} GPUs, new workload each call"
    planner = Planner(problem_of(case))
    draws = itertools.cycle(range(DRAWS))

    def arguments() -> tuple[tuple[()], dict[str, Any]]:
        return (), {"gpus": gpus, "method": method, "workload": workload_of(case, gpus, next(draws))}

    benchmark.pedantic(planner.plan, setup=arguments, rounds=ROTATIONS * DRAWS, warmup_rounds=2)
    # Made again, not kept: thousands of placements held through the timing would be the garbage collector's work.
    plans = [planner.plan(gpus=gpus, method=method, workload=workload_of(case, gpus, draw)) for draw in range(DRAWS)]
    for draw, made in enumerate(plans):
        assert_highs_agrees(made)
        assert_optimal(made, case, gpus, method, draw)
    for name in ("distinct_routings", "evaluated", "pruned"):
        benchmark.extra_info[name] = statistics.median(getattr(made.solver, name) for made in plans)
    rates_per_s = [made.workload.rate_per_s for made in plans]
    benchmark.extra_info["rate_per_s"] = [round(min(rates_per_s), 3), round(max(rates_per_s), 3)]
