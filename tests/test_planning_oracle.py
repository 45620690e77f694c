"""The planner against `planning_oracle.py`, which tries everything: every objective under every constraint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import H100, L40S, fewer_paths, levels_of, small_problem, taken_apart
from planning_cases import oracle_of as oracle
from planning_cases import value_of as value
from reference.planning_oracle import Found, best, feasible, front, objective_of
from reference.planning_served import LATENCIES, Served

from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError, UnsupportedError
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

OBJECTIVES = (*LATENCIES, "min_cost", "min_gpus")
ROUNDING = 1e-6  # relative; single p95s evaluated by two routes differ by their rounding
MIXED = 1e-5  # relative: where two groups are equally fast is found by interpolation
POOLED = 1.1e-3  # relative: over several pools the search stops within 1e-3 of its bound


@pytest.fixture(autouse=True, scope="module")
def _fewer_paths() -> Iterator[None]:
    with fewer_paths():
        yield


def by_path(problem: Problem) -> bool:
    goal = problem.goal
    metrics = [goal.objective] + ([goal.deadline_metric] if goal.slo_s is not None else [])
    return "end_to_end_p95" in metrics or "ttft_p95" in metrics


def family_of(problem: Problem) -> str:
    if by_path(problem):
        return "homogeneous"
    if len(problem.pools) > 1:
        return "pooled"
    return "mixed" if problem.goal.mixed_shapes and problem.goal.survive == "none" else "homogeneous"


def planned(problem: Problem) -> Plan | None:
    try:
        return Planner(problem, threads=1).plan(levels=levels_of(problem))
    except UnsupportedError:
        raise
    except NoPlanError:
        return None


def agree(problem: Problem, tolerance: float = ROUNDING) -> Found | None:
    """The planner's plan holds what the oracle says it must, and no plan is better."""
    family = family_of(problem)
    instance = oracle(problem, family)
    expected, plan = best(instance), planned(problem)
    if problem.goal.survive == "node":  # a plan may exist that is not found, and the message says no more than that
        assert plan is None or expected is not None
    else:
        assert (plan is None) == (expected is None)
    if plan is None or expected is None:
        return None
    assert plan.solver.family == family
    assert plan.solver.bound is not None
    assert plan.solver.bound <= expected.value * (1 + tolerance)
    assert plan.objective_value is not None
    if plan.status == "optimal":
        assert plan.objective_value == pytest.approx(expected.value, rel=tolerance)
    else:  # which placement survives the loss of any node is not always decided
        assert problem.goal.survive == "node"
        assert plan.objective_value >= expected.value * (1 - tolerance)
    route, deployment = taken_apart(plan, problem, instance)
    served = Served(instance, route)
    assert route.quality >= instance.goal.q_min - 1e-9
    assert route.quality == pytest.approx(plan.predicted.quality)
    assert served.allowed(deployment, tolerance)
    assert objective_of(served, deployment) == pytest.approx(plan.objective_value, rel=tolerance)
    if family == "homogeneous":
        seen = served.metrics(deployment)
        assert plan.predicted.max_stage_p95_s == pytest.approx(seen.max_stage_p95, rel=tolerance)
        assert plan.predicted.end_to_end_p95_s == pytest.approx(seen.end_to_end_p95, rel=tolerance)
        assert plan.predicted.ttft_p95_s == pytest.approx(seen.ttft_p95, rel=tolerance)
        assert plan.predicted.cost_usd_per_hour == pytest.approx(seen.min_cost, rel=tolerance)
        assert plan.gpus == seen.min_gpus
    return expected


def pool(gpus: int, gpus_per_node: int, **changes: Any) -> dict[str, Any]:
    return {**H100, "gpus": gpus, "gpus_per_node": gpus_per_node, **changes}


@st.composite
def arguments(draw: st.DrawFn, most_models: int = 3) -> dict[str, Any]:
    """Of `small_problem`: traffic, GPUs and a floor."""
    models = draw(st.integers(1, most_models))
    return {
        "models": models,
        "seed": draw(st.integers(0, 1000)),
        "rate_per_s": draw(st.sampled_from([1.0, 8.0, 20.0, 45.0])),
        "cv": draw(st.sampled_from([1.0, 1.7])),
        "weighted": draw(st.booleans()),
        "judge": {"latency_s": draw(st.sampled_from([0.0, 0.5])), "usd_per_call": draw(st.sampled_from([0.0, 3e-4]))},
        "cluster": [pool(draw(st.integers(2, 16 if models < 3 else 10)), draw(st.sampled_from([2, 4])))],
        "q_min": draw(st.sampled_from([0.0, 45.0, 50.0, 55.0, 60.0])),
    }


HOSTED = {"model": "qwen2.5-7b", "output_tokens": 8, "instruction_tokens": 100}
FACTORS = (0.97, 1.02, 1.3, 3.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=14)
@given(given=arguments())
def test_every_objective(objective: str, given: dict[str, Any]) -> None:
    agree(small_problem(**given, objective=objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=5)
@given(given=arguments())
def test_every_objective_with_all_models(objective: str, given: dict[str, Any]) -> None:
    agree(small_problem(**given, objective=objective, skip_models=False))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_four_models(objective: str) -> None:
    for seed in range(2):
        agree(small_problem(4, seed, rate_per_s=6.0, cluster=[pool(8, 2)], q_min=50.0, objective=objective))


@pytest.mark.parametrize("metric", LATENCIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=4)
@given(given=arguments(), factor=st.sampled_from(FACTORS))
def test_deadlines(objective: str, metric: str, given: dict[str, Any], factor: float) -> None:
    least_s = value(small_problem(**given), objective=metric)
    if math.isfinite(least_s):
        agree(small_problem(**given, objective=objective, slo_s=factor * least_s, slo_metric=metric))


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=8)
@given(given=arguments(), factor=st.sampled_from(FACTORS))
def test_budgets(objective: str, given: dict[str, Any], factor: float) -> None:
    least_usd = value(small_problem(**given), objective="min_cost")
    if math.isfinite(least_usd):
        agree(small_problem(**given, objective=objective, budget_usd_per_hour=factor * least_usd))


PINS: list[dict[int, dict[str, Any]]] = [
    {0: {"min_replicas": 2}},
    {0: {"max_replicas": 1}},
    {0: {"tp": 2, "pp": 1}, 1: {"tp": 1, "pp": 1, "min_replicas": 2, "max_replicas": 2}},
    {1: {"max_replicas": 2, "pp": 1}},
    {0: {"min_replicas": 1}, 1: {"min_replicas": 1}},
]


@pytest.mark.parametrize("entries", PINS)
@settings(max_examples=8)
@given(given=arguments(), objective=st.sampled_from(OBJECTIVES), skip_models=st.booleans())
def test_limits_on_replicas_and_shapes(
    entries: dict[int, dict[str, Any]], given: dict[str, Any], objective: str, skip_models: bool
) -> None:
    given = {**given, "models": max(given["models"], 2), "entries": entries}
    agree(small_problem(**given, objective=objective, skip_models=skip_models))


@settings(max_examples=5)
@given(given=arguments(), objective=st.sampled_from(OBJECTIVES))
def test_reserved_gpus_do_not_exist(given: dict[str, Any], objective: str) -> None:
    (cluster,) = given.pop("cluster")
    whole = small_problem(**given, objective=objective, cluster=[cluster])
    reserved = small_problem(
        **given, objective=objective, cluster=[{**cluster, "gpus": cluster["gpus"] + 3, "reserved": 3}]
    )
    expected = agree(reserved)
    assert (expected.value if expected else math.inf) == value(whole)


@pytest.mark.parametrize("survive", ["replica", "node"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=9)
@given(given=arguments(most_models=2), factor=st.sampled_from([1.1, 1.5, 4.0, math.inf]))
def test_survivors_meet_the_deadline(objective: str, survive: str, given: dict[str, Any], factor: float) -> None:
    given["models"] = 2  # what one of them loses must matter as much as what the other does
    given["cluster"][0]["gpus"] = max(given["cluster"][0]["gpus"], 6)
    metric = objective if objective in LATENCIES else "end_to_end_p95"
    least_s = value(small_problem(**given), objective=metric)
    if not math.isfinite(least_s):
        return
    deadline: dict[str, Any] = {} if math.isinf(factor) else {"slo_s": factor * least_s}
    agree(small_problem(**given, objective=objective, survive=survive, **deadline))


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=7)
@given(given=arguments())
def test_hosted_judges(objective: str, given: dict[str, Any]) -> None:
    agree(small_problem(**{**given, "judge": HOSTED, "cv": 1.0}, objective=objective))


@settings(max_examples=10)
@given(given=arguments(most_models=2), factor=st.sampled_from([1.2, 2.0, math.inf]), metric=st.sampled_from(LATENCIES))
def test_the_largest_rate(given: dict[str, Any], factor: float, metric: str) -> None:
    least_s = value(small_problem(**{**given, "rate_per_s": 0.1}), objective=metric)
    if not math.isfinite(least_s):
        return
    deadline: dict[str, Any] = {} if math.isinf(factor) else {"slo_s": factor * least_s, "slo_metric": metric}
    problem = small_problem(**given, objective="max_rate", **deadline)
    expected, plan = best(oracle(problem)), planned(problem)
    if problem.goal.survive == "node":  # a plan may exist that is not found, and the message says no more than that
        assert plan is None or expected is not None
    else:
        assert (plan is None) == (expected is None)
    if plan is not None and expected is not None:
        assert plan.objective_value is not None
        assert plan.objective_value == pytest.approx(expected.value, rel=2e-3)
        assert feasible(oracle(problem).at_rate(plan.objective_value * (1 - ROUNDING)))


@pytest.mark.parametrize("objective", ["max_stage_p95", "min_cost", "min_gpus"])
@settings(max_examples=6)
@given(given=arguments(most_models=2), factor=st.sampled_from([None, 1.02, 1.3, 3.0]))
def test_mixed_shapes(objective: str, given: dict[str, Any], factor: float | None) -> None:
    given["cluster"] = [pool(min(given["cluster"][0]["gpus"], 9), 4)]
    goal: dict[str, Any] = {"objective": objective, "mixed_shapes": True}
    if factor is not None:
        least_s = value(small_problem(**given), "mixed", objective="max_stage_p95")
        if math.isinf(least_s):
            return
        goal |= {"slo_s": factor * least_s, "slo_metric": "max_stage_p95"}
    agree(small_problem(**given, **goal), MIXED)


# Half of the shapes, so that a station has some 80 ways to be put together.
ENTRIES = {model: {"pp": 1} for model in range(3)}
TWO_POOLS = [pool(4, 2), {**L40S, "gpus": 4, "gpus_per_node": 2}]


def two_types(given: dict[str, Any], **goal: Any) -> Problem:
    entries = {model: ENTRIES[model] for model in range(given["models"])}
    return small_problem(**{**given, "cluster": TWO_POOLS, "entries": entries}, **goal)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=4)
@given(given=arguments(most_models=2))
def test_two_types_of_gpus(objective: str, given: dict[str, Any]) -> None:
    agree(two_types(given, objective=objective), POOLED)


@pytest.mark.parametrize("metric", LATENCIES)
@pytest.mark.parametrize("objective", ["max_stage_p95", "end_to_end_p95", "min_cost"])
@settings(max_examples=3)
@given(given=arguments(most_models=2), factor=st.sampled_from(FACTORS))
def test_two_types_of_gpus_under_a_deadline(objective: str, metric: str, given: dict[str, Any], factor: float) -> None:
    fastest = two_types(given, objective=metric)
    least_s = value(fastest, family_of(fastest))
    if math.isfinite(least_s):
        agree(two_types(given, objective=objective, slo_s=factor * least_s, slo_metric=metric), POOLED)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=3)
@given(given=arguments(most_models=2), factor=st.sampled_from(FACTORS))
def test_two_types_of_gpus_on_a_budget(objective: str, given: dict[str, Any], factor: float) -> None:
    least_usd = value(two_types(given), "pooled", objective="min_cost")
    if math.isfinite(least_usd):
        agree(two_types(given, objective=objective, budget_usd_per_hour=factor * least_usd), POOLED)


@st.composite
def everything(draw: st.DrawFn) -> dict[str, Any]:
    """Of `small_problem`: any constraints at once, deadline and budget as multiples of what is possible without."""
    given = draw(arguments(most_models=2))
    two = draw(st.booleans())
    given["cluster"] = TWO_POOLS if two else [pool(draw(st.integers(3, 9)), draw(st.sampled_from([2, 4])))]
    given["entries"] = {model: ENTRIES[model] | draw(st.sampled_from(LIMITS)) for model in range(given["models"])}
    given |= {"survive": draw(st.sampled_from(["none", "none", "replica"])), "skip_models": draw(st.booleans())}
    if given["skip_models"] and draw(st.booleans()):
        given |= {"judge": HOSTED, "cv": 1.0}
    metric, factor = draw(st.sampled_from(LATENCIES)), draw(st.sampled_from([None, 1.02, 1.3, 3.0]))
    if factor is not None:
        least = small_problem(**given, objective=metric)
        least_s = value(least, family_of(least))
        given |= {"slo_s": min(factor * least_s, 1e6), "slo_metric": metric}
    factor = draw(st.sampled_from([None, None, 1.1, 2.0]))
    if factor is not None:
        least = small_problem(**given, objective="min_cost")
        given["budget_usd_per_hour"] = min(factor * value(least, family_of(least)), 1e6)
    return given


LIMITS: list[dict[str, Any]] = [{}, {}, {"min_replicas": 1}, {"max_replicas": 2}]


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=10)
@given(given=everything(), mixed_shapes=st.booleans())
def test_everything_at_once(objective: str, given: dict[str, Any], mixed_shapes: bool) -> None:
    problem = small_problem(**given, objective=objective)
    if objective == "min_gpus" and by_path(problem) and len(problem.pools) > 1:
        given.pop("budget_usd_per_hour", None)  # an UnsupportedError: GPUs are counted or paid for
        problem = small_problem(**given, objective=objective)
    if mixed_shapes and not by_path(problem):
        problem = small_problem(**given, objective=objective, mixed_shapes=True)
    agree(problem, {"homogeneous": ROUNDING, "mixed": MIXED, "pooled": POOLED}[family_of(problem)])


def reaches(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """Whether a point is no worse than another on any axis, but for rounding."""
    return all(a <= b + ROUNDING * abs(b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("objective", LATENCIES)
@pytest.mark.parametrize(
    "axes", [("latency", "quality"), ("latency", "cost"), ("quality", "cost"), ("latency", "quality", "cost")]
)
@settings(max_examples=8)
@given(given=arguments(most_models=3))
def test_fronts(axes: tuple[str, ...], objective: str, given: dict[str, Any]) -> None:
    given["cluster"] = [pool(min(given["cluster"][0]["gpus"], 6), 2)]
    problem = small_problem(**given, objective=objective)
    expected = front(oracle(problem), objective, axes)
    try:
        found = Planner(problem, threads=1).front(axes, levels=levels_of(problem))
    except NoPlanError:
        assert not expected
        return
    points = [
        tuple({"latency": p.latency_s, "quality": -p.quality, "cost": p.usd_per_hour or 0.0}[axis] for axis in axes)
        for p in found.points
    ]
    assert all(any(reaches(point, wanted) for point in points) for wanted in expected)
    assert all(any(reaches(wanted, point) for wanted in expected) for point in points)
    assert not any(reaches(a, b) for a in points for b in points if a is not b)
    assert found.complete
