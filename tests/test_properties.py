"""What must hold of every plan: more of anything good, or less to do, never makes the objective worse."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_fast.errors import NoPlanError
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.workload import Workload

ROUNDING = 1e-9
FLOORS = st.sampled_from([0.0, 55.0, 62.0, 66.0, 70.0, 72.0])
RATES = st.floats(0.05, 40.0)
POOLS = st.integers(1, 80)


def small(problem: Problem, seed: int) -> Workload:
    """Another small sample of the example's requests: a cell each, so that few requests make the p95."""
    return problem.workload.replace(requests=problem.workload.requests.bootstrap(seed, 60))


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(Problem.example(), threads=1)


def latency_s(planner: Planner, gpus: int, q_min: float, rate_per_s: float, seed: int, method: str = "exact") -> float:
    """The objective; infinite where there is no plan."""
    workload = small(planner.problem, seed)
    try:
        plan = planner.plan(gpus, q_min, rate_per_s, method, workload=workload)
    except NoPlanError:
        return math.inf
    assert plan.latency_s is not None
    assert plan.predicted.quality >= q_min - 1e-9
    assert plan.gpus <= gpus
    assert all(stage.utilization <= plan.max_utilization * (1 + 1e-12) for stage in plan.stages)
    return plan.latency_s


@settings(max_examples=40)
@given(POOLS, st.integers(0, 40), FLOORS, RATES, st.integers(0, 50))
def test_more_gpus_never_hurt(
    planner: Planner, gpus: int, more: int, q_min: float, rate_per_s: float, seed: int
) -> None:
    before_s = latency_s(planner, gpus, q_min, rate_per_s, seed)
    assert latency_s(planner, gpus + more, q_min, rate_per_s, seed) <= before_s * (1 + ROUNDING)


@settings(max_examples=40)
@given(POOLS, FLOORS, RATES, st.floats(0.0, 1.0), st.integers(0, 50))
def test_a_lower_rate_never_hurts(
    planner: Planner, gpus: int, q_min: float, rate_per_s: float, factor: float, seed: int
) -> None:
    before_s = latency_s(planner, gpus, q_min, rate_per_s, seed)
    lower = max(rate_per_s * factor, 0.01)
    assert latency_s(planner, gpus, q_min, lower, seed) <= before_s * (1 + ROUNDING)


@settings(max_examples=40)
@given(POOLS, FLOORS, st.floats(0.0, 30.0), RATES, st.integers(0, 50))
def test_a_lower_floor_never_hurts(
    planner: Planner, gpus: int, q_min: float, lower: float, rate_per_s: float, seed: int
) -> None:
    before_s = latency_s(planner, gpus, q_min, rate_per_s, seed)
    assert latency_s(planner, gpus, max(q_min - lower, 0.0), rate_per_s, seed) <= before_s * (1 + ROUNDING)


@pytest.mark.parametrize(
    "field", ["bandwidth_bytes_per_s", "bf16_flops_per_s", "link_bytes_per_s", "internode_bytes_per_s", "memory_bytes"]
)
@settings(max_examples=12)
@given(data=st.data())
def test_a_better_gpu_never_hurts(planner: Planner, field: str, data: st.DataObject) -> None:
    factor = data.draw(st.floats(1.0, 3.0))
    better = copy.copy(planner.problem)
    better.gpu = dataclasses.replace(
        better.gpu, **{field: type(getattr(better.gpu, field))(getattr(better.gpu, field) * factor)}
    )
    arguments = data.draw(POOLS), data.draw(FLOORS), data.draw(RATES), data.draw(st.integers(0, 50))
    before_s = latency_s(planner, *arguments)
    # Waits match two moments; shorter prefills can vary relatively more, which moves a quantile the other way a little.
    assert latency_s(Planner(better, threads=1), *arguments) <= before_s * (1 + 1e-3)


@settings(max_examples=30)
@given(POOLS, FLOORS, RATES, st.integers(0, 50))
def test_exact_is_never_worse_than_alternating(
    planner: Planner, gpus: int, q_min: float, rate_per_s: float, seed: int
) -> None:
    exact_s = latency_s(planner, gpus, q_min, rate_per_s, seed)
    assert exact_s <= latency_s(planner, gpus, q_min, rate_per_s, seed, "alternating")


def test_whole_curves_fall(planner: Planner) -> None:
    """Along each axis, from no plan at all to one that is limited by the model alone."""
    gpus = [latency_s(planner, count, 70.0, 6.0, 1) for count in (2, 8, 12, 16, 24, 32, 64, 128, 512, 2048)]
    floors = [latency_s(planner, 32, q_min, 6.0, 1) for q_min in (99.0, 72.0, 70.0, 66.0, 60.0, 50.0, 0.0)]
    rates = [latency_s(planner, 32, 66.0, rate_per_s, 1) for rate_per_s in (2000.0, 100.0, 40.0, 20.0, 6.0, 1.0, 0.1)]
    for curve in (gpus, floors, rates):
        assert math.isinf(curve[0])
        assert math.isfinite(curve[-1])
        assert curve == sorted(curve, reverse=True)
        assert len(set(curve)) > 2


def test_a_higher_utilisation_cap_never_hurts() -> None:
    problem = Problem.example()
    workload = small(problem, 2)
    curve = [
        Planner(problem.replace(max_utilization=cap)).plan(workload=workload, rate_per_s=8.0, q_min=66.0).latency_s
        for cap in (0.5, 0.7, 0.9, 0.99)
    ]
    assert all(np.isfinite(curve))
    assert curve == sorted(curve, key=lambda value: -(value or 0))
