"""Plans drawn from loads and choices: field by field those of our planner where they say the same."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from baseline_cases import loads_of, small_case
from test_baselines_loads import case_floor

from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.blueprint import Gear, Plan, Router, Routing, Signal, Switching
from cascadia_fast.planning.plan_parts import cascade_routing

ROUTED = Routing("router", (), (), Signal("win_probability", 0.8, 0, 5.0, 10.0, 0.3), Router(cuts=(0.5,), paths=(1, 2)))
GEARED = Routing(
    "gears", (), (), gears=(Gear(5.0, (0, 1), (50.0,)), Gear(None, (0,), ())), switching=Switching(10.0, 8.0)
)


def drawn(case: Case, loads: StationLoads, routing: Routing, quality: Any = None, **given: Any) -> Plan:
    served = case.requests.quality[-1] if quality is None else quality
    return draw_plan(
        case,
        "test",
        loads,
        loads.deploy(),
        routing,
        quality=served,
        note="a test",
        started_s=time.perf_counter(),
        **given,
    )


@pytest.mark.parametrize("judge", [None, {"model": "qwen2.5-7b"}, {"latency_s": 3.0, "usd_per_call": 0.01}])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_our_own_plan_drawn_again_is_our_own_plan(seed: int, judge: dict[str, Any] | None) -> None:
    case = small_case(2, seed, rate_per_s=6.0, judge=judge, q_min=case_floor(seed), weighted=seed > 1)
    ours = case.planner().plan()
    models = tuple(stage.index for stage in ours.stages)
    loads, who = loads_of(case, models, ours.routing.thresholds)
    routing = cascade_routing(case.requests.of_models(models), ours.routing.thresholds, len(models))
    plan = drawn(case, loads, routing, who.quality)
    assert plan.routing == ours.routing
    for field in ("skipped_models", "pools", "workload", "provenance", "q_min"):
        assert getattr(plan, field) == getattr(ours, field), field
    assert set(plan.calibration.stages) == set(ours.calibration.stages)
    for mine, theirs in zip(plan.stages, ours.stages, strict=True):
        if not plan.judge.replicas:  # ours places a judge before the last model
            assert mine.replicas == theirs.replicas
        for field in ("gpus", "reach", "rate_per_s", "p95_s", "utilization", "mean_batch"):
            assert getattr(mine, field) == pytest.approx(getattr(theirs, field), rel=1e-9), field
    assert (plan.judge.kind, plan.judge.gpus) == (ours.judge.kind, ours.judge.gpus)
    for field in (
        "max_stage_p95_s",
        "quality",
        "quality_ci95",
        "max_rate_per_s",
        "cost_usd_per_hour",
        "usd_per_request",
    ):
        assert getattr(plan.predicted, field) == pytest.approx(getattr(ours.predicted, field), rel=1e-9), field
    for field in ("end_to_end_p50_s", "end_to_end_p95_s", "ttft_p95_s"):  # other draws of the same waits
        assert getattr(plan.predicted, field) == pytest.approx(getattr(ours.predicted, field), rel=0.05), field
    assert (plan.status, plan.system, plan.solver.method, plan.batching) == ("feasible", "test", "baseline", "chunked")


@pytest.mark.parametrize("routing", [ROUTED, GEARED])
def test_what_is_written_is_read(routing: Routing) -> None:
    case = small_case(2, rate_per_s=5.0)
    half = (np.arange(case.requests.size) % 2 == np.array([[0], [1]])).astype(float)
    plan = drawn(case, StationLoads(case, half), routing, batching="prompts_first", max_batched_tokens=512)
    assert Plan.from_json(plan.to_json()) == plan
    assert {group.max_batched_tokens for group in plan.groups} == {512}
    assert plan.summary().startswith(f"Plan {plan.plan_id} of test (feasible)")


def test_a_router_asks_no_judge_and_waits_for_none() -> None:
    case = small_case(2, rate_per_s=5.0, judge={"latency_s": 50.0, "usd_per_call": 1.0})
    half = (np.arange(case.requests.size) % 2 == np.array([[0], [1]])).astype(float)
    plan = drawn(case, StationLoads(case, half), ROUTED)
    assert (plan.judge.kind, plan.judge.latency_s, plan.judge.usd_per_call) == ("external", 0.0, 0.0)
    assert plan.predicted.end_to_end_p95_s < 50
    assert plan.predicted.cost_usd_per_hour == pytest.approx(3.0 * plan.gpus)
    loads, who = loads_of(case, (0, 1), (60.0,))
    asked = drawn(case, loads, cascade_routing(case.requests, (60.0,), 2), who.quality)
    calls_per_s = 5.0  # everyone's first answer is judged
    assert asked.predicted.cost_usd_per_hour == pytest.approx(3.0 * asked.gpus + 3600 * calls_per_s)
    assert asked.predicted.ttft_p95_s > 50  # nobody reads before the judge has spoken


def test_visits_in_part_have_no_paths_and_overloads_no_latency() -> None:
    case = small_case(2, rate_per_s=5.0)
    parts = np.full(case.requests.quality.shape, 0.5)
    plan = drawn(case, StationLoads(case, parts), GEARED)
    assert plan.predicted.end_to_end_p95_s is None
    assert plan.predicted.max_stage_p95_s is not None
    busy = case.replace(rate_per_s=1e4)
    overloaded = drawn(busy, StationLoads(busy, np.ones(parts.shape)), ROUTED)
    assert overloaded.status == "unstable"
    assert overloaded.latency_s is None
    assert all(stage.p95_s is None and stage.utilization > 1 for stage in overloaded.stages)
    (warned,) = [text for text in overloaded.warnings if text.startswith("The busiest")]
    busiest = max(stage.utilization for stage in overloaded.stages)
    assert f"{busiest:.2f} times what they carry" in warned
    assert overloaded.predicted.max_rate_per_s == pytest.approx(1e4 * 0.9 / busiest)


def test_a_missed_floor_is_said() -> None:
    case = small_case(2, rate_per_s=5.0, q_min=99.0)
    plan = drawn(case, StationLoads(case, np.ones(case.requests.quality.shape)), ROUTED, np.full(32, 40.0))
    assert plan.predicted.quality == pytest.approx(40.0)
    assert "The mean quality 40.00 is below the floor of 99: no choice of this system meets it" in plan.warnings
    assert plan.q_min == 99.0


def test_the_same_case_gives_the_same_plan() -> None:
    case = small_case(2, rate_per_s=5.0)
    loads, who = loads_of(case, (0, 1), (60.0,))
    routing = cascade_routing(case.requests, (60.0,), 2)
    assert drawn(case, loads, routing, who.quality).plan_id == drawn(case, loads, routing, who.quality).plan_id
