"""The problem of a plan, put back as it was planned."""

from __future__ import annotations

from typing import Any

import pytest

from cascadia_fast.cli.planned import as_planned
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem


@pytest.fixture(scope="module")
def example() -> Problem:
    return Problem.example()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gpus": 40, "rate_per_s": 50.0, "q_min": 74.0},
        {"rate_per_s": 40.0, "headroom": 1.2},
        {"skip_models": False, "q_min": 70.0},
        {"mixed_shapes": True},
        {"method": "alternating"},
        {"paper_strict": True, "max_utilization": 0.92},
        {"objective": "min_cost", "slo_s": 150.0, "slo_metric": "max_stage_p95", "budget_usd_per_hour": 100.0},
        {"objective": "end_to_end_p95", "q_min": 70.0, "survive": "replica", "slo_s": 100.0, "gpus": 48},
        {"objective": "max_rate", "q_min": 72.0},
        {"q_confidence": 0.8, "q_min": 73.0},
    ],
)
def test_the_same_plan_comes_of_it(changes: dict[str, Any], example: Problem) -> None:
    asked = example.replace(**changes)
    plan = Planner(asked).plan()
    # What the file holds of the workload stays; options change all else.
    file = example.replace(headroom=changes["headroom"]) if "headroom" in changes else example
    found = as_planned(file, plan)
    ours, theirs = found.goal.model_dump(), asked.goal.model_dump()
    assert {name: ours[name] for name in changes if name in ours} == {
        name: theirs[name] for name in changes if name in ours
    }
    assert found.gpus == asked.gpus
    assert found.goal.mixed_shapes == asked.goal.mixed_shapes
    again = Planner(found).plan()
    assert again.objective_value == pytest.approx(
        plan.objective_value, rel=1e-3 if "max_rate" in changes.values() else 1e-12
    )
    assert [stage.gpus for stage in again.stages] == [stage.gpus for stage in plan.stages]


def test_what_was_not_changed_stays(example: Problem) -> None:
    file = example.replace(slo_s=500.0, mixed_shapes=True)
    plan = Planner(file).plan()
    found = as_planned(file, plan)
    assert (found.goal.slo_s, found.goal.mixed_shapes, found.goal.skip_models) == (500.0, True, True)
    peaks = example.replace(rate_from="p95_1min")
    found = as_planned(peaks, Planner(peaks.replace(gpus=64)).plan())
    assert found.workload.arrivals.rate_per_s == peaks.workload.arrivals.rate_per_s
    assert found.gpus == 64
