"""Loads that are fixed, and their deployments: against every deployment there is, and against our own planner."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from baseline_cases import choices, least_slowest_s, loads_of, slowest_s, small_case, utilization
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import H100, L40S

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.loads import MOST_UTILIZATION, CascadeVisits, StationLoads
from cascadia_fast.errors import PoolTooSmallError, UnsupportedError

EQUAL = 1e-9
thresholds = st.tuples(st.floats(0, 100), st.floats(0, 100))


def visits_of(case: Case, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Any visits, in part too; every model is visited by somebody."""
    visits = np.random.default_rng(seed).uniform(0, 1, case.requests.quality.shape).round(1)
    visits[:, 0] = 1
    return visits


@given(st.integers(0, 99), st.sampled_from([2.0, 8.0, 20.0]), st.booleans())
@settings(max_examples=12)
def test_the_deployment_is_the_best_of_all(seed: int, rate_per_s: float, weighted: bool) -> None:
    case = small_case(2, seed, rate_per_s=rate_per_s, weighted=weighted)
    loads = StationLoads(case, visits_of(case, seed))
    best_s = least_slowest_s(loads, case.gpus)
    made = loads.deploy()
    assert sum(choice.gpus for choice in made.values()) <= case.gpus
    if np.isfinite(best_s):
        assert slowest_s(made) == pytest.approx(best_s, rel=EQUAL)
    for model in loads.models:
        alone = [c for c in choices(loads, model, 5) if utilization(loads, model, c) <= 0.9]
        if alone:
            least_s = min(choice.latency_s for choice in alone)
            assert loads.best(model, 5).latency_s == pytest.approx(least_s, rel=EQUAL)


@given(st.integers(0, 99))
@settings(max_examples=8)
def test_beyond_every_cap_the_deployment_is_the_one_that_carries_most(seed: int) -> None:
    case = small_case(2, seed, rate_per_s=4000.0)
    loads = StationLoads(case, visits_of(case, seed))
    for model in loads.models:
        least = min(utilization(loads, model, choice) for choice in choices(loads, model, 6))
        made = loads.best(model, 6)
        assert least > 1
        assert utilization(loads, model, made) == pytest.approx(least, rel=1e-6)
        assert np.isinf(made.latency_s)
    busiest = max(utilization(loads, model, choice) for model, choice in loads.deploy().items())
    together = itertools.product(*(choices(loads, model, case.gpus) for model in loads.models))
    least = min(
        max(utilization(loads, model, choice) for model, choice in zip(loads.models, made, strict=True))
        for made in together
        if sum(choice.gpus for choice in made) <= case.gpus
    )
    assert busiest == pytest.approx(least, rel=1e-6)


def test_the_cap_gives_way_before_the_rate_does() -> None:
    case = small_case(1, rate_per_s=10.0)
    everyone = np.ones((1, case.requests.size))
    idle = StationLoads(case, everyone)
    least_busy = min(utilization(idle, 0, choice) for choice in choices(idle, 0, 8))
    between = case.replace(rate_per_s=10.0 * 0.96 / least_busy)
    loads = StationLoads(between, everyone)
    busy = utilization(loads, 0, loads.best(0, 8))
    assert 0.9 < busy <= MOST_UTILIZATION
    assert np.isfinite(loads.best(0, 8).latency_s)


def test_more_gpus_never_hurt_and_capacity_is_what_utilization_says() -> None:
    case = small_case(2, 3, rate_per_s=12.0)
    loads = StationLoads(case, visits_of(case, 3))
    latency_s = [loads.best(1, gpus).latency_s for gpus in range(case.fleet[1].least_gpus, 9)]
    assert latency_s == sorted(latency_s, reverse=True)
    for choice in choices(loads, 1, 8):
        detail = loads.evaluate(1, choice)
        carried = choice.replicas * loads.capacity_per_s(1)[choice.shape]
        assert detail["utilization"] == pytest.approx(case.rate_per_s * loads.reach[1] / carried, rel=EQUAL)


def test_other_lengths_are_those_of_other_requests() -> None:
    case = small_case(2, 5, rate_per_s=5.0)
    requests = case.requests
    longer = dataclasses.replace(
        requests, input_tokens=2 * requests.input_tokens, output_tokens=requests.output_tokens + 8
    )
    other = case.replace(workload=case.problem.workload.replace(requests=longer))
    visits = visits_of(case, 5)
    given_lengths = StationLoads(
        case, visits, tokens_in=2 * requests.input_tokens, tokens_out=requests.output_tokens + 8
    ).deploy()
    own_lengths = StationLoads(other, visits).deploy()
    assert [(c.shape, c.replicas, c.latency_s) for c in given_lengths.values()] == [
        (c.shape, c.replicas, c.latency_s) for c in own_lengths.values()
    ]
    assert slowest_s(given_lengths) > slowest_s(StationLoads(case, visits).deploy())


def test_half_the_visits_are_the_load_of_half_the_requests() -> None:
    case = small_case(1, 7)
    some = np.random.default_rng(7).integers(0, 2, (1, case.requests.size)).astype(float)
    in_part = StationLoads(case, np.full_like(some, some.mean()))
    assert in_part.reach[0] == pytest.approx(StationLoads(case, some).reach[0])


@given(thresholds, st.permutations([0, 1, 2]), st.integers(1, 3))
@settings(max_examples=30)
def test_visits_of_a_cascade_are_those_of_its_thresholds(
    levels: tuple[float, float], order: list[int], size: int
) -> None:
    requests = small_case(3, 1).requests
    models = tuple(sorted(order[:size]))
    who = CascadeVisits.of(requests, models, levels[: size - 1])
    for request in range(requests.size):
        path = []
        for place, model in enumerate(models):
            path.append(model)
            if place == size - 1 or requests.score[model, request] >= levels[place]:
                break
        assert np.flatnonzero(who.visits[:, request]).tolist() == path
        judged = path if path[-1] != models[-1] else path[:-1]
        assert np.flatnonzero(who.judged[:, request]).tolist() == judged
        assert who.quality[request] == requests.quality[path[-1], request]


@pytest.mark.parametrize("judge", [None, {"model": "qwen2.5-7b"}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_cascade_of_ours_is_deployed_as_ours(seed: int, judge: dict[str, Any] | None) -> None:
    case = small_case(2, seed, rate_per_s=6.0, judge=judge, q_min=case_floor(seed))
    plan = case.planner().plan()
    models = tuple(stage.index for stage in plan.stages)
    loads, who = loads_of(case, models, plan.routing.thresholds)
    made = loads.deploy()
    assert slowest_s(made) == pytest.approx(plan.predicted.max_stage_p95_s, rel=EQUAL)
    assert {model: choice.gpus for model, choice in made.items() if model < case.models} == {
        stage.index: stage.gpus for stage in plan.stages
    }
    assert np.average(who.quality, weights=case.requests.weight) == pytest.approx(plan.predicted.quality)
    if judge is not None and len(models) > 1:
        assert made[case.models].gpus == plan.judge.gpus
        assert loads.calls_per_s == pytest.approx(plan.judge.rate_per_s)


def case_floor(seed: int) -> float:
    """Between what the models reach alone, so that a cascade is worth planning."""
    small, large = small_case(2, seed).mean_quality
    return float((small + 2 * large) / 3)


def test_several_pools_and_too_few_gpus_get_a_sentence() -> None:
    pools = small_case(1, cluster=[{**H100, "name": "a"}, {**L40S, "name": "b"}])
    with pytest.raises(UnsupportedError, match=r"the pools a, b, .*one pool only; compare on one pool"):
        StationLoads(pools, np.ones((1, 32)))
    case = small_case(4)
    loads = StationLoads(case, visits_of(case, 0))
    with pytest.raises(PoolTooSmallError, match=r"and there are 1; add \d") as error:
        loads.deploy(1)
    assert error.value.gpus_needed == sum(stage.least_gpus for stage in case.fleet)
    with pytest.raises(PoolTooSmallError, match="llama-3.1-70b-fp8 cannot run on fewer than 2 GPUs"):
        loads.best(3, 1)


def test_engines_can_be_left_out() -> None:
    case = small_case(2)
    narrow = case.keeping(lambda model, engine: engine.shape == _core.Shape(tp=2) or model == 1)
    assert [replica.shape for replica in narrow.fleet[0].replicas] == [_core.Shape(tp=2)]
    assert narrow.fleet[1] == case.fleet[1]
    loads = StationLoads(narrow, np.ones((2, 32)))
    assert loads.deploy()[0].gpus % 2 == 0
