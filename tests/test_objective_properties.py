"""What must hold between plans of one problem, whatever the objective: constraints, duals, fronts, losses, bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import H100, L40S, fewer_paths, levels_of, small_problem, taken_apart
from reference.planning_instance import of_problem
from reference.planning_served import Served

from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError, UnsupportedError
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

LATENCIES = ("max_stage_p95", "end_to_end_p95", "ttft_p95")
OBJECTIVES = (*LATENCIES, "min_cost", "min_gpus")
ROUNDING = 1e-9
POOLED_GAP = 1e-3  # over several pools the search stops this close to its bound
RATE_GAP = 1e-3  # and the bisection on the rate at least this close


@pytest.fixture(autouse=True, scope="module")
def _fewer_paths() -> Iterator[None]:
    with fewer_paths():
        yield


def planned(problem: Problem, levels: Sequence[Sequence[float]] | None = None) -> Plan | None:
    """The plan, and that it says nothing that contradicts itself; None where there is none."""
    try:
        found = Planner(problem, threads=1).plan(levels=levels)
    except UnsupportedError:
        raise
    except NoPlanError:
        return None
    goal = problem.goal
    assert found.solver.bound is not None
    assert found.solver.gap is not None
    # Which placement survives the loss of any node is not always decided; the gap then says how much is left open.
    assert found.status == "optimal" or (goal.survive == "node" and found.solver.gap > 0)
    assert found.solver.gap >= 0
    assert found.solver.gap == pytest.approx(
        abs(value_of(found) - found.solver.bound) / abs(value_of(found)), abs=1e-12
    )
    better = value_of(found) <= found.solver.bound * (1 + ROUNDING)
    assert better if goal.objective == "max_rate" else found.solver.bound <= value_of(found) * (1 + ROUNDING)
    if goal.slo_s is not None:
        assert latency_of(found, goal.deadline_metric) <= goal.slo_s * (1 + 1e-6)
    if goal.budget_usd_per_hour is not None:
        assert found.predicted.cost_usd_per_hour is not None
        assert found.predicted.cost_usd_per_hour <= goal.budget_usd_per_hour * (1 + ROUNDING)
    assert found.predicted.quality >= goal.q_min - 1e-9
    assert found.gpus <= sum(pool.gpus for pool in problem.pools)
    assert all(stage.utilization <= goal.max_utilization * (1 + ROUNDING) for stage in found.stages)
    return found


def latency_of(plan: Plan, metric: str) -> float:
    latency_s = getattr(plan.predicted, f"{metric}_s")
    assert isinstance(latency_s, float)
    return latency_s


def value_of(plan: Plan) -> float:
    assert plan.objective_value is not None
    return plan.objective_value


def best(problem: Problem, levels: Sequence[Sequence[float]] | None = None) -> float:
    """The objective; infinite where there is no plan."""
    found = planned(problem, levels)
    return math.inf if found is None else value_of(found)


def small(given: dict[str, Any], **goal: Any) -> float:
    problem = small_problem(**{**given, **goal})
    return best(problem, levels_of(problem))


def small_plan(given: dict[str, Any], **goal: Any) -> Plan | None:
    problem = small_problem(**{**given, **goal})
    return planned(problem, levels_of(problem))


@st.composite
def arguments(draw: st.DrawFn, least_gpus: int = 2) -> dict[str, Any]:
    """Of `small_problem`: traffic, GPUs and a floor."""
    gpus, per_node = draw(st.integers(least_gpus, 20)), draw(st.sampled_from([2, 4]))
    return {
        "models": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 1000)),
        "rate_per_s": draw(st.sampled_from([2.0, 12.0, 40.0])),
        "cv": draw(st.sampled_from([1.0, 1.7])),
        "judge": {"latency_s": 0.3, "usd_per_call": draw(st.sampled_from([0.0, 2e-4]))},
        "cluster": [{**H100, "gpus": gpus, "gpus_per_node": per_node}],
        "q_min": draw(st.sampled_from([0.0, 45.0, 55.0])),
    }


def falls(values: Sequence[float], slack: float = ROUNDING) -> bool:
    return all(later <= earlier * (1 + slack) for earlier, later in pairwise(values))


EXAMPLE = Problem.example().replace(rate_per_s=30.0)  # half of what needs nearly all of its 32 GPUs
COARSE = [list(range(0, 101, 5))] * 2


def example(**changes: Any) -> float:
    return best(EXAMPLE.replace(**changes), COARSE)


# What is given up, and what it buys.


@pytest.mark.parametrize("metric", LATENCIES)
@pytest.mark.parametrize("objective", ["min_cost", "min_gpus"])
@settings(max_examples=15)
@given(given=arguments())
def test_spend_falls_as_the_deadline_loosens(metric: str, objective: str, given: dict[str, Any]) -> None:
    least_s = small(given, objective=metric)
    if math.isfinite(least_s):
        deadlines_s = [least_s * factor for factor in (0.999, 1 + 1e-9, 1.2, 2.0, 10.0)]
        spent = [small(given, objective=objective, slo_s=slo_s, slo_metric=metric) for slo_s in deadlines_s]
        assert math.isinf(spent[0])
        assert all(map(math.isfinite, spent[1:]))
        assert falls(spent)
        assert spent[-1] >= small(given, objective=objective)


@pytest.mark.parametrize("metric", LATENCIES)
def test_spend_of_the_example_falls_as_the_deadline_loosens(metric: str) -> None:
    least_s = example(objective=metric)
    spent = [
        example(objective="min_cost", slo_s=least_s * factor, slo_metric=metric)
        for factor in (0.999, 1.01, 1.2, 2, 100)
    ]
    assert math.isinf(spent[0])
    assert math.isfinite(spent[1])
    assert falls(spent)
    assert spent[-1] < spent[1]


@pytest.mark.parametrize("objective", LATENCIES)
@settings(max_examples=15)
@given(given=arguments(), more=st.integers(1, 8))
def test_latency_falls_with_gpus_budget_and_a_looser_floor(objective: str, given: dict[str, Any], more: int) -> None:
    (pool,) = given["cluster"]
    least_usd = small(given, objective="min_cost")
    if math.isinf(least_usd):
        assert math.isinf(small(given, objective=objective))
        return
    here_s = small(given, objective=objective)
    assert small(given, objective=objective, cluster=[{**pool, "gpus": pool["gpus"] + more}]) <= here_s * (1 + ROUNDING)
    assert small(given, objective=objective, q_min=max(given["q_min"] - 10, 0)) <= here_s * (1 + ROUNDING)
    budgets = [least_usd * factor for factor in (0.999, 1 + 1e-9, 1.3, 2, 100)]
    curve = [small(given, objective=objective, budget_usd_per_hour=usd) for usd in budgets]
    assert math.isinf(curve[0])
    assert all(map(math.isfinite, curve[1:]))
    assert falls(curve)
    assert curve[-1] == pytest.approx(here_s, rel=ROUNDING)


@pytest.mark.parametrize("objective", LATENCIES)
def test_latency_of_the_example_falls(objective: str) -> None:
    assert falls([example(objective=objective, gpus=gpus) for gpus in (8, 16, 24, 32, 40, 64)])
    assert falls([example(objective=objective, q_min=q_min) for q_min in (99.0, 76.0, 72.0, 60.0, 0.0)])
    assert falls([example(objective=objective, budget_usd_per_hour=usd) for usd in (30.0, 60.0, 80.0, 1000.0)])


@pytest.mark.parametrize("metric", LATENCIES)
@settings(max_examples=15)
@given(given=arguments())
def test_latency_and_cost_are_each_others_dual(metric: str, given: dict[str, Any]) -> None:
    fastest = small_plan(given, objective=metric)
    if fastest is None or fastest.predicted.cost_usd_per_hour is None:
        return
    usd, deadline = fastest.predicted.cost_usd_per_hour, value_of(fastest) * (1 + 1e-9)
    cheapest = small(given, objective="min_cost", slo_s=deadline, slo_metric=metric)
    assert cheapest <= usd * (1 + ROUNDING)
    again_s = small(given, objective=metric, budget_usd_per_hour=cheapest * (1 + 1e-9))
    assert again_s == pytest.approx(value_of(fastest), rel=1e-6)


@settings(max_examples=15)
@given(given=arguments())
def test_fewest_gpus_are_fewest(given: dict[str, Any]) -> None:
    needed = small(given, objective="min_gpus")
    (pool,) = given["cluster"]
    if math.isinf(needed):
        return
    for objective in LATENCIES:
        exactly = small(given, objective=objective, cluster=[{**pool, "gpus": int(needed)}])
        assert math.isfinite(exactly)
        if needed > 1:
            assert math.isinf(small(given, objective=objective, cluster=[{**pool, "gpus": int(needed) - 1}]))


@pytest.mark.parametrize("metric", [None, *LATENCIES])
@settings(max_examples=15)
@given(given=arguments())
def test_the_largest_rate_can_be_carried_and_no_larger(metric: str | None, given: dict[str, Any]) -> None:
    goal: dict[str, Any] = {}
    if metric is not None:
        least_s = small({**given, "rate_per_s": 0.5}, objective=metric)
        if math.isinf(least_s):
            return
        goal = {"slo_s": 1.5 * least_s, "slo_metric": metric}
    most = small_plan(given, objective="max_rate", **goal)
    if most is None:
        return
    rate_per_s = value_of(most)
    (pool,) = given["cluster"]
    assert most.predicted.max_rate_per_s >= rate_per_s * (1 - 1e-6)
    for factor, fits in ((1 - 1e-6, True), (1 + RATE_GAP, False)):
        least = small({**given, "rate_per_s": rate_per_s * factor}, objective="min_gpus", **goal)
        assert (least <= pool["gpus"]) == fits


def test_the_first_token_comes_before_the_last() -> None:
    for q_min in (0.0, 60.0, 72.0, 76.0):
        assert example(objective="ttft_p95", q_min=q_min) <= example(objective="end_to_end_p95", q_min=q_min)


# Freedom.


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15)
@given(given=arguments())
def test_skipping_models_never_hurts(objective: str, given: dict[str, Any]) -> None:
    free = small(given, objective=objective)
    assert free <= small(given, objective=objective, skip_models=False) * (1 + ROUNDING)


@pytest.mark.parametrize("objective", ["max_stage_p95", "min_cost", "min_gpus"])
@settings(max_examples=15)
@given(given=arguments())
def test_mixed_shapes_never_hurt(objective: str, given: dict[str, Any]) -> None:
    alike = small(given, objective=objective)
    assert small(given, objective=objective, mixed_shapes=True) <= alike * (1 + ROUNDING)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_freedom_never_hurts_the_example(objective: str) -> None:
    free = example(objective=objective)
    assert free <= example(objective=objective, skip_models=False) * (1 + ROUNDING)
    if objective not in ("end_to_end_p95", "ttft_p95"):
        assert example(objective=objective, mixed_shapes=True) <= free * (1 + ROUNDING)


# Pools.


def two_pools(gpus: int, **second: Any) -> list[dict[str, Any]]:
    half = {**H100, "gpus": gpus // 2, "gpus_per_node": 2}
    return [{**half, "name": "first"}, {**half, "name": "second", **second}]


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15)
@given(given=arguments())
def test_equal_pools_without_names_are_one(objective: str, given: dict[str, Any]) -> None:
    one = [{**H100, "gpus": 12, "gpus_per_node": 2}]
    parts = [{**H100, "gpus": 4, "gpus_per_node": 2}, {**H100, "gpus": 8, "gpus_per_node": 2}]
    assert small(given, objective=objective, cluster=one) == small(given, objective=objective, cluster=parts)


@pytest.mark.parametrize("objective", ["max_stage_p95", "min_cost", "min_gpus"])
@settings(max_examples=12)
@given(given=arguments())
def test_equal_pools_with_names_are_no_worse_than_one(objective: str, given: dict[str, Any]) -> None:
    """Over several pools a station may have any groups of engines, which one pool with two shapes a station has not."""
    one = small(given, objective=objective, cluster=[{**H100, "gpus": 8, "gpus_per_node": 2}], mixed_shapes=True)
    assert small(given, objective=objective, cluster=two_pools(8)) <= one * (1 + POOLED_GAP)


@pytest.mark.parametrize("objective", ["end_to_end_p95", "ttft_p95"])
@settings(max_examples=12)
@given(given=arguments())
def test_a_second_pool_never_hurts_but_splitting_one_may(objective: str, given: dict[str, Any]) -> None:
    """By whole paths a station lies in one pool."""
    half = small(given, objective=objective, cluster=[{**H100, "gpus": 4, "gpus_per_node": 2}])
    whole = small(given, objective=objective, cluster=[{**H100, "gpus": 8, "gpus_per_node": 2}])
    assert whole <= small(given, objective=objective, cluster=two_pools(8)) * (1 + ROUNDING)
    assert small(given, objective=objective, cluster=two_pools(8)) <= half * (1 + ROUNDING)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=12)
@given(given=arguments())
def test_another_type_of_gpu_never_hurts(objective: str, given: dict[str, Any]) -> None:
    alone = {**H100, "gpus": 4, "gpus_per_node": 2}
    both = [alone, {**L40S, "gpus": 4, "gpus_per_node": 2}]
    slack = POOLED_GAP if objective in ("max_stage_p95", "min_cost", "min_gpus") else ROUNDING
    assert small(given, objective=objective, cluster=both) <= small(given, objective=objective, cluster=[alone]) * (
        1 + slack
    )


# Fronts.


@pytest.mark.parametrize("metric", LATENCIES)
def test_every_point_of_the_examples_front_is_a_plan(metric: str) -> None:
    problem = EXAMPLE.replace(objective=metric)
    front = Planner(problem, threads=1).front(("latency", "quality")).points
    assert len(front) > 5
    for faster, better in pairwise(front):
        assert faster.latency_s < better.latency_s
        assert faster.quality < better.quality
    for point in front[:: len(front) // 5]:
        found = planned(problem.replace(q_min=point.quality))
        assert found is not None
        assert value_of(found) == pytest.approx(point.latency_s, rel=1e-6)
        assert found.predicted.quality == pytest.approx(point.quality)
    slowest, floor = front[-1], problem.goal.q_min
    assert front[0].quality >= floor - 1e-9
    assert best(problem.replace(q_min=min(slowest.quality + 1e-3, 100.0))) == math.inf


# Losses.


@pytest.mark.parametrize("metric", LATENCIES)
@settings(max_examples=15)
@given(given=arguments(least_gpus=6), factor=st.sampled_from([1.3, 2.0, 5.0]))
def test_a_plan_that_survives_is_never_cheaper_and_meets_the_deadline_after_every_loss(
    metric: str, given: dict[str, Any], factor: float
) -> None:
    least_s = small(given, objective=metric)
    if math.isinf(least_s):
        return
    goal: dict[str, Any] = {"objective": "min_cost", "slo_s": factor * least_s, "slo_metric": metric}
    costs = [small(given, **goal, survive=survive) for survive in ("none", "replica", "node")]
    assert costs == sorted(costs)
    safe = small_plan(given, **goal, survive="replica")
    if safe is None:
        return
    problem = small_problem(**{**given, **goal, "survive": "replica"})
    instance = of_problem(problem, levels_of(problem))
    route, deployment = taken_apart(safe, problem, instance)
    assert Served(instance, route).allowed(deployment, 1e-6)
    assert all(stage.replicas[0].count > 1 for stage in safe.stages)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=12)
@given(given=arguments())
def test_surviving_a_loss_is_never_better(objective: str, given: dict[str, Any]) -> None:
    values = [small(given, objective=objective, survive=survive) for survive in ("none", "replica", "node")]
    assert falls(values[::-1])


# Pins and judges.


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15)
@given(given=arguments(least_gpus=6))
def test_pins_are_respected_and_never_help(objective: str, given: dict[str, Any]) -> None:
    pins = {0: {"tp": 2, "pp": 1, "min_replicas": 2, "max_replicas": 2}}
    pinned = small_plan(given, objective=objective, entries=pins)
    if pinned is None:
        return
    (stage,) = (stage for stage in pinned.stages if stage.index == 0)
    assert [(group.count, group.tp, group.pp) for group in stage.replicas] == [(2, 2, 1)]
    assert small(given, objective=objective) <= value_of(pinned) * (1 + ROUNDING)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15)
@given(given=arguments())
def test_a_hosted_judge_is_never_better_than_one_that_costs_nothing(objective: str, given: dict[str, Any]) -> None:
    hosted = {"model": "qwen2.5-7b", "output_tokens": 4, "instruction_tokens": 50}
    free = small(given, objective=objective, judge={"latency_s": 0.0, "usd_per_call": 0.0})
    found = small_plan(given, objective=objective, judge=hosted)
    assert free <= (math.inf if found is None else value_of(found)) * (1 + ROUNDING)
    if found is not None:
        judged = sum(stage.rate_per_s for stage in found.stages[:-1])
        assert (found.judge.gpus > 0) == (judged > 0)
        assert found.gpus == sum(stage.gpus for stage in found.stages) + found.judge.gpus
        if judged:
            assert found.judge.rate_per_s == pytest.approx(judged)
            assert found.predicted.cost_usd_per_hour == pytest.approx(3.0 * found.gpus)


# Time.


@pytest.mark.parametrize("time_limit_s", [1e-6, 1e-3, 1e-2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_search_that_is_stopped_says_so(objective: str, time_limit_s: float) -> None:
    """However little time there is: the best so far with an honest bound, or an error that names the limit."""
    problem = EXAMPLE.replace(objective=objective, time_limit_s=time_limit_s)
    proved = example(objective=objective)
    found = plan_or_reason(problem)
    if isinstance(found, str):
        assert "time" in found
        return
    assert value_of(found) >= proved * (1 - ROUNDING)
    assert found.solver.bound is None or found.solver.bound <= proved * (1 + ROUNDING)
    assert found.status == ("optimal" if found.solver.complete else "feasible")


def plan_or_reason(problem: Problem) -> Plan | str:
    try:
        return Planner(problem, threads=1).plan(levels=COARSE)
    except NoPlanError as error:
        return str(error)
