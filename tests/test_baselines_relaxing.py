"""What is served where a goal cannot be met."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from baseline_cases import loads_of, small_case
from planning_cases import small_problem

from cascadia_fast.baselines import relaxing
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.ours import plan_ours
from cascadia_fast.baselines.relaxing import plan_anyway
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import (
    NoPlanError,
    PoolTooSmallError,
    QualityUnreachableError,
    RateTooHighError,
    UnsupportedError,
)
from cascadia_fast.planner import Planner


def best_floor(case: Case) -> float:
    """The best quality of any routing, as the planner names it."""
    with pytest.raises(QualityUnreachableError) as error:
        case.replace(q_min=100.0).planner().plan()
    return error.value.best_quality


def test_what_can_be_planned_is_the_planners_own() -> None:
    problem = small_problem(3, 1, rate_per_s=5.0, q_min=50)
    assert plan_ours(Case.of(problem)).plan_id == Planner(problem, 1).plan().plan_id


def test_a_planner_that_is_kept_lends_its_engines() -> None:
    problem = small_problem(2, rate_per_s=5.0)
    planner = Planner(problem, 1)
    case = Case.of(problem.replace(q_min=60, gpus=4), planner)
    assert case.fleet is planner.fleet
    assert case.planner().fleet is planner.fleet
    assert (case.gpus, case.q_min, case.rate_per_s) == (4, 60, 5.0)
    assert plan_ours(case).plan_id == plan_ours(Case.of(case.problem)).plan_id


def test_a_floor_out_of_reach_becomes_the_best_quality() -> None:
    case = small_case(3, 1, rate_per_s=2.0, q_min=100.0)
    plan = plan_ours(case)
    assert plan.predicted.quality == pytest.approx(best_floor(case), abs=1e-9)
    assert plan.q_min == 100.0
    assert plan.status == "feasible"
    assert f"The mean quality {plan.predicted.quality:.2f} is below the floor of 100" in plan.warnings[-1]


def test_the_cap_gives_way_first() -> None:
    case = small_case(2, rate_per_s=5.0)
    with pytest.raises(RateTooHighError) as error:
        case.replace(rate_per_s=1e5).planner().plan()
    largest_per_s = error.value.max_rate_per_s
    plan = plan_ours(case.replace(rate_per_s=largest_per_s * 1.05))
    assert plan.status == "optimal"
    assert plan.max_utilization == relaxing.MOST_UTILIZATION
    assert max(stage.utilization for stage in plan.stages) > 0.9
    assert plan.warnings[-1].startswith("The goal as it is cannot be met: no allocation of 8 GPUs carries")


@pytest.mark.parametrize("factor", [1.2, 30.0])
def test_an_overload_is_served_by_what_carries_most(factor: float) -> None:
    case = small_case(2, rate_per_s=5.0, q_min=55)
    with pytest.raises(RateTooHighError) as error:
        case.replace(rate_per_s=1e5, max_utilization=0.99).planner().plan()
    largest_per_s = error.value.max_rate_per_s
    plan = plan_ours(case.replace(rate_per_s=largest_per_s * factor))
    assert plan.status == "unstable"
    assert plan.latency_s is None
    assert plan.predicted.quality >= 55 - 1e-9
    assert plan.workload.rate_per_s == pytest.approx(largest_per_s * factor)
    busiest = max(stage.utilization for stage in plan.stages)
    assert busiest == pytest.approx(0.99 * factor, rel=1e-3)
    models = tuple(stage.index for stage in plan.stages)
    _, who = loads_of(case, models, plan.routing.thresholds)
    assert np.average(who.quality, weights=case.requests.weight) == pytest.approx(plan.predicted.quality)
    assert Plan.from_json(plan.to_json()) == plan


def test_an_overloaded_hosted_judge_keeps_its_engines() -> None:
    case = small_case(3, 6, rate_per_s=300.0, judge={"model": "qwen2.5-7b"})
    plan = plan_ours(case.replace(q_min=best_floor(case)))
    assert plan.status == "unstable"
    assert plan.judge.kind == "hosted"
    assert plan.judge.gpus >= 1
    assert (plan.judge.p95_s is None) == (plan.judge.utilization >= 1)


def test_a_deadline_out_of_reach_is_dropped_and_the_latency_least() -> None:
    case = small_case(2, rate_per_s=5.0, q_min=55, objective="min_gpus", slo_s=0.01, slo_metric="ttft_p95")
    plan = plan_ours(case)
    assert (plan.slo_s, plan.objective) == (None, "ttft_p95")
    freed = case.replace(slo_s=None, objective="ttft_p95", max_utilization=0.99)
    assert plan.predicted == freed.planner().plan().predicted
    assert "cannot be met" in plan.warnings[-1]


def test_what_fits_no_gpus_is_refused() -> None:
    case = small_case(4, rate_per_s=1.0)
    best = float(case.mean_quality.max())
    tiny = case.replace(q_min=best, gpus=1)
    with pytest.raises(PoolTooSmallError):
        plan_ours(tiny)


def test_a_method_that_fails_at_the_rate_is_asked_for_less() -> None:
    """A made-up planner that carries 40 % of the rate and does not say so."""
    case = small_case(2, rate_per_s=100.0, q_min=0)
    asked = []

    def attempt(eased: Case) -> Plan:
        asked.append(eased.rate_per_s)
        if eased.rate_per_s > 40.0:
            raise NoPlanError("not at this rate")
        return dataclasses.replace(eased.planner().plan(), system="made-up")

    plan = plan_anyway(case, "made-up", attempt)
    carried = [rate for rate in asked if rate <= 40.0]
    assert 40.0 * 0.98 < max(carried) <= 40.0
    assert plan.system == "made-up"
    assert plan.workload.rate_per_s == pytest.approx(100.0)
    assert f"the plan for {max(carried):.4g} requests/s" in plan.solver.certificate


def test_what_no_rate_changes_is_raised_at_once() -> None:
    asked = []

    def attempt(eased: Case) -> Plan:
        asked.append(eased.rate_per_s)
        raise UnsupportedError("not in this version")

    with pytest.raises(UnsupportedError):
        plan_anyway(small_case(1), "made-up", attempt)
    assert len(asked) == 1

    def never(eased: Case) -> Plan:
        asked.append(eased.rate_per_s)
        raise NoPlanError("at no rate")

    with pytest.raises(NoPlanError, match="at no rate"):
        plan_anyway(small_case(1), "made-up", never)
    assert len(asked) < 40
