"""Deployment and routing against brute force, the paper's program and one another, to the last bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference.brute_force import Cascade, Key, Option, Wanted, best_allocation, best_plan, key_of
from search_cases import FLEETS, SAFE, SMALL, assert_deployable, cascades, pools, scored_requests

from cascadia_fast import _core
from cascadia_fast.fleet import build_fleet
from cascadia_fast.planner import Planner
from cascadia_fast.planning.allocation import paper_milp, pruned_milp
from cascadia_fast.problem import Problem
from cascadia_fast.routing import routing_grid


@settings(max_examples=150)
@given(cascades, pools, st.data())
def test_deployment_equals_brute_force(cascade: Cascade, gpus: int, data: st.DataObject) -> None:
    """Least p95 of the slowest stage, then of the next, and so on, then fewest GPUs."""
    routing = data.draw(st.integers(0, cascade.count - 1))
    found = cascade.search().deploy(routing, gpus)
    expected = best_allocation(cascade, routing, Wanted(gpus))
    assert bool(found) == (expected is not None)
    if expected is not None:
        assert key_of(cascade, routing, found, Wanted(gpus)) == expected
        assert_deployable(cascade, routing, found, gpus)


@settings(max_examples=80)
@given(cascades, pools, st.data())
def test_deployment_equals_both_programs(cascade: Cascade, gpus: int, data: st.DataObject) -> None:
    routing = data.draw(st.integers(0, cascade.count - 1))
    search = cascade.search()
    found = search.deploy(routing, gpus)
    assume(found)
    latency_s = max(choice.latency_s for choice in found)
    tables = [search.table(routing, stage, gpus)[0] for stage in range(cascade.stages)]
    assert paper_milp(tables, gpus, exact_sum=False).latency_s == pytest.approx(latency_s, rel=1e-6)
    assert paper_milp(tables, gpus, exact_sum=True).latency_s == pytest.approx(latency_s, rel=1e-6)
    columns = search.columns(routing, latency_s, gpus)
    pairs = [
        (np.array([column.gpus for column in stage]), np.array([column.latency_s for column in stage]))
        for stage in columns
    ]
    assert pruned_milp(pairs, gpus, latency_s * SAFE).latency_s == pytest.approx(latency_s, rel=1e-6)
    # The columns are no faster than the table, and one of them is where the optimum can stand.
    for stage, (counts, latencies_s) in enumerate(pairs):
        assert np.array_equal(tables[stage][counts], latencies_s)
        assert latencies_s.max() <= latency_s


@settings(max_examples=60)
@given(cascades, pools, st.data())
def test_table_is_the_best_of_every_shape(cascade: Cascade, gpus: int, data: st.DataObject) -> None:
    routing = data.draw(st.integers(0, cascade.count - 1))
    search = cascade.search()
    for stage in range(cascade.stages):
        latency_s, shape, replicas = search.table(routing, stage, gpus)
        options = cascade.options(routing, stage, gpus)
        for f in range(gpus + 1):
            best_s = min((option.latency_s for option in options if option.gpus <= f), default=math.inf)
            assert latency_s[f] == best_s
            if replicas[f]:
                size = cascade.replicas[stage][shape[f]].shape.gpus
                assert Option(replicas[f] * size, best_s, shape[f], replicas[f]) in options
        assert not np.isnan(latency_s).any()
        assert (latency_s[1:] <= latency_s[:-1]).all()
        shorter = search.table(routing, stage, gpus // 2)[0]
        assert np.array_equal(shorter, latency_s[: gpus // 2 + 1])


# No plan before, or one with GPUs for every stage.
PREVIOUS = st.just([]) | st.lists(st.integers(0, 8), min_size=3, max_size=3)


@settings(max_examples=200)
@given(cascades, pools, st.sampled_from([0.0, 50.0, 60.0, 75.0]), PREVIOUS)
def test_exact_equals_brute_force(cascade: Cascade, gpus: int, quality_floor: float, previous: list[int]) -> None:
    """The whole order: objective, next-worst p95s, quality, fewer GPUs, closeness to the previous plan."""
    candidates, wanted = cascade.candidates(quality_floor), Wanted(gpus, previous=tuple(previous))
    found = cascade.search().exact(candidates=candidates, gpus=gpus, previous_gpus=previous)
    expected = best_plan(cascade, candidates, wanted)
    assert found.meet_floor == len(candidates)
    assert (found.routing >= 0) == (expected is not None)
    pruned = found.pruned_by_load + found.pruned_by_need + found.pruned_by_latency
    assert found.evaluated + pruned == found.meet_floor
    if expected is not None:
        assert key_of(cascade, found.routing, found.stages, wanted) == expected
        assert (found.worst_s, found.value, found.bound) == (list(expected.worst_first_s), *found.worst_s[:1] * 2)
        assert_deployable(cascade, found.routing, found.stages, gpus)


def swapped(previous: Sequence[int]) -> tuple[Cascade, Key]:
    """Two stages of one model; one routing loads the first more, the other the second, with the same quality."""
    rng = np.random.default_rng(0)
    lengths = np.ceil(np.exp(rng.normal(6, 0.8, (2, 3))))
    light, heavy = np.array([[0.2, 0.05, 0.0]]), np.array([[0.3, 0.3, 0.4]])
    cascade = Cascade(
        replicas=(SMALL, SMALL, SMALL),
        cells=((lengths[0], lengths[1]),) * 3,
        levels=(2, 1),
        share=(np.zeros((1, 3)) + light, np.vstack([light, heavy]), np.vstack([heavy, light])),
        quality=np.array([70.0, 70.0]),
        routings=np.array([[0, 0], [1, 0]], np.int32),
        rate_per_s=20.0,
    )
    found = cascade.search().exact(candidates=cascade.candidates(0.0), gpus=12, previous_gpus=list(previous))
    return cascade, key_of(cascade, found.routing, found.stages, Wanted(12, previous=tuple(previous)))


def test_closeness_to_the_previous_plan_decides_what_else_ties() -> None:
    cascade, without = swapped(())
    assert without.routing == 0
    near_first = [choice.gpus for choice in cascade.search().deploy(0, 12)]
    near_second = [choice.gpus for choice in cascade.search().deploy(1, 12)]
    assert near_first != near_second
    assert swapped(near_first)[1][2:] == (-70.0, sum(near_first), 0, 0)
    assert swapped(near_second)[1][2:] == (-70.0, sum(near_first), 0, 1)


def test_quality_decides_before_closeness() -> None:
    cascade, _ = swapped(())
    near_first = [choice.gpus for choice in cascade.search().deploy(0, 12)]
    better = dataclasses.replace(cascade, quality=np.array([70.0, 70.5]))
    assert better.search().exact(candidates=better.candidates(0.0), gpus=12, previous_gpus=near_first).routing == 1


@settings(max_examples=80)
@given(cascades, pools, st.sampled_from([0.0, 60.0, 75.0]), st.sampled_from([0.0, 5.0, 500.0]), st.data())
def test_routing_on_a_fixed_deployment_equals_brute_force(
    cascade: Cascade, gpus: int, quality_floor: float, mu_s: float, data: st.DataObject
) -> None:
    search = cascade.search()
    deployment = search.deploy(data.draw(st.integers(0, cascade.count - 1)), gpus)
    assume(deployment)
    objectives, loads = [], []
    for routing in range(cascade.count):
        latency_s, load = 0.0, 0.0
        for stage, choice in enumerate(deployment):
            share = cascade.share_of(routing, stage)
            if not share.any():
                continue
            if choice.shape < 0:
                latency_s = load = math.inf
                continue
            latency_s = max(latency_s, cascade.p95_s(share, stage, choice.shape, choice.replicas))
            (capacity_per_s,) = _core.capacities(
                replica=cascade.replicas[stage][choice.shape],
                tokens_in=cascade.cells[stage][0],
                tokens_out=cascade.cells[stage][1],
                share=share[None],
            )
            load = max(load, cascade.rate_per_s * share.sum() / (choice.replicas * capacity_per_s))
        objectives.append(latency_s + mu_s * max(0.0, quality_floor - cascade.quality_of(routing)) / 40.0)
        loads.append(load)
    found = search.route(deployment, quality_floor, mu_s, 40.0)
    assert found.objective == pytest.approx(min(objectives), rel=1e-12)
    if math.isfinite(found.objective):
        assert objectives[found.routing] == pytest.approx(min(objectives), rel=1e-12)
    else:
        assert loads[found.routing] == pytest.approx(min(loads), rel=1e-12)
    assert found.utilization == pytest.approx(loads[found.routing], rel=1e-12)


@settings(max_examples=40)
@given(cascades, pools)
def test_a_stage_alone_equals_brute_force(cascade: Cascade, gpus: int) -> None:
    cells = [lengths[0].size for lengths in cascade.cells]
    for stage in range(cascade.stages):
        # Every threshold before it is "never": the last row of its shares.
        share = np.ascontiguousarray(cascade.share[stage].reshape(-1, cells[stage])[-1])
        alone = dataclasses.replace(
            cascade,
            replicas=(cascade.replicas[stage],),
            cells=(cascade.cells[stage],),
            levels=(),
            share=(share[None],),
            quality=np.array([50.0]),
            routings=np.zeros((1, 0), np.int32),
            depth=(),
            requests=None,
            known={},
        )
        expected = best_allocation(alone, 0, Wanted(gpus))
        found = cascade.search().single(stage, gpus)
        assert math.isfinite(found.latency_s) == (expected is not None)
        if expected is not None:
            assert found.latency_s == expected.worst_first_s[0]


@settings(max_examples=60)
@given(cascades, st.sampled_from([0.0, 60.0, 75.0]))
def test_least_gpus_equals_brute_force(cascade: Cascade, quality_floor: float) -> None:
    most = 14
    candidates = cascade.candidates(quality_floor)
    enough = [gpus for gpus in range(1, most + 1) if best_plan(cascade, candidates, Wanted(gpus)) is not None]
    search = cascade.search()
    found = search.least_gpus(candidates)
    assert found == enough[0] if enough else found > most
    lightest = search.lightest(candidates)
    if enough:
        assert best_allocation(cascade, lightest, Wanted(enough[0])) is not None


@settings(max_examples=60)
@given(cascades, pools, st.sampled_from([0.0, 60.0, 75.0]))
@example(Cascade.of_grid(routing_grid(scored_requests(3, 8, 2, False), [[50]]), FLEETS[0][:2], rate_per_s=2.0), 8, 0.0)
def test_largest_rate_equals_brute_force(cascade: Cascade, gpus: int, quality_floor: float) -> None:
    """Some routing has an allocation a little below it, none has one a little above."""
    rate_per_s = cascade.search().max_rate_per_s(cascade.candidates(quality_floor), gpus)

    def plan_at(rate_per_s: float) -> Key | None:
        slower = dataclasses.replace(cascade, rate_per_s=rate_per_s, known={})
        return best_plan(slower, cascade.candidates(quality_floor), Wanted(gpus))

    if rate_per_s == 0:
        assert plan_at(1e-9) is None
        return
    assert plan_at(rate_per_s * (1 - 1e-6)) is not None
    assert plan_at(rate_per_s * (1 + 1e-6)) is None


def test_a_floor_no_routing_meets_has_no_plan() -> None:
    cascade = Cascade.of_grid(routing_grid(scored_requests(1, 6, 3, False), [[50], [50]]), FLEETS[0], rate_per_s=1.0)
    found = cascade.search().exact(candidates=cascade.candidates(100.0), gpus=12)
    assert (found.routing, found.stages, found.meet_floor) == (-1, [], 0)


def test_nothing_runs_where_nobody_goes_unless_the_paper_says_so() -> None:
    requests = scored_requests(2, 8, 3, False)
    grid = routing_grid(requests, [[0], [0]])
    cascade = Cascade.of_grid(grid, FLEETS[0], rate_per_s=1.0)
    everyone_at_first = next(r for r in range(grid.distinct) if grid.thresholds(r)[0] == 0)
    free = cascade.search().deploy(everyone_at_first, 12)
    assert [(choice.gpus, choice.latency_s) for choice in free[1:]] == [(0, 0.0), (0, 0.0)]
    strict = dataclasses.replace(cascade, idle_stage_keeps_replica=True).search().deploy(everyone_at_first, 12)
    assert [choice.gpus for choice in strict[1:]] == [2, 4]
    assert strict[0].gpus <= 6
    assert not dataclasses.replace(cascade, idle_stage_keeps_replica=True).search().deploy(everyone_at_first, 6)


@pytest.mark.parametrize("case", ["deepseek", "llama20k"])
def test_benchmark_cases_on_a_coarse_grid_and_a_small_pool(case: str, repository: Path) -> None:
    path = repository / "benchmarks" / "cases" / f"{case}.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there: this is not a checkout")
    problem = Problem.read(path)
    workload = problem.workload
    requests = workload.requests
    if requests.size > 2000:
        requests = requests.select(np.arange(2000))
    grid = routing_grid(requests, [[0, 40, 60, 75, 90], [0, 50, 70, 90]])
    fleet = [stage.replicas for stage in build_fleet(problem)]
    gpus = 16
    few = [[one for one in stage if one.shape.gpus <= gpus and one.shape.pp <= 4] for stage in fleet]
    for load, strict in ((0.1, False), (0.35, False), (0.2, True)):
        cascade = Cascade.of_grid(
            grid,
            few,
            rate_per_s=workload.rate_per_s * load,
            scv=workload.cv**2,
            idle_stage_keeps_replica=strict,
        )
        search = cascade.search()
        for quality_floor in np.quantile(grid.quality, [0.2, 0.6, 0.9]):
            candidates = cascade.candidates(quality_floor)
            expected = best_plan(cascade, candidates, Wanted(gpus))
            found = search.exact(candidates=candidates, gpus=gpus)
            assert (found.routing >= 0) == (expected is not None)
            if expected is not None:
                assert key_of(cascade, found.routing, found.stages, Wanted(gpus)) == expected


def test_deepseek_objective_never_rises_as_the_floor_falls(repository: Path) -> None:
    path = repository / "benchmarks" / "cases" / "deepseek.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there: this is not a checkout")
    planner = Planner(Problem.read(path))
    plans = [planner.plan(q_min=q_min, skip_models=False) for q_min in (84, 80, 76, 71, 70)]
    latencies_s = [plan.latency_s for plan in plans]
    assert latencies_s == sorted(latencies_s, reverse=True)
    assert latencies_s[-1] < 0.5 * latencies_s[0]
    assert all(plan.predicted.quality >= plan.q_min - 1e-9 for plan in plans)
    # The design's point: at the lowest floor the optimum runs no 671B at all.
    assert plans[-1].skipped_models == ("deepseek-r1",)
    assert plans[0].skipped_models != ("deepseek-r1",)
