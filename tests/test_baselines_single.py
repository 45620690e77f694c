"""One model alone: the best deployment of all, and the best chunk of those simulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from baseline_cases import choices, small_case, utilization
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_fast import _core
from cascadia_fast.baselines import trying
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.sarathi import BUDGETS_TOKENS, plan_sarathi
from cascadia_fast.baselines.single import alone, plan_single, smallest_model
from cascadia_fast.baselines.trying import promising
from cascadia_fast.engine_parts import EngineParts


@given(st.integers(0, 99), st.sampled_from([1.0, 6.0, 30.0]), st.booleans())
@settings(max_examples=8, deadline=None)
def test_no_promising_shape_serves_whole_prompts_faster(seed: int, rate_per_s: float, weighted: bool) -> None:
    case = small_case(3, seed, rate_per_s=rate_per_s, weighted=weighted, q_min=50)
    model = smallest_model(case)
    with pytest.MonkeyPatch.context() as patch:  # every shape gets the long run
        patch.setattr(trying, "FINALISTS", 99)
        patch.setattr(trying, "CONFIRMED", 2000)
        plan = plan_single(case)
        (stage,) = plan.stages
        (group,) = stage.replicas
        tokens = case.problem.max_batched_tokens
        every = {
            (shape.tp, shape.pp): simulated_p95_s(case, model, tokens, shape, choice.replicas, 2000, "prompts_first")
            for choice in promising(StationLoads(case, alone(case, model)), model)
            for shape in [case.fleet[model].replicas[choice.shape].shape]
        }
    assert stage.index == model
    assert stage.reach == pytest.approx(1)
    assert every[group.tp, group.pp] == min(every.values())
    assert group.count == case.gpus // (group.tp * group.pp)
    assert plan.batching == "prompts_first"
    assert plan.routing.thresholds == ()
    served = case.requests.quality[model]
    assert plan.predicted.quality == pytest.approx(np.average(served, weights=case.requests.weight))


def test_the_model_is_the_smallest_that_meets_the_floor_or_the_best() -> None:
    case = small_case(3, 4)
    means = [float(np.average(row, weights=case.requests.weight)) for row in case.requests.quality]
    assert means == sorted(means), "the larger the better, so that each floor has one answer"
    for model, mean in enumerate(means):
        assert smallest_model(case.replace(q_min=mean)) == model
    assert smallest_model(case.replace(q_min=99)) == 2
    plan = plan_single(case.replace(q_min=99))
    assert plan.predicted.quality < plan.q_min == 99
    assert plan.status == "feasible"


def test_what_nobody_carries_gets_the_most_capable() -> None:
    case = small_case(2, 1, rate_per_s=5000.0, q_min=0)
    plan = plan_single(case)
    loads = StationLoads(case, alone(case, 0))
    assert plan.status == "unstable"
    assert plan.stages[0].utilization == pytest.approx(
        min(utilization(loads, 0, choice) for choice in choices(loads, 0, 8)), rel=1e-6
    )


def simulated_p95_s(
    case: Case, model: int, tokens: int, shape: _core.Shape, replicas: int, count: int, batching: Any = "chunked"
) -> float:
    """The same run, put together from the problem itself."""
    parts = EngineParts.of(case.problem, case.problem.stages[model], case.problem.pools[0], max_batched_tokens=tokens)
    trial = trying.Trial(0, replicas, tokens, _core.StepCosts(parts.replica(shape)))
    return trying.Traffic.of(case, model).p95_s(trial, batching, count)


@pytest.mark.parametrize("rate_per_s", [4.0, 20.0])
def test_no_promising_pair_is_faster_where_it_was_simulated(rate_per_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # With as many finalists as pairs, every pair gets the long run.
    monkeypatch.setattr(trying, "FINALISTS", 99)
    monkeypatch.setattr(trying, "CONFIRMED", 3000)
    monkeypatch.setattr(trying, "SCREENED", 100)
    case = small_case(2, 2, rate_per_s=rate_per_s, q_min=0)
    plan = plan_sarathi(case)
    (group,) = plan.stages[0].replicas
    chosen_s = simulated_p95_s(case, 0, group.max_batched_tokens, _core.Shape(group.tp, group.pp), group.count, 3000)
    loads = StationLoads(case, alone(case, 0))
    every = [
        simulated_p95_s(case, 0, tokens, case.fleet[0].replicas[choice.shape].shape, choice.replicas, 3000)
        for choice in promising(loads, 0)
        for tokens in BUDGETS_TOKENS
    ]
    assert len(set(every)) > 1
    assert chosen_s == min(every)
    assert group.max_batched_tokens in BUDGETS_TOKENS
    assert plan.batching == "chunked"
    assert plan.solver.evaluated == len(every)


def test_promising_shapes_take_all_the_gpus_they_can() -> None:
    case = small_case(1, rate_per_s=9.0)
    loads = StationLoads(case, alone(case, 0))
    found = promising(loads, 0)
    assert loads.best(0, 8).latency_s == found[0].latency_s
    for choice in found:
        size = case.fleet[0].replicas[choice.shape].shape.gpus
        assert choice.replicas == 8 // size
    overloaded = StationLoads(case.replace(rate_per_s=5000.0), alone(case, 0))
    assert promising(overloaded, 0)[0].shape == overloaded.best(0, 8).shape


def test_its_plan_is_the_same_every_time() -> None:
    case = small_case(2, 2, rate_per_s=4.0)
    assert plan_sarathi(case).plan_id == plan_sarathi(case).plan_id
    assert plan_single(case).plan_id == plan_single(case).plan_id
