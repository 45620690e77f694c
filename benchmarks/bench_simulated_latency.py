"""Plans by simulation on the paper's case: 32 GPUs, the whole grid of thresholds, new traffic on every call.

The paper's own loop, with tables by simulation, takes 10 to 20 s on 12 cores there and is a heuristic (Cascadia, arXiv
2506.04203). The plan by the latency formula is the baseline of the group.
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

CASE = Path(__file__).parent / "cases" / "deepseek.yaml"
THREADS = 2
DRAWS = 8
RATE_SHARE, RATE_SPREAD = 0.9, 0.1


@cache
def problem() -> Problem:
    return Problem.read(CASE)


def workload_of(draw: int) -> Workload:
    """Traffic number `draw`: requests drawn with replacement, at a rate 10 % around nine tenths of the case's."""
    factor = RATE_SHARE * (1 + RATE_SPREAD * (2 * draw / (DRAWS - 1) - 1))
    workload = problem().workload
    return workload.replace(requests=workload.requests.bootstrap(draw)).with_rate(workload.rate_per_s * factor)


def assert_sound(plan: Plan, draw: int) -> None:
    """HiGHS allocates as well on what was simulated, and one thread finds the same plan."""
    assert plan.solver.highs is not None
    assert plan.solver.highs.status == "optimal"
    assert plan.solver.highs.objective == pytest.approx(plan.latency_s, rel=1e-6)
    alone = Planner(problem(), threads=1)
    latency = "formula" if plan.solver.simulated is None else "simulated"
    assert alone.plan(workload=workload_of(draw), latency=latency, skip_models=False).plan_id == plan.plan_id


@pytest.mark.parametrize("latency", ["simulated", "formula"])
def test_plan_by_simulation(benchmark: BenchmarkFixture, latency: str) -> None:
    benchmark.group = "plan by simulation, deepseek, 32 GPUs, new workload each call"
    planner = Planner(problem(), threads=THREADS)
    draws = itertools.cycle(range(DRAWS))

    def arguments() -> tuple[tuple[()], dict[str, Any]]:
        return (), {"latency": latency, "workload": workload_of(next(draws)), "skip_models": False}

    benchmark.pedantic(planner.plan, setup=arguments, rounds=2 * DRAWS, warmup_rounds=1)
    plans = [planner.plan(latency=latency, workload=workload_of(draw), skip_models=False) for draw in range(DRAWS)]
    for draw, made in enumerate(plans):
        assert_sound(made, draw)
    if latency == "simulated":
        reports = [made.solver.simulated for made in plans if made.solver.simulated is not None]
        benchmark.extra_info["simulations"] = statistics.median(report.runs for report in reports)
        benchmark.extra_info["requests_each"] = statistics.median(report.requests for report in reports)
    benchmark.extra_info["evaluated"] = statistics.median(made.solver.evaluated for made in plans)
