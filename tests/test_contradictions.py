"""Fields that cannot hold together: each contradiction is one sentence that names both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cascadia_fast.errors import InputError, UnsupportedError
from cascadia_fast.problem import Problem
from cascadia_fast.schema import Goal, checked_goal

TWO_POOLS = [
    {"name": "fast", "gpu": "h100-sxm-80gb", "nodes": 2, "price_usd_per_hour": 3.0},
    {"name": "cheap", "gpu": "a100-sxm-80gb", "nodes": 2, "gpus_per_node": 4, "price_usd_per_hour": 1.0},
]


def problem(
    tmp_path: Path,
    model: dict[str, Any] | None = None,
    cluster: list[dict[str, Any]] | None = None,
    goal: dict[str, Any] | None = None,
    judge: dict[str, Any] | None = None,
) -> Problem:
    fields = {
        "cascade": [{"model": "llama-3.1-8b", **(model or {})}, {"model": "llama-3.1-70b"}],
        "cluster": cluster or [{"gpu": "h100-sxm-80gb", "nodes": 2}],
        "workload": {"requests": "requests.csv", "rate_per_s": 2},
        "goal": {"q_min": 60, **(goal or {})},
        "judge": judge or {},
    }
    return Problem.from_dict(fields, tmp_path)


LIMITS = [
    (
        {"min_replicas": 4, "max_replicas": 2},
        "cascade[0].min_replicas is 4 and cascade[0].max_replicas is 2; give a minimum of at most the maximum",
    ),
    ({"pools": ["fats"]}, "cascade[0].pools names 'fats', and cluster has no pool of that name; did you mean 'fast'?"),
    ({"pools": ["x"]}, "no pool of that name; known are fast, cheap"),
    ({"tp": 3}, "cascade[0].tp is 3 and cascade[0].model has 32 attention heads; give a tp that divides them"),
    ({"pp": 33}, "cascade[0].pp is 33 and cascade[0].model has 32 layers; give at most as many"),
    ({"tp": 16}, "cascade[0].tp is 16 and cluster has 8, 4 gpus_per_node; give a tp that divides a node, or set the"),
    ({"tp": 8, "pools": ["cheap"]}, "cascade[0].tp is 8 and cluster has 4 gpus_per_node; give a tp that divides"),
    ({"tp": 2, "pp": 3, "pools": ["fast"]}, "cascade[0].tp 2 x cascade[0].pp 3 does not pack on nodes of 8 GPUs"),
]


@pytest.mark.parametrize(("model", "says"), LIMITS)
def test_limits_of_a_model(tmp_path: Path, model: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        problem(tmp_path, model, TWO_POOLS)
    assert str(caught.value).startswith("the problem: cascade[0]")


def test_limits_that_one_of_the_pools_can_keep_are_sound(tmp_path: Path) -> None:
    stage = problem(tmp_path, {"tp": 8, "pp": 1, "min_replicas": 2, "max_replicas": 2}, TWO_POOLS).stages[0]
    assert (stage.tp, stage.pp, stage.min_replicas, stage.max_replicas, stage.pools) == (8, 1, 2, 2, ())
    spanning = [{**TWO_POOLS[0], "tp_across_nodes": True}, TWO_POOLS[1]]
    assert problem(tmp_path, {"tp": 16, "pp": 3}, spanning).stages[0].tp == 16


GOALS = [
    (
        {"slo_metric": "ttft_p95"},
        {},
        "goal has slo_metric (ttft_p95) but no slo_s; add goal.slo_s, the seconds it may take, or drop slo_metric",
    ),
    (
        {"paper_strict": True, "objective": "min_cost"},
        {},
        "goal.paper_strict: true plans as the paper does, which knows no goal.objective min_cost",
    ),
    ({"paper_strict": True, "mixed_shapes": True}, {}, "knows no goal.mixed_shapes"),
    ({"paper_strict": True, "survive": "node"}, {}, "knows no goal.survive node"),
    ({"paper_strict": True, "slo_s": 3}, {}, "knows no goal.slo_s"),
    ({"paper_strict": True, "budget_usd_per_hour": 3}, {}, "knows no goal.budget_usd_per_hour"),
    ({"paper_strict": True, "q_confidence": 0.9}, {}, "knows no goal.q_confidence"),
    ({"paper_strict": True}, {"cluster": TWO_POOLS}, "knows no second pool (cluster has fast, cheap)"),
    ({"paper_strict": True}, {"judge": {"model": "llama-3.1-8b"}}, "knows no hosted judge (judge.model)"),
    ({"method": "alternating"}, {"judge": {"model": "llama-3.1-8b"}}, "goal.method: alternating plans as the paper"),
    ({"method": "alternating", "objective": "ttft_p95"}, {}, "knows no goal.objective ttft_p95"),
]


@pytest.mark.parametrize(("goal", "others", "says"), GOALS)
def test_goals(tmp_path: Path, goal: dict[str, Any], others: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        problem(tmp_path, goal=goal, **others)


@pytest.mark.parametrize(
    ("goal", "says"),
    [
        (
            {"latency": "simulated", "survive": "replica"},
            "goal.latency: simulated does not plan with goal.survive repl",
        ),
        (
            {"mixed_shapes": True, "objective": "end_to_end_p95"},
            "goal.mixed_shapes is true and goal.objective is end_to",
        ),
        ({"mixed_shapes": True, "objective": "min_gpus", "slo_s": 3}, "and goal.slo_metric is end_to_end_p95"),
    ],
)
def test_what_makes_sense_and_is_not_planned(tmp_path: Path, goal: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(says)):
        problem(tmp_path, goal=goal)
    sound = {"mixed_shapes": True, "objective": "min_gpus", "slo_s": 3, "slo_metric": "max_stage_p95"}
    assert problem(tmp_path, goal=sound).goal.deadline_metric == "max_stage_p95"


@pytest.mark.parametrize("goal", [{"objective": "min_cost"}, {"budget_usd_per_hour": 50}])
def test_money_needs_prices(tmp_path: Path, goal: dict[str, Any]) -> None:
    unpriced = [{"gpu": "a100-pcie-80gb", "nodes": 1}]
    with pytest.raises(InputError, match=r"needs the price of every GPU and that of pool a100-pcie-80gb is unknown"):
        problem(tmp_path, cluster=unpriced, goal=goal)
    assert problem(tmp_path, cluster=[unpriced[0] | {"price_usd_per_hour": 1.5}], goal=goal).gpus == 8


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        (
            {"output_tokens": 4},
            "judge has output_tokens but no model; add judge.model to host it, or drop output_tokens",
        ),
        ({"kv_dtype": "fp8"}, "judge has kv_dtype but no model"),
        (
            {"model": "llama-3.1-8b", "latency_s": 0.3},
            "judge has both model and latency_s (0.3); a hosted judge's late",
        ),
        ({"model": "llama-3.1-8b", "usd_per_call": 1.0}, "judge has both model and usd_per_call (1)"),
    ],
)
def test_judges(tmp_path: Path, judge: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        problem(tmp_path, judge=judge)


def test_a_goal_is_changed_and_checked() -> None:
    goal = Goal(q_min=70, objective="end_to_end_p95")
    assert checked_goal(goal, {"slo_s": 4, "q_min": 80.5}, "p.yaml") == Goal(
        q_min=80.5, objective="end_to_end_p95", slo_s=4
    )
    with pytest.raises(InputError, match=r"^q_min is 101; it must be at most 100$"):
        checked_goal(goal, {"q_min": 101}, "p.yaml")
    with pytest.raises(InputError, match=r"^objective is 'mincost'; .* did you mean 'min_cost'\?$"):
        checked_goal(goal, {"objective": "mincost"}, "p.yaml")
    with pytest.raises(InputError, match=r"a goal has no field 'qmin'; did you mean 'q_min'\?"):
        checked_goal(goal, {"qmin": 3}, "p.yaml")
    with pytest.raises(
        InputError, match=r"^p.yaml: goal.method: alternating .* knows no goal.objective end_to_end_p95"
    ):
        checked_goal(goal, {"method": "alternating"}, "p.yaml")


@pytest.mark.parametrize(
    ("goal", "metric"),
    [
        ({}, "max_stage_p95"),
        ({"objective": "ttft_p95"}, "ttft_p95"),
        ({"objective": "min_cost"}, "end_to_end_p95"),
        ({"objective": "min_cost", "slo_s": 2.0, "slo_metric": "ttft_p95"}, "ttft_p95"),
    ],
)
def test_what_a_deadline_limits(goal: dict[str, Any], metric: str) -> None:
    assert Goal(q_min=1, **goal).deadline_metric == metric


def test_replace_drops_what_only_said_more_of_what_goes(tmp_path: Path) -> None:
    timed = problem(
        tmp_path, goal={"slo_s": 3, "slo_metric": "ttft_p95"}, judge={"model": "llama-3.1-8b", "output_tokens": 4}
    )
    assert timed.replace(slo_s=None).goal.slo_metric is None
    assert timed.replace(judge_model=None).judge.kind == "external"
    with pytest.raises(InputError, match="has slo_metric"):
        timed.replace(slo_s=None, slo_metric="ttft_p95")
    other = timed.replace(
        objective="min_cost", slo_s=5, slo_metric="max_stage_p95", budget_usd_per_hour=70, survive="node",
        q_confidence=0.9, skip_models=True, mixed_shapes=True, time_limit_s=3, judge_instruction_tokens=7,
    )  # fmt: skip
    goal = other.goal
    assert (goal.objective, goal.slo_s, goal.slo_metric, goal.budget_usd_per_hour) == (
        "min_cost",
        5,
        "max_stage_p95",
        70,
    )
    assert (goal.survive, goal.q_confidence, goal.skip_models, goal.mixed_shapes) == ("node", 0.9, True, True)
    assert (goal.time_limit_s, other.judge.instruction_tokens, other.judge.output_tokens) == (3, 7, 4)
    limited = timed.replace(models={"llama-3.1-8b": {"min_replicas": 2, "tp": 4}})
    assert (limited.stages[0].min_replicas, limited.stages[0].tp, limited.stages[1].tp) == (2, 4, None)
