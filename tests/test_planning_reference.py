"""The oracle of the planner against what is known otherwise: arithmetic, an older oracle, and reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import H100, L40S, fewer_paths, levels_of, small_problem
from planning_cases import oracle_of as oracle
from planning_cases import value_of as value
from reference.brute_force import Cascade, Wanted, best_plan
from reference.planning_instance import Route, route_of
from reference.planning_losses import Placed, placements
from reference.planning_oracle import best, feasible
from reference.planning_served import LATENCIES, Deployment, Served

from cascadia_fast import _core
from cascadia_fast.fleet import build_fleet
from cascadia_fast.problem import Problem
from cascadia_fast.routing import routing_grid

OBJECTIVES = (*LATENCIES, "min_cost", "min_gpus")
ROUNDING = 1e-6  # relative; single p95s evaluated by two routes differ by their rounding


@pytest.fixture(autouse=True, scope="module")
def _fewer_paths() -> Iterator[None]:
    with fewer_paths():
        yield


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(0, 50), st.floats(1, 60), st.sampled_from([1.0, 2.0]), st.floats(30, 75))
def test_the_oracle_agrees_with_an_older_one_on_the_slowest_stage(
    models: int, seed: int, rate_per_s: float, cv: float, q_min: float
) -> None:
    problem = small_problem(models, seed, rate_per_s=rate_per_s, cv=cv, q_min=q_min, skip_models=False, weighted=True)
    grid = routing_grid(problem.workload.requests, levels_of(problem))
    fleet = [stage.replicas for stage in build_fleet(problem)]
    cascade = Cascade.of_grid(grid, fleet, rate_per_s=rate_per_s, scv=cv**2)
    older = best_plan(cascade, cascade.candidates(q_min), Wanted(problem.gpus))
    found = best(oracle(problem))
    assert (found is None) == (older is None)
    if found is not None and older is not None:
        assert found.value == pytest.approx(older.worst_first_s[0], rel=ROUNDING)
        assert any(sum(served_gpus(problem, *plan)) == older.gpus for plan in found.plans)


def served_gpus(problem: Problem, route: Route, deployment: Deployment) -> list[int]:
    return Served(oracle(problem), route).gpus(deployment)


def one_shape(**changes: Any) -> Problem:
    """One model that can only run on single GPUs."""
    return small_problem(1, 3, entries={0: {"tp": 1, "pp": 1}}, **changes)


def carried_per_s(problem: Problem) -> float:
    """Rate of one replica at the utilisation cap, from first principles."""
    (model,) = oracle(problem).models
    (capacity_per_s,) = _core.capacities(
        replica=model.engines[0].replica,
        tokens_in=model.lengths.tokens_in,
        tokens_out=model.lengths.tokens_out,
        share=np.full((1, model.lengths.size), 1 / model.lengths.size),
    )
    return 0.9 * float(capacity_per_s)


def test_gpus_cost_and_rate_of_one_model_on_one_shape_are_arithmetic() -> None:
    carried = carried_per_s(one_shape())
    problem = one_shape(rate_per_s=3.5 * carried)
    assert value(problem, objective="min_gpus") == 4
    assert value(problem, objective="min_cost") == pytest.approx(4 * 3.0)
    assert value(problem, objective="min_gpus", survive="replica") == 5
    assert value(problem, objective="max_rate") == pytest.approx(8 * carried, rel=1e-3)
    assert value(problem, objective="max_rate", budget_usd_per_hour=15.5) == pytest.approx(5 * carried, rel=1e-3)
    assert math.isinf(value(problem, objective="min_gpus", budget_usd_per_hour=11.9))
    assert math.isinf(value(one_shape(rate_per_s=8.01 * carried)))
    # Two nodes of 4: after the loss of either, 4 GPUs at most are left, and 4 are needed.
    assert value(problem, objective="min_gpus", survive="node") == 8
    assert value(one_shape(rate_per_s=1.5 * carried), objective="min_gpus", survive="node") == 4
    assert math.isinf(value(one_shape(rate_per_s=4.5 * carried), survive="node"))
    pinned = small_problem(1, 3, rate_per_s=3.5 * carried, entries={0: {"tp": 1, "pp": 1, "min_replicas": 6}})
    assert value(pinned, objective="min_gpus") == 6
    capped = small_problem(1, 3, rate_per_s=3.5 * carried, entries={0: {"tp": 1, "pp": 1, "max_replicas": 3}})
    assert math.isinf(value(capped))


def test_the_cheaper_pool_is_taken_first() -> None:
    carried = carried_per_s(one_shape())
    problem = one_shape(rate_per_s=0.5 * carried, cluster=[H100, L40S])
    assert value(problem, objective="min_cost") in (1.0, 2.0)  # one or two L40S at 1 USD; an H100 is 3
    found = best(oracle(problem).with_goal(objective="max_stage_p95"))
    assert found is not None
    ((_, ((group,),)),) = found.plans
    assert group == (0, 8)  # all H100s, which are faster


def test_a_path_of_one_model_takes_as_long_as_its_stage() -> None:
    problem = small_problem(1, 5, rate_per_s=20.0)
    found = best(oracle(problem))
    assert found is not None
    ((route, deployment),) = found.plans
    served = Served(oracle(problem), route)
    seen = served.metrics(deployment)
    assert seen.end_to_end_p95 == pytest.approx(seen.max_stage_p95, rel=0.1)  # 672 draws of the same distribution
    assert seen.ttft_p95 < 0.2 * seen.end_to_end_p95


def test_a_path_adds_its_stages_and_its_judge_calls() -> None:
    """Where nothing waits, everyone's latency is the sum over the models visited and of the calls between them."""
    problem = small_problem(3, 5, rate_per_s=1e-4, judge={"latency_s": 100.0}, skip_models=False)
    instance = oracle(problem)
    route = route_of(instance, (0, 1, 2), (65.0, 70.0))
    served = Served(instance, route)
    assert set(route.accepted_by) == {0, 1, 2}
    path_s = served.path_s((((0, 1),),) * 3, "end_to_end_p95")
    calls = np.floor(path_s / 100)
    assert np.array_equal(calls, np.array([1, 2, 2])[route.accepted_by[served.paths.request]])
    # The last model streams: only its answers are seen before they are complete.
    until_first_s = served.path_s((((0, 1),),) * 3, "ttft_p95")
    streams = route.accepted_by[served.paths.request] == 2
    assert (until_first_s[~streams] == path_s[~streams]).all()
    assert (until_first_s[streams] < path_s[streams]).all()


def test_nobody_judges_where_the_next_model_does_not_run() -> None:
    problem = small_problem(2, 5, rate_per_s=1e-4, judge={"latency_s": 100.0, "usd_per_call": 1.0}, skip_models=False)
    route = route_of(oracle(problem), (0, 1), (0.0,))
    served = Served(oracle(problem), route)
    assert served.judge_usd_per_hour == 0
    assert served.latency_s((((0, 1),), ()), "end_to_end_p95") < 100


def test_a_hosted_judge_reads_every_judged_answer() -> None:
    hosted = {"model": "qwen2.5-7b", "output_tokens": 16, "instruction_tokens": 200}
    instance = oracle(small_problem(3, 5, rate_per_s=1.0, judge=hosted))
    route = route_of(instance, (0, 2), (65.0,))
    judge = Served(instance, route).stations[-1]
    small = instance.models[0].lengths
    assert judge.share.sum() == pytest.approx(1)
    assert judge.share[: small.size] @ judge.lengths.tokens_in[: small.size] == pytest.approx(
        np.mean(200 + small.tokens_in + small.tokens_out)
    )
    assert set(judge.lengths.tokens_out) == {16.0}


def test_placements_are_all_and_each_once() -> None:
    class Nodes:
        gpus, gpus_per_node = 5, 2

    singles = [Placed(1, 0, (0, 0))] * 2
    # Two replicas alike on nodes of 2, 2 and 1 GPUs: together on a full one, one on each full one, or one on the last.
    assert len(list(placements(singles, [Nodes()]))) == 3
    assert len(list(placements([Placed(2, 0, (0, 0))] * 3, [Nodes()]))) == 0
    assert sorted(map(len, placements([*singles, Placed(2, 0, (1, 0))], [Nodes()]))) == [2, 3]


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(0, 50), st.floats(1, 40), st.sampled_from(OBJECTIVES), st.floats(30, 70))
def test_freedom_never_hurts_the_oracle(
    models: int, seed: int, rate_per_s: float, objective: str, q_min: float
) -> None:
    problem = small_problem(models, seed, rate_per_s=rate_per_s, objective=objective, q_min=q_min)
    free = value(problem)
    assert free <= value(problem, skip_models=False) * (1 + ROUNDING)
    assert free <= value(problem, survive="replica")
    assert value(problem, survive="replica") <= value(problem, survive="node")
    assert free <= value(problem, q_min=q_min + 5)
    assert math.isinf(free) == (not feasible(oracle(problem)))


def test_a_mixed_station_splits_its_rate_in_the_best_way() -> None:
    """The slower of two groups, over every split of the rate, is least where the oracle says."""
    instance = oracle(small_problem(1, 2, rate_per_s=60.0))
    (station,) = Served(instance, route_of(instance, (0,), ())).stations
    alone, pair = 0, 2
    assert [station.engines[engine].gpus for engine in (alone, pair)] == [1, 2]
    found_s = station.p95_s(((alone, 2), (pair, 1)))
    scanned_s = [
        max(
            station.engine_p95_s(alone, share * 60.0 / 2, 2 / share),
            station.engine_p95_s(pair, (1 - share) * 60.0, 1 / (1 - share)),
        )
        for share in np.linspace(0.02, 0.98, 97)
    ]
    assert found_s <= min(scanned_s) * (1 + ROUNDING)
    assert found_s == pytest.approx(min(scanned_s), rel=0.02)
    assert station.p95_s(((pair, 2),)) < found_s < station.p95_s(((alone, 4),))
