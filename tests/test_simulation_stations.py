"""Simulated plans with a hosted judge, several pools and several shapes at a stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import group

import cascadia_fast as cf
from cascadia_fast import _core
from cascadia_fast.blueprint import JudgePlan, Plan, Pool, ReplicaGroup
from cascadia_fast.engine_parts import EngineParts
from cascadia_fast.errors import InputError
from cascadia_fast.problem import Problem
from cascadia_fast.simulation import Simulation, simulate
from cascadia_fast.simulation.columns import ADMITTED, ARRIVED, FINISHED, FIRST_TOKEN
from cascadia_fast.simulation.system import build_system
from cascadia_fast.timeline import timeline_html

H100 = "h100-sxm-80gb"


@pytest.fixture(scope="module")
def problem() -> Problem:
    """The example with a judge of 8B on four GPUs beside the 32 of the cascade."""
    return Problem.example().replace(
        gpus=36, judge_latency_s=0.0, judge_model="llama-3.1-8b", judge_weights="fp8", judge_output_tokens=16
    )


@pytest.fixture(scope="module")
def external() -> Plan:
    return cf.plan(Problem.example())


@pytest.fixture(scope="module")
def plan(external: Plan) -> Plan:
    return hosted(external)


@pytest.fixture(scope="module")
def run(plan: Plan, problem: Problem) -> Simulation:
    return simulate(plan, problem, 20_000, arrivals="poisson")


def engines(count: int, tp: int, pool: str, gpu: str, node: int, share: float) -> ReplicaGroup:
    nodes = tuple(((node, replica * tp, tp),) for replica in range(count))
    return dataclasses.replace(group(count, tp, 1, nodes, share), pool=pool, gpu=gpu, max_model_len=131_072)


def hosted(plan: Plan) -> Plan:
    """The plan, with a judge on a node of its own."""
    pool = dataclasses.replace(plan.pools[0], gpus=36)
    replicas = (engines(4, 1, pool.name, H100, 4, 1.0),)
    judge = JudgePlan("hosted", 0.0, 0.0, None, "llama-3.1-8b", "fp8", "bf16", 4, 80.0, 0.2, 0.3, replicas)
    return dataclasses.replace(plan, judge=judge, pools=(pool,))


# A hosted judge


def test_every_answer_but_the_last_models_is_judged(run: Simulation) -> None:
    columns = run.columns
    assert columns.judge_rows == (3, 4)
    for stage in (0, 1):
        answered = ~np.isnan(columns.times(stage)[:, FINISHED])
        assert np.array_equal(columns.visited(3 + stage), answered)
        assert columns.times(3 + stage)[answered, ARRIVED] == pytest.approx(columns.times(stage)[answered, FINISHED])
    judge = run.judge
    assert judge is not None
    assert judge.visits == columns.visited(0).sum() + columns.visited(1).sum()
    assert judge.reach == pytest.approx(columns.judge_calls(run.measured.rows))
    assert judge.reach == pytest.approx(run.stages[0].reach + run.stages[1].reach)


def test_a_judge_reads_instructions_prompt_and_answer(run: Simulation, problem: Problem) -> None:
    judge = run.system.judge
    assert judge is not None
    requests = problem.workload.requests
    for stage in range(3):
        expected = np.ceil(200 + requests.input_tokens[stage] + requests.output_tokens[stage])
        assert judge.tokens_in[stage].tolist() == expected.tolist()
    assert set(judge.tokens_out.ravel()) == {16}


def test_latency_is_the_sum_along_the_path(run: Simulation) -> None:
    total_s = np.zeros(run.requests)
    for row in range(5):
        spent_s = run.columns.stage_latency_s(row)
        total_s += np.where(np.isnan(spent_s), 0.0, spent_s)
    assert run.latency_s == pytest.approx(total_s)
    waited_s = [run.columns.times(row)[:, ADMITTED] - run.columns.times(row)[:, ARRIVED] for row in range(5)]
    assert run.queueing_s == pytest.approx(np.nansum(waited_s, axis=0))
    # What is judged is shown once it is accepted; the last model streams.
    last = run.columns.accepted_by() == 2
    first_s = run.columns.times(2)[last, FIRST_TOKEN] - run.native.arrived_s[last]
    assert run.ttft_s[last] == pytest.approx(first_s)
    assert run.ttft_s[~last] == pytest.approx(run.latency_s[~last])


def test_nobody_is_faster_than_alone_and_littles_law_holds_at_the_judge(run: Simulation) -> None:
    assert run.slo_scales[0] >= 1 - 1e-9
    over = run.over_time(50_000)
    assert over.running.shape == (4, 50_000)
    spent_s = float(sum(np.nansum(run.columns.stage_latency_s(row)) for row in run.columns.judge_rows))
    present = float((over.running[3] + over.waiting[3]).mean())
    assert present * run.native.ended_s == pytest.approx(spent_s, rel=2e-3)
    assert run.judge is not None
    # Somebody is there while the answer is on its way from the engine, too, which is some of so short a call.
    assert run.judge.busy_share <= float(over.busy_share[3].mean()) <= 1.1 * run.judge.busy_share


def test_one_request_takes_its_own_time(plan: Plan, problem: Problem) -> None:
    one = simulate(plan, problem, 1)
    assert one.slo_scales == pytest.approx([1.0])


def test_the_report_has_a_row_for_the_judge(run: Simulation, tmp_path: Path) -> None:
    text = run.summary()
    assert any(line.split()[:2] == ["judge", "llama-3.1-8b"] for line in text.splitlines())
    assert "judge p95" in text
    found = json.loads(run.to_json())
    assert found["judge"]["index"] is None
    assert found["judge"]["latency_s"]["p95"]["value"] == run.judge.latency.p95.value  # type: ignore[union-attr]
    assert len(found["stages"]) == 3
    by_name = {comparison.what: comparison for comparison in run.predictions}
    assert by_name["judge p95"].predicted_s == 0.2
    table = run.table()
    assert table["judge1_replica"].null_count == int((~run.columns.visited(3)).sum())
    assert "judge3_replica" not in table.column_names
    assert "judge" in timeline_html(run)


def test_an_overloaded_judge_is_named(external: Plan, problem: Problem) -> None:
    alone = (engines(1, 1, external.pools[0].name, H100, 4, 1.0),)
    few = dataclasses.replace(hosted(external).judge, gpus=1, replicas=alone)
    slow = problem.replace(judge_output_tokens=1000)
    run = simulate(dataclasses.replace(hosted(external), judge=few), slow, 20_000, arrivals="poisson")
    assert any(note.startswith("Judge (llama-3.1-8b) is overloaded") for note in run.notes)


def test_the_cost_counts_the_judge(run: Simulation, plan: Plan, problem: Problem) -> None:
    assert plan.gpus == 36
    assert run.throughput_per_s is not None
    assert problem.price_usd_per_hour is not None
    expected = 36 * problem.price_usd_per_hour / 3600 / run.throughput_per_s
    assert run.cost_usd_per_request == pytest.approx(expected)


def test_timeouts_reach_the_judge(plan: Plan, problem: Problem) -> None:
    run = simulate(plan, problem, 3000, timeout_s=8.0, rate_per_s=60)
    assert run.counts["timed_out"] > 0
    assert run.counts["served"] + run.counts["timed_out"] == 3000
    assert float(np.nanmax(run.latency_s)) <= 8.5  # who is at work at the deadline is let finish the step


def test_what_is_judged_otherwise_is_refused(plan: Plan, external: Plan, problem: Problem) -> None:
    with pytest.raises(InputError, match=r"plan\.judge\.kind is 'hosted' and the problem's judge is simulated"):
        simulate(plan, Problem.example().replace(gpus=36), 10)
    with pytest.raises(InputError, match=r"plan\.judge\.kind is 'simulated' and the problem's judge is hosted"):
        simulate(external, problem, 10)
    for field, other in (("model", "llama-3.1-70b"), ("weights", "bf16"), ("kv_dtype", "fp8")):
        change: dict[str, Any] = {field: other}
        wrong = dataclasses.replace(plan, judge=dataclasses.replace(plan.judge, **change))
        with pytest.raises(InputError, match=rf"plan\.judge\.{field} is '{other}' and the problem has"):
            simulate(wrong, problem, 10)
    none = dataclasses.replace(plan.judge, replicas=(), gpus=0)
    with pytest.raises(InputError, match=r"the plan gives llama-3\.1-8b no replica"):
        simulate(dataclasses.replace(plan, judge=none), problem, 10)
    with pytest.raises(InputError, match=r"judge_cv is 0\.5, but the judge is hosted"):
        simulate(plan, problem, 10, judge_cv=0.5)


# Several pools and shapes


@pytest.fixture(scope="module")
def spread(external: Plan) -> tuple[Plan, Problem]:
    """The plan with some of the first model's replicas moved to older GPUs, beside two shapes of them."""
    fields = Problem.example().fields.model_dump(exclude_unset=True)
    fields["cluster"] = [
        {"name": "fast", "gpu": "h100", "gpus": 32, "price_usd_per_hour": 3.0},
        {"name": "old", "gpu": "a100", "gpus": 8, "gpus_per_node": 4, "price_usd_per_hour": 1.0},
    ]
    problem = Problem.from_dict(fields, Problem.example().input_paths()[0].parent)
    first, *others = external.stages
    moved = (
        engines(2, 1, "old", "a100-sxm-80gb", 0, 0.2),
        engines(1, 2, "old", "a100-sxm-80gb", 1, 0.2),
    )
    on_fast = [dataclasses.replace(group, pool="fast") for group in first.replicas]
    on_fast[0] = dataclasses.replace(on_fast[0], share=0.6)
    stages = [dataclasses.replace(first, gpus=first.gpus + 4, replicas=(*on_fast, *moved))]
    for stage in others:
        groups = tuple(dataclasses.replace(group, pool="fast") for group in stage.replicas)
        stages.append(dataclasses.replace(stage, replicas=groups))
    pools = (Pool("fast", H100, 32, 8, 3.0), Pool("old", "a100-sxm-80gb", 8, 4, 1.0))
    inputs = {name: digest for name, digest in external.provenance.inputs.items() if name != "problem.yaml"}
    provenance = dataclasses.replace(external.provenance, inputs=inputs)
    return dataclasses.replace(external, stages=tuple(stages), pools=pools, provenance=provenance), problem


def test_engines_are_those_of_their_pool(spread: tuple[Plan, Problem]) -> None:
    plan, problem = spread
    system = build_system(plan, problem)
    lengths = system.tokens_in[0], system.tokens_out[0]
    kinds = system.engines[0]
    for (costs, count, _), planned in zip(kinds, plan.stages[0].replicas, strict=True):
        pool = problem.pools[("fast", "old").index(planned.pool)]
        parts = EngineParts.of(problem, problem.stages[0], pool)
        expected = _core.StepCosts(parts.replica(_core.Shape(tp=planned.tp, pp=planned.pp)))
        assert count == planned.count
        assert np.array_equal(costs.alone_s(*lengths)[1], expected.alone_s(*lengths)[1])
    fast, old, _ = (costs.alone_s(*lengths)[1] for costs, _, _ in kinds)
    assert (old > fast).all()  # an A100 reads 2.04 TB/s, an H100 3.35


def test_groups_get_about_their_shares(spread: tuple[Plan, Problem]) -> None:
    plan, problem = spread
    run = simulate(plan, problem, 30_000, arrivals="poisson")
    visits = np.bincount(run.columns.visit_replicas(0))
    ends = np.cumsum([group.count for group in plan.stages[0].replicas])
    shares = [float(part.sum() / visits.sum()) for part in np.split(visits, ends[:-1])]
    assert shares[0] == pytest.approx(0.6, abs=0.15)
    assert run.stages[0].replicas == ends[-1]
    assert run.throughput_per_s is not None
    assert run.cost_usd_per_request == pytest.approx((32 * 3.0 + 4 * 1.0) / 3600 / run.throughput_per_s)


def test_pools_that_do_not_belong_together_are_refused(spread: tuple[Plan, Problem]) -> None:
    plan, problem = spread
    for change, says in (
        ({"old": {"name": "new"}}, "plan.pools has 'old', which is no pool of the problem; the problem has fast, new"),
        ({"old": {"gpu": "h200"}}, "the plan is for a100-sxm-80gb and the problem has h200-sxm-141gb in pool 'old'"),
        ({"old": {"gpus_per_node": 8}}, "the plan has 4 GPUs per node and the problem 8 in pool 'old'"),
        ({"old": {"gpus": 3}}, "the plan uses 4 GPUs and the problem has 3 in pool 'old'; simulate with the problem"),
    ):
        with pytest.raises(InputError, match=says):
            simulate(plan, problem.replace(pools=change), 10)
    faster = problem.replace(pools={"old": {"internode_gb_per_s": 100, "price_usd_per_hour": None}})
    assert simulate(plan, faster, 100).counts["served"] == 100


def test_a_model_in_the_middle_is_skipped(external: Plan) -> None:
    problem = Problem.example()
    small, middle, large = external.stages
    routing = dataclasses.replace(
        external.routing,
        thresholds=external.routing.thresholds[:1],
        threshold_intervals=external.routing.threshold_intervals[:1],
    )
    plan = dataclasses.replace(external, stages=(small, large), skipped_models=(middle.model,), routing=routing)
    run = simulate(plan, problem, 5000, rate_per_s=20)
    assert [stage.index for stage in run.stages] == [0, 2]
    requests = problem.workload.requests
    escalates = requests.score[0][run.drawn] < routing.thresholds[0]
    assert np.array_equal(run.columns.visited(1), escalates)
    assert run.system.tokens_out[1].tolist() == np.ceil(requests.output_tokens[2]).tolist()
    assert [what for what, _ in run.figures][:2] == ["stage 1 p95", "stage 3 p95"]
    quality = np.where(escalates, requests.quality[2][run.drawn], requests.quality[0][run.drawn])
    assert run.quality is not None
    assert run.quality.value == pytest.approx(quality[run.measured.rows].mean())
