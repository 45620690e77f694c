"""Problems without a plan: the error names the constraint that binds, and its numbers hold."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import routing as slow_routing
from test_search import scored_requests

from cascadia_fast.errors import (
    CascadiaError,
    ModelDoesNotFitError,
    NoPlanError,
    PoolTooSmallError,
    QualityUnreachableError,
    RateTooHighError,
)
from cascadia_fast.planner import Planner
from cascadia_fast.planning.infeasible import check_floor, floor_digits
from cascadia_fast.planning.qualities import Qualities
from cascadia_fast.planning.subsets import Subset
from cascadia_fast.problem import Problem
from cascadia_fast.routing import route, routing_grid
from cascadia_fast.schema import Goal
from cascadia_fast.workload import Workload


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(Problem.example())


def assert_one_sentence(error: CascadiaError) -> None:
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    assert ". " not in text
    assert len(text) < 400


def failure(kind: type[NoPlanError], planner: Planner, **arguments: Any) -> Any:
    with pytest.raises(kind) as caught:
        planner.plan(**arguments)
    assert type(caught.value) is kind
    assert_one_sentence(caught.value)
    return caught.value


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 20))
def test_the_best_quality_and_its_thresholds_are_right(seed: int, stages: int, size: int) -> None:
    requests = scored_requests(seed, size, stages, weighted=seed % 2 == 0)
    grid = routing_grid(requests, [[0, 25, 50, 75]] * (stages - 1))
    qualities = []
    for levels in np.ndindex(*[len(level) for level in grid.levels]):
        thresholds = [level[k] for level, k in zip(grid.levels, levels, strict=True)]
        zero_cells = [np.zeros(size, np.int32)] * stages
        qualities.append(
            slow_routing.evaluate(
                thresholds, requests.score, requests.quality, requests.weight, zero_cells, [1] * stages
            ).quality
        )
    best = max(qualities)
    subsets = (Subset(tuple(range(stages)), requests, grid, skipping=False),)
    check_floor(subsets, Qualities(subsets, None), Goal(q_min=max(best - 1e-6, 0.0)))
    with pytest.raises(QualityUnreachableError) as caught:
        check_floor(subsets, Qualities(subsets, None), Goal(q_min=best + 1e-3))
    assert_one_sentence(caught.value)
    assert caught.value.best_quality == pytest.approx(best)
    served = requests.quality[route(requests, caught.value.thresholds), np.arange(size)]
    assert np.average(served, weights=requests.weight) == pytest.approx(best)


def test_a_floor_above_every_routing(planner: Planner) -> None:
    error = failure(QualityUnreachableError, planner, q_min=99.0)
    assert planner.plan(q_min=error.best_quality, gpus=128).predicted.quality == pytest.approx(error.best_quality)
    failure(QualityUnreachableError, planner, q_min=error.best_quality + 0.01, gpus=128)
    for value in (f"{error.best_quality:.2f}", "q_min is 99"):
        assert value in str(error)


@pytest.mark.parametrize(("gpus", "q_min"), [(32, 72.0), (32, 40.0), (20, 71.0), (7, 60.0), (100, 72.5)])
@pytest.mark.parametrize("method", ["exact", "alternating"])
def test_the_largest_rate_can_be_planned_and_no_larger_one(
    planner: Planner, gpus: int, q_min: float, method: str
) -> None:
    error = failure(RateTooHighError, planner, gpus=gpus, q_min=q_min, rate_per_s=5e4, method=method)
    most = error.max_rate_per_s
    skipping = method == "exact"
    assert planner.plan(gpus=gpus, q_min=q_min, rate_per_s=most * 0.999, skip_models=skipping).latency_s is not None
    failure(RateTooHighError, planner, gpus=gpus, q_min=q_min, rate_per_s=most * 1.001, skip_models=skipping)
    # What is printed is rounded down, so that it can be carried.
    printed = float(str(error).split("the largest rate is ")[1].split(",")[0])
    assert most * 0.999 <= printed <= most
    enough = int(str(error).split("and ")[-1].split(" GPUs")[0].replace(",", ""))
    assert enough > gpus


def test_the_gpus_said_to_be_enough_for_a_rate_are(planner: Planner) -> None:
    error = failure(RateTooHighError, planner, gpus=24, q_min=71.0, rate_per_s=600.0)
    enough = int(str(error).split("and ")[-1].split(" GPUs")[0].replace(",", ""))
    assert planner.plan(gpus=enough, q_min=71.0, rate_per_s=600.0).gpus == enough
    failure(RateTooHighError, planner, gpus=enough - 1, q_min=71.0, rate_per_s=600.0)


@pytest.mark.parametrize("rate_per_s", [0.01, 2.0])
def test_a_pool_too_small_for_any_cascade(planner: Planner, rate_per_s: float) -> None:
    """The floor needs the 405B model; what is named is enough and one GPU fewer is not."""
    q_min = failure(QualityUnreachableError, planner, q_min=100.0).best_quality - 0.2
    error = failure(PoolTooSmallError, planner, gpus=3, q_min=q_min, rate_per_s=rate_per_s)
    needed = error.gpus_needed
    assert needed > 3
    assert f"{needed} GPUs would be enough" in str(error)
    assert planner.plan(gpus=needed, q_min=q_min, rate_per_s=rate_per_s).gpus == needed
    with pytest.raises((PoolTooSmallError, RateTooHighError)):
        planner.plan(gpus=needed - 1, q_min=q_min, rate_per_s=rate_per_s)


def test_every_model_must_run_where_the_paper_says_so() -> None:
    planner = Planner(Problem.example().replace(paper_strict=True))
    error = failure(PoolTooSmallError, planner, gpus=8, q_min=0.0, rate_per_s=0.1)
    assert error.gpus_needed == sum(stage.least_gpus for stage in planner.fleet)
    plan = planner.plan(gpus=error.gpus_needed, q_min=0.0, rate_per_s=0.1)
    assert len(plan.stages) == 3


def test_a_model_that_fits_no_shape() -> None:
    problem = Problem.example()
    fields = problem.fields.model_dump()
    fields["engine"]["memory_utilization"] = 0.02
    with pytest.raises(ModelDoesNotFitError) as caught:
        Planner(Problem.from_dict(fields).replace(workload=problem.workload))
    assert_one_sentence(caught.value)
    assert "llama-3.1-8b in bf16 fits no number of h100-sxm-80gb GPUs" in str(caught.value)


def with_prompt(workload: Workload, tokens: float) -> Workload:
    """The workload with one endless prompt, in a sample small enough for it to be a cell of its own."""
    requests = workload.requests.select(np.arange(200))
    lengths = requests.input_tokens.copy()
    lengths[:, 0] = tokens
    return workload.replace(requests=dataclasses.replace(requests, input_tokens=lengths))


@pytest.mark.parametrize("method", ["exact", "alternating"])
def test_a_request_that_fits_no_kv_cache(planner: Planner, method: str) -> None:
    workload = with_prompt(planner.problem.workload, 5e7)
    floor = float(workload.requests.quality[0].mean())
    error = failure(NoPlanError, planner, workload=workload, q_min=floor, method=method)
    assert "no shape of llama-3.1-8b holds the KV cache of its longest request" in str(error)


def test_a_long_request_needs_an_engine_that_holds_it(planner: Planner) -> None:
    """2 million tokens of an 8B model are 244 GiB of keys and values: more than four GPUs have to spare."""
    workload = with_prompt(planner.problem.workload, 2e6)
    goal: dict[str, Any] = {"workload": workload, "q_min": 0.0, "rate_per_s": 0.001}
    error = failure(PoolTooSmallError, planner, gpus=3, **goal)
    assert error.gpus_needed >= 4
    assert planner.plan(gpus=error.gpus_needed, **goal).gpus == error.gpus_needed
    assert planner.plan(gpus=3, q_min=0.0, rate_per_s=0.001).latency_s is not None


def test_near_saturation_the_heuristic_fails_only_where_it_says_how_to_go_on(planner: Planner) -> None:
    """Either nothing can carry the rate, or the message names the exact method, and that finds a plan."""
    for rate_per_s in np.linspace(20, 120, 11):
        for q_min in (70.0, 72.0):
            goal: dict[str, Any] = {"q_min": q_min, "rate_per_s": float(rate_per_s)}
            try:
                planner.plan(method="alternating", **goal)
            except RateTooHighError:
                failure(RateTooHighError, planner, **goal)
            except NoPlanError:
                assert "use method exact" in str(failure(NoPlanError, planner, method="alternating", **goal))
                assert planner.plan(**goal).latency_s is not None


@given(st.floats(1e-9, 1e9), st.integers(1, 8))
def test_rates_are_rounded_down(value: float, digits: int) -> None:
    rounded = floor_digits(value, digits)
    assert rounded <= value * (1 + 1e-15)
    assert value - rounded <= 10.0 ** (math.floor(math.log10(value)) - digits + 1) * 1.01
