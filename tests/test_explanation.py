"""What an explanation finds and says, with plans made by hand and a planner that notes what it is asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from builders import alternating_report, deepseek_plan, one_stage_plan, two_pools_plan

from cascadia_fast.blueprint import Plan, SimulatedLatency
from cascadia_fast.errors import PoolTooSmallError
from cascadia_fast.explaining.bottleneck import bottleneck_of, constraints_of
from cascadia_fast.explaining.certificate_words import certificate_words
from cascadia_fast.explaining.explanation import Alternative, Explanation, Outcome, explain
from cascadia_fast.explaining.text import text_of
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

DEEPSEEK = ("deepseek-r1-distill-qwen-7b", "deepseek-r1-distill-llama-70b", "deepseek-r1")


def outcome(value: float | None, **changes: Any) -> Outcome:
    return dataclasses.replace(Outcome.of(deepseek_plan()), **{"objective_value": value, "latency_s": value, **changes})


ALTERNATIVES = (
    Alternative("models", DEEPSEEK[:1], None, None, None, "reaches quality 38.96 at most"),
    Alternative("models", DEEPSEEK[1:], None, None, outcome(150.0, models=DEEPSEEK[1:], stage_gpus=(8, 24))),
    Alternative("shape", DEEPSEEK, "deepseek-r1", "tp8", outcome(135.0)),
    Alternative("shape", DEEPSEEK, "deepseek-r1", "tp4 pp2", outcome(120.0)),
    Alternative("shape", DEEPSEEK, "deepseek-r1", "tp2", None, "no allocation of 32 GPUs carries the rate; 80 would"),
    Alternative(
        "shape", DEEPSEEK, "deepseek-r1", "tp1 pp4", None, "no allocation of 32 GPUs carries the rate; 96 would"
    ),
)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def plan_of(value: float, **changes: Any) -> Plan:
    """The plan made by hand with another latency."""
    solver = alternating_report()
    return deepseek_plan(objective_value=value, latency_s=value, solver=solver, status="feasible", **changes)


def explained(replan: Callable[[Problem], Plan], problem: Problem, plan: Plan | None = None) -> Explanation:
    return explain(plan or deepseek_plan(), problem, replan, lambda _: ALTERNATIVES)


@pytest.fixture(scope="module")
def example() -> Problem:
    return Problem.example()


def test_every_change_is_the_one_it_says(example: Problem) -> None:
    asked: list[Problem] = []

    def replan(problem: Problem) -> Plan:
        asked.append(problem)
        return deepseek_plan()

    goal = {"slo_s": 100.0, "budget_usd_per_hour": 200.0, "survive": "replica"}
    found = explained(replan, example.replace(**goal))  # type: ignore[arg-type]
    assert [what_if.change for what_if in found.what_ifs] == [
        "one more h100-sxm-80gb",
        "one more node of 8 h100-sxm-80gb",
        "10 % less load",
        "quality floor 75 instead of 76",
        "a 10 % later deadline",
        "a 10 % larger budget",
        "no spare for the loss of a replica",
    ]
    base, gpu, node, load, floor, deadline, budget, spare = asked
    assert (base.gpus, gpu.gpus, node.gpus) == (32, 33, 40)
    assert load.workload.arrivals.rate_per_s == pytest.approx(0.9 * base.workload.arrivals.rate_per_s)
    assert floor.goal.q_min == 75.0
    assert deadline.goal.slo_s == pytest.approx(110.0)
    assert budget.goal.budget_usd_per_hour == pytest.approx(220.0)
    assert spare.goal.survive == "none"
    for changed in asked[1:]:
        assert (changed.goal.q_min == 76.0) == (changed is not floor)
        assert (changed.gpus == 32) == (changed not in (gpu, node))


def test_every_pool_gets_one_more(example: Problem) -> None:
    pools = [
        {"name": "fast", "gpu": "h100-sxm-80gb", "nodes": 2},
        {"name": "cheap", "gpu": "l40s", "gpus": 3, "gpus_per_node": 1},
    ]
    fields = {
        **example.fields.model_dump(exclude_unset=True),
        "cluster": pools,
        "goal": {"q_min": 0.0, "objective": "max_rate"},
    }
    problem = Problem.from_dict(fields, example.input_paths()[0].parent)
    asked: list[tuple[int, ...]] = []

    def replan(problem: Problem) -> Plan:
        asked.append(tuple(pool.gpus for pool in problem.pools))
        return deepseek_plan()

    found = explained(replan, problem)
    # At the largest rate less load is no question, and neither is a floor below 0.
    assert [what_if.change for what_if in found.what_ifs] == [
        "one more h100-sxm-80gb in fast",
        "one more node of 8 h100-sxm-80gb in fast",
        "one more l40s in cheap",
    ]
    assert asked == [(16, 3), (17, 3), (24, 3), (16, 4)]


def test_changes_without_a_plan_say_why(example: Problem) -> None:
    def replan(problem: Problem) -> Plan:
        if problem.gpus == 33:
            raise PoolTooSmallError("33 GPUs are too few", gpus_needed=40)
        return deepseek_plan()

    found = explained(replan, example)
    assert found.what_ifs[0].best is None
    assert found.what_ifs[0].reason == "33 GPUs are too few"
    assert "- one more h100-sxm-80gb: no plan, 33 GPUs are too few" in text_of(found)


def test_a_plan_that_is_not_found_again_is_said(example: Problem) -> None:
    assert explained(lambda _: plan_of(135.0 * (1 + 1e-9)), example).planned_again is None
    found = explained(lambda problem: plan_of(130.0 if problem.gpus == 32 else 65.0), example)
    assert found.base.objective_value == 130.0
    text = squeezed(text_of(found))
    assert "Planned again, this problem now comes to 130 s" in text
    assert "one more h100-sxm-80gb 65 s 80.39 27 1 / 6 / 20 64.80 50 % less" in text
    unknown = explained(lambda _: one_stage_plan(), example, one_stage_plan())
    assert unknown.planned_again is None
    assert "as planned unbounded" in squeezed(text_of(unknown))


@pytest.mark.parametrize("width", [60, 100, 140])
def test_the_text_says_everything(width: int, example: Problem) -> None:
    found = explained(lambda problem: plan_of(135.0 if problem.gpus == 32 else 108.0), example)
    text = text_of(found, width)
    assert max(map(len, text.splitlines())) <= width
    words = squeezed(text)
    assert words.startswith(f"Plan {found.plan_id}, objective max_stage_p95: 135 s What holds it back:")
    if width < 140:
        return
    for fact in (
        "- stage 3 (deepseek-r1): its p95 of 135 s is the largest; next is stage 2 (deepseek-r1-distill-llama-70b) "
        "with 88.4 s",
        "- one more replica of it takes 20 GPUs, and 5 are idle",
        "as planned 135 s 80.39 27 1 / 6 / 20 64.80 none",
        "one more h100-sxm-80gb 108 s 80.39 27 1 / 6 / 20 64.80 20 % less",
        "- Proved: no plan of this kind has a smaller p95 of the slowest stage.",
    ):
        assert fact in words
    order = [
        words.index(name) for name in ("in tp4 pp2 120 s", "in tp8 135 s", "> deepseek-r1 150 s", "alone: reaches")
    ]
    assert order == sorted(order)
    assert "0.889 times the p95, which is better" in words
    assert "as good; what breaks ties decided" in words
    assert "1.11 times the p95" in words
    assert "- deepseek-r1-distill-qwen-7b alone: reaches quality 38.96 at most" in words
    assert "- deepseek-r1 in tp2, tp1 pp4: no allocation of 32 GPUs carries the rate What is proved:" in words
    assert text_of(found, ascii_only=True).isascii()


def test_other_objectives_show_their_value(example: Problem) -> None:
    def fewest(gpus: float) -> Plan:
        return deepseek_plan(objective="max_rate", objective_value=gpus, solver=alternating_report(), status="feasible")

    others = tuple(
        Alternative("shape", DEEPSEEK, "deepseek-r1", f"tp{number}", outcome(1.5 - 0.05 * number, latency_s=135.0))
        for number in range(20)
    )
    found = explain(fewest(1.5), example, lambda problem: fewest(1.5 if problem.gpus == 32 else 1.8), lambda _: others)
    words = squeezed(text_of(found, 160))
    assert "as planned 1.5 requests/s 135 s 80.39 27 1 / 6 / 20 64.80 none" in words
    assert "one more h100-sxm-80gb 1.8 requests/s 135 s 80.39 27 1 / 6 / 20 64.80 20 % more" in words
    assert "deepseek-r1 in tp11 0.95 requests/s 135 s 80.39 27 1 / 6 / 20 64.80 0.633 times the rate" in words
    assert "deepseek-r1 in tp12" not in words
    assert "The 8 next best are in the JSON" in words


def test_another_cascade_after_a_change_is_named(example: Problem) -> None:
    other = one_stage_plan(latency_s=9.0, objective_value=9.0, solver=alternating_report())
    found = explained(lambda problem: deepseek_plan() if problem.gpus != 33 else other, example)
    assert "one more h100-sxm-80gb 9 s 61 1 1 – 93.3 % less tiny alone" in squeezed(text_of(found, 200))


def test_json_has_the_documented_fields(example: Problem) -> None:
    document = json.loads(explained(lambda _: deepseek_plan(), example).to_json())
    assert list(document) == [
        "schema_version",
        "plan_id",
        "objective",
        "chosen",
        "planned_again",
        "bottleneck",
        "constraints",
        "what_ifs",
        "alternatives",
        "certificate",
    ]
    assert document["planned_again"] is None
    assert document["bottleneck"]["station"] == "deepseek-r1"
    assert document["alternatives"][0] == {
        "kind": "models",
        "models": [DEEPSEEK[0]],
        "station": None,
        "shape": None,
        "best": None,
        "reason": "reaches quality 38.96 at most",
    }
    assert document["chosen"]["stage_gpus"] == [1, 6, 20]


def test_constraints_say_what_is_left() -> None:
    found = {constraint.what: constraint for constraint in constraints_of(two_pools_plan())}
    assert [constraint.kind for constraint in found.values()] == [
        "quality",
        "latency",
        "cost",
        "utilization",
        "gpus",
        "gpus",
    ]
    assert found["quality, with 95 % confidence"].left == pytest.approx(0.05)
    assert found["end-to-end p95"].left == pytest.approx(260 - 241.7)
    assert found["USD per hour"].left == pytest.approx(19.8)
    assert found["utilisation of stage 3 (deepseek-r1)"].left == pytest.approx(0.0)
    assert (found["GPUs of h100"].reached, found["GPUs of l40s"].left) == (25.0, 5.0)
    assert constraints_of(deepseek_plan())[0].what == "quality"


def slower(plan: Plan, stage: int, **changes: Any) -> Plan:
    stages = list(plan.stages)
    stages[stage] = dataclasses.replace(stages[stage], **changes)
    return dataclasses.replace(plan, stages=tuple(stages))


def test_the_slowest_station_that_counts_is_the_bottleneck() -> None:
    plan = deepseek_plan()
    assert bottleneck_of(plan).index == 2
    assert bottleneck_of(slower(plan, 0, p95_s=200.0)).index == 0
    assert (
        bottleneck_of(slower(plan, 1, p95_s=None))
        .why[0]
        .startswith("stage 2 (deepseek-r1-distill-llama-70b): its p95 of unbounded is the largest")
    )
    path = {"objective": "end_to_end_p95", "latency_metric": "end_to_end_p95", "slo_s": None, "slo_metric": None}
    whole = deepseek_plan(**path)
    assert bottleneck_of(whole).index == 2
    rare = slower(whole, 2, reach=0.04)
    assert bottleneck_of(rare).index == 1
    assert "of the stations that more than 5 % of the requests visit" in bottleneck_of(rare).why[0]
    first = deepseek_plan(objective="ttft_p95", latency_metric="ttft_p95")
    assert bottleneck_of(first).index == 1
    alone = one_stage_plan(objective="ttft_p95", latency_metric="ttft_p95")
    assert bottleneck_of(alone).index == 0


def test_a_hosted_judge_can_be_the_bottleneck() -> None:
    plan = two_pools_plan()
    judge = dataclasses.replace(plan.judge, p95_s=500.0)
    found = bottleneck_of(
        dataclasses.replace(plan, objective="max_rate", objective_value=1.5, judge=judge, solver=alternating_report())
    )
    assert (found.station, found.index) == ("llama-3.1-8b", None)
    assert found.why[0].startswith("the judge (llama-3.1-8b): its p95 of 500 s is the largest")
    assert "busy 31 % of the time, below the cap" in found.why[1]


def test_spending_is_bound_where_the_money_goes() -> None:
    found = bottleneck_of(two_pools_plan())
    assert found.why[0] == "stage 3 (deepseek-r1): it has 20 of the 28 GPUs in use, 68.4 % of the cost"
    assert "at the cap of 90 %: fewer of these engines could not carry its load" in found.why[1]
    solver = alternating_report()
    fewest = deepseek_plan(objective="min_gpus", objective_value=27, solver=solver)
    assert bottleneck_of(fewest).why[0] == "stage 3 (deepseek-r1): it has 20 of the 27 GPUs in use"
    most = deepseek_plan(objective="max_rate", objective_value=1.5, solver=solver)
    assert "it is the busiest of 3 stations" in bottleneck_of(most).why[0]


def test_full_batches_are_said() -> None:
    full = slower(deepseek_plan(), 2, mean_batch=255.0)
    assert "its batches are full: 255 of 256 sequences on average" in bottleneck_of(full).why


def test_what_is_proved_is_said_in_plain_words() -> None:
    claim, kind, work, check, rests = certificate_words(deepseek_plan())
    assert claim == "Proved: no plan of this kind has a smaller p95 of the slowest stage."
    assert kind.startswith(
        "Of this kind means the cascade of all 3 models, thresholds on a grid of 102 × 102 levels (203"
    )
    assert "any number of equal replicas of one shape" in kind
    assert work.startswith("18 routings had to be worked out in 4.2 ms; bounds on load, GPUs and latency ruled out 185")
    assert check.endswith("at 135 s (status optimal).")
    assert "step times that are transferred (profile roofline-2026-11) and for these 51 scored requests" in rests
    stopped, several, *_ = certificate_words(two_pools_plan())
    assert stopped == (
        "Not proved to the end: the search was stopped after 60 s, but no plan of this kind has a smaller cost than "
        "69.90 USD per hour, 0.427 % from this one."
    )
    assert "any of the 15 cascades that 4 models can form" in several
    assert "replicas of any shapes on any of its pools" in several


def test_what_is_not_proved_is_said_so() -> None:
    def claim(**changes: Any) -> str:
        return certificate_words(deepseek_plan(**changes))[0]

    assert "a heuristic, and how far the best plan is from this one is unknown" in claim(solver=alternating_report())
    solver = dataclasses.replace(deepseek_plan().solver, bound=None, gap=None, complete=False)
    assert claim(solver=solver, status="feasible") == (
        "Not proved: the search was stopped, nothing is known of what better plans there may be."
    )
    near = dataclasses.replace(deepseek_plan().solver, bound=134.865, gap=0.001)
    assert claim(solver=near) == (
        "Proved within a tolerance: no plan of this kind has a smaller p95 of the slowest stage than 135 s, 0.1 % from "
        "this one."
    )
    rate = dataclasses.replace(near, bound=1.6, gap=0.1 / 1.5)
    assert "has a larger rate than 1.6 requests/s" in claim(solver=rate, objective="max_rate", objective_value=1.5)
    runs = dataclasses.replace(solver, simulated=SimulatedLatency(4000, 0, 60, 1.2, 120.0))
    sentences = certificate_words(deepseek_plan(solver=runs, status="feasible"))
    assert "latencies come from simulation" in sentences[0]
    assert not any("worked out" in sentence for sentence in sentences)


def test_more_of_anything_never_hurts(example: Problem) -> None:
    plan = Planner(example).plan()
    found = explain(plan, example, lambda problem: Planner(problem).plan(), lambda _: ())
    assert found.planned_again is None
    assert found.chosen == Outcome.of(plan)
    assert plan.objective_value is not None
    values = [what_if.best.objective_value for what_if in found.what_ifs if what_if.best is not None]
    assert len(values) == len(found.what_ifs) == 4
    assert all(value is not None and value <= plan.objective_value * (1 + 1e-12) for value in values)
    assert min(value for value in values if value is not None) < 0.9 * plan.objective_value
