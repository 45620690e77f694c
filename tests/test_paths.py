"""The search over whole paths against every deployment of every routing, to the last bit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.brute_force import engine
from reference.every_path import METRICS, Deployed, Key, Limits, PathCase, Query

from cascadia_fast import _core
from cascadia_fast.routing import routing_grid
from cascadia_fast.workload import ScoredRequests

SMALL = (engine("llama-3.1-8b"), engine("llama-3.1-8b", 2), engine("llama-3.1-8b", 4))
MIDDLE = (engine("mixtral-8x7b", 2), engine("mixtral-8x7b", 2, 2))
LARGE = (engine("llama-3.1-70b", 4),)
FLEETS = [(SMALL, MIDDLE, LARGE), (SMALL, SMALL, MIDDLE), (MIDDLE, SMALL, SMALL)]
JUDGES = [(engine("llama-3.1-8b"), engine("llama-3.1-8b", 2)), (engine("llama-3.1-8b"),)]


def scored_requests(seed: int, size: int, models: int, weighted: bool) -> ScoredRequests:
    """Scores with many ties, models whose quality grows, lengths of all sizes that a request keeps over the models."""
    rng = np.random.default_rng(seed)
    merit = np.clip(rng.normal(np.linspace(40, 70, models)[:, None], 25, (models, size)), 0, 100)
    lengthy = rng.normal(0, 0.7, size)
    return ScoredRequests(
        models=tuple(f"model{model}" for model in range(models)),
        request_ids=np.array([f"r{k}" for k in range(size)]),
        input_tokens=np.ceil(np.exp(rng.normal(6, 1, (models, size)))),
        output_tokens=np.ceil(np.exp(rng.normal(5, 0.5, (models, size)) + lengthy)),
        score=np.round(merit, -1),
        quality=np.clip(merit + rng.normal(0, 10, merit.shape), 0, 100),
        weight=rng.gamma(1.0, size=size) + 1e-3 if weighted else np.empty(0),
    )


@st.composite
def cases(draw: st.DrawFn, most_pools: int = 2) -> PathCase:
    models = draw(st.sampled_from([1, 2, 2, 3, 3]))
    requests = scored_requests(draw(st.integers(0, 10_000)), draw(st.integers(1, 9)), models, draw(st.booleans()))
    fleet = draw(st.sampled_from(FLEETS))[:models]
    judge = draw(st.sampled_from([(), *JUDGES])) if models > 1 else ()
    pools = draw(st.integers(1, most_pools))

    def pools_of(engines: tuple[_core.Replica, ...]) -> tuple[int, ...]:
        return tuple(draw(st.integers(0, pools - 1)) for _ in engines)

    return PathCase(
        requests=requests,
        grid=routing_grid(requests, [[0, 50, 70]] * (models - 1)),
        replicas=fleet,
        pools=tuple(pools_of(engines) for engines in fleet),
        # 1e-9/s: no waits at all, so that more replicas give the very same latencies.
        rate_per_s=draw(st.sampled_from([1e-9, 0.3, 2.0, 6.0, 12.0])),
        judge=judge,
        judge_pools=pools_of(judge),
        judge_delay_s=0.0 if judge else draw(st.sampled_from([0.0, 0.25, 5.0])),
        idle_stage_keeps_replica=draw(st.booleans()),
        limits=tuple(draw(station_limits()) for _ in range(models + bool(judge))) if draw(st.booleans()) else (),
    )


@st.composite
def station_limits(draw: st.DrawFn) -> Limits:
    return Limits(
        least_replicas=draw(st.sampled_from([0, 0, 1, 2])),
        most_replicas=draw(st.sampled_from([1_000_000, 1_000_000, 3])),
        spare_replicas=draw(st.sampled_from([0, 0, 1])),
        survive_s=draw(st.sampled_from([math.inf, math.inf, 20.0])),
    )


@st.composite
def problems(draw: st.DrawFn) -> tuple[PathCase, list[Deployed], Query]:
    """A case, all its deployments, and a question about them whose ceilings lie among their latencies."""
    case = draw(cases())
    gpus = tuple(draw(st.sampled_from([2, 4, 6, 9])) for _ in range(case.pool_count))
    plans = list(case.everything(gpus))

    def ceiling(metric: int) -> float:
        attained = sorted({plan.latencies_s[metric] for plan in plans})
        return draw(st.sampled_from([math.inf, math.inf, *attained[:: max(1, len(attained) // 8)]]))

    usd_per_gpu = tuple(draw(st.sampled_from([1.0, 2.95, 2.4])) for _ in gpus)
    fixed = draw(st.booleans())
    return (
        case,
        plans,
        Query(
            gpus=gpus,
            metric=draw(st.sampled_from(METRICS)),
            minimise=draw(st.sampled_from(["latency", "latency", "spend", "any"])),
            limits_s=(ceiling(0), ceiling(1), ceiling(2)),
            usd_per_gpu=usd_per_gpu,
            fixed_usd=tuple(draw(st.sampled_from([0.0, 0.7, 3.1])) for _ in range(case.grid.distinct))
            if fixed
            else None,
            budget_usd=draw(st.sampled_from([math.inf, math.inf, 12.0, 20.0])),
            previous_gpus=tuple(draw(st.integers(0, 6)) for _ in range(case.stations)) if draw(st.booleans()) else (),
        ),
    )


def asked(paths: _core.PathSearch, case: PathCase, query: Query, **more: Any) -> _core.ExactResult:
    routings = np.arange(case.grid.distinct)
    return paths.exact(
        candidates=routings,
        gpus=np.tile(np.array(query.gpus, np.int32), (routings.size, 1)),
        metric=query.metric,
        minimise=query.minimise,
        limits_s=query.limits_s,
        usd_per_gpu=query.usd_per_gpu,
        fixed_usd=None if query.fixed_usd is None else np.array(query.fixed_usd),
        budget_usd=query.budget_usd,
        previous_gpus=query.previous_gpus,
        beat=query.beat,
        **more,
    )


def best_key(case: PathCase, plans: list[Deployed], query: Query) -> Key | None:
    return min((key for plan in plans if (key := case.key(plan, query)) is not None), default=None)


def key_found(case: PathCase, plans: list[Deployed], query: Query, found: _core.ExactResult) -> Key | None:
    """The key of the plan found, looked up among all deployments."""
    said = [(choice.shape, choice.replicas, choice.gpus) for choice in found.stages]
    for plan in plans:
        if plan.routing == found.routing and said == [(c.shape, c.replicas, c.gpus) for c in plan.choices]:
            return case.key(plan, query)
    raise AssertionError(f"{said} of routing {found.routing} is no deployment")


@settings(max_examples=150)
@given(problems())
def test_exact_equals_brute_force(problem: tuple[PathCase, list[Deployed], Query]) -> None:
    case, plans, query = problem
    found = asked(case.paths(), case, query)
    expected = best_key(case, plans, query)
    assert found.complete
    assert (found.routing >= 0) == (expected is not None)
    if expected is None:
        return
    key = key_found(case, plans, query, found)
    if query.minimise == "any":
        assert key is not None
        return
    assert key == expected
    assert found.value == found.bound == expected.value
    assert found.worst_s == sorted((choice.latency_s for choice in found.stages), reverse=True)


@settings(max_examples=50)
@given(cases(), st.sampled_from([0.5, 0.9, 0.95]), st.data())
def test_quantile_equals_paths_added_up_one_by_one(case: PathCase, q: float, data: st.DataObject) -> None:
    paths = case.paths()
    routing = data.draw(st.integers(0, case.grid.distinct - 1))
    ways = [data.draw(st.sampled_from(case.ways(routing, station, 6) or [None])) for station in range(case.stations)]
    if None in ways:
        return
    choices = [way.choice for way in ways]
    expected = case.latencies_s(routing, ways, q)
    assert tuple(paths.quantile(routing, choices, metric, q) for metric in METRICS) == expected


def path_problem(rate_per_s: float = 6.0, **changes: Any) -> PathCase:
    """A cascade of three models with a dozen requests."""
    requests = scored_requests(5, 12, 3, True)
    grid = routing_grid(requests, [[0, 20, 40, 50, 60, 70, 90]] * 2)
    pools = tuple((0,) * len(engines) for engines in FLEETS[0])
    return PathCase(requests, grid, FLEETS[0], pools, rate_per_s, judge_delay_s=0.25, **changes)


@settings(max_examples=40)
@given(problems(), st.sampled_from([0.7, 1.0, 1.3]))
def test_only_plans_up_to_a_value_are_of_interest(
    problem: tuple[PathCase, list[Deployed], Query], factor: float
) -> None:
    case, plans, query = problem
    best = best_key(case, plans, query)
    assume(best is not None and query.minimise != "any")
    assert best is not None
    limited = dataclasses.replace(query, beat=best.value * factor)
    found = asked(case.paths(), case, limited)
    assert (found.routing >= 0) == (best.value <= limited.beat)
    if found.routing >= 0:
        assert key_found(case, plans, limited, found) == best


@settings(max_examples=40)
@given(problems())
def test_the_front_is_every_candidate_better_than_all_before(problem: tuple[PathCase, list[Deployed], Query]) -> None:
    case, plans, query = problem
    query = dataclasses.replace(
        query, minimise="latency" if query.minimise == "any" else query.minimise, previous_gpus=()
    )
    order = np.argsort([-case.quality_of(routing) for routing in range(case.grid.distinct)], kind="stable")
    expected = []
    least = math.inf
    for routing in order.tolist():
        key = best_key(case, [plan for plan in plans if plan.routing == routing], query)
        if key is not None and key.value < least:
            least = key.value
            expected.append(key)
    front = case.paths().front(
        candidates=order.astype(np.int64),
        gpus=np.tile(np.array(query.gpus, np.int32), (order.size, 1)),
        metric=query.metric,
        minimise=query.minimise,
        limits_s=query.limits_s,
        usd_per_gpu=query.usd_per_gpu,
        fixed_usd=None if query.fixed_usd is None else np.array(query.fixed_usd)[order],
        budget_usd=query.budget_usd,
    )
    assert [key_found(case, plans, query, found) for found in front] == expected


def facts(found: _core.ExactResult) -> tuple[Any, ...]:
    stages = [(choice.shape, choice.replicas, choice.gpus, choice.latency_s) for choice in found.stages]
    return found.routing, stages, found.value, found.bound, found.evaluated, found.pruned_by_latency


@pytest.mark.parametrize("metric", METRICS)
def test_results_do_not_depend_on_the_threads(metric: str) -> None:
    case = path_problem()
    query = Query(gpus=(16,), metric=metric)
    one, *others = [facts(asked(case.paths(), case, query, threads=threads)) for threads in (1, 2, 4, 7)]
    assert one[0] >= 0
    assert others == [one] * 3


@pytest.mark.parametrize("minimise", ["latency", "spend"])
def test_a_search_that_is_stopped_says_how_far_from_the_best_it_may_be(minimise: str) -> None:
    case = path_problem()
    query = Query(gpus=(40,), minimise=minimise, limits_s=(math.inf, 60.0, math.inf))
    best = asked(case.paths(), case, query)
    assert best.complete
    stopped = [asked(case.paths(), case, query, time_limit_s=limit_s) for limit_s in (1e-9, 1e-4, 1e-3, 1e-2)]
    assert not stopped[0].complete
    for found in stopped:
        assert found.bound <= best.value
        assert found.routing < 0 or found.value >= best.value
        assert not found.complete or found.value == best.value


def test_bounds_never_exceed_the_truth() -> None:
    """Every routing alone with a value of interest just at its optimum: no bound may rule that out."""
    for rate_per_s in (1e-9, 3.0, 9.0):
        case = path_problem(rate_per_s)
        paths = case.paths()
        for routing in range(case.grid.distinct):
            for metric in METRICS:
                one = {"candidates": np.array([routing]), "gpus": np.array([[12]], np.int32), "metric": metric}
                found = paths.exact(**one)
                if found.routing < 0:
                    continue
                assert paths.exact(**one, beat=found.value).value == found.value
                assert paths.exact(**one, beat=math.nextafter(found.value, 0)).routing < 0
                assert (
                    paths.exact(**one, minimise="any", limits_s=(math.inf, found.value, math.inf)).routing
                    == (routing if paths.quantile(routing, found.stages, "end_to_end_p95") <= found.value else -1)
                    or metric != "end_to_end_p95"
                )


def test_a_station_may_run_several_groups() -> None:
    case = path_problem()
    paths = case.paths()
    routing = case.grid.distinct - 1
    ways = [case.ways(routing, station, 8)[-1] for station in range(3)]
    alone = [[(1.0, way.latency_s, way.first_token_s)] for way in ways]
    for metric in METRICS[1:]:
        expected = paths.quantile(routing, [way.choice for way in ways], metric)
        assert paths.quantile_of(routing=routing, stations=alone, metric=metric) == expected
        twice = [[(0.3, way.latency_s, way.first_token_s), (0.7, way.latency_s, way.first_token_s)] for way in ways]
        assert paths.quantile_of(routing=routing, stations=twice, metric=metric) == expected
    # One station alone decides: of its requests the shares see each group.
    one = PathCase(
        case.requests,
        routing_grid(scored_requests(5, 12, 1, False), []),
        (SMALL,),
        ((0,) * len(SMALL),),
        1.0,
        draws=400,
    )
    size = one.ways(0, 0, 1)[0].latency_s.size
    groups = [[(0.2, np.full(size, 5.0), np.ones(size)), (0.8, np.full(size, 2.0), np.ones(size))]]
    shares = one.paths()
    assert shares.quantile_of(routing=0, stations=groups, metric="end_to_end_p95", q=0.75) == 2.0
    assert shares.quantile_of(routing=0, stations=groups, metric="end_to_end_p95", q=0.85) == 5.0
    assert shares.quantile_of(routing=0, stations=groups, metric="ttft_p95", q=0.85) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "p95"}, "metric is 'p95'"),
        ({"minimise": "gpus"}, "minimise is 'gpus'"),
        ({"gpus": np.ones((1, 2), np.int32)}, "gpus must have shape"),
        ({"usd_per_gpu": [0.0]}, "usd_per_gpu has 0.0"),
        ({"usd_per_gpu": [1.0, 1.0]}, "2 prices and there are 1 pools"),
        ({"fixed_usd": np.ones(3)}, "fixed_usd must have one number"),
        ({"limits_s": (math.nan, 1.0, 1.0)}, "limits_s has nan"),
        ({"time_limit_s": 0.0}, "time_limit_s is 0"),
        ({"candidates": np.array([10_000])}, "10000"),
    ],
)
def test_bad_questions_are_refused(changes: dict[str, Any], message: str) -> None:
    question: dict[str, Any] = {"candidates": np.array([0]), "gpus": np.array([[8]], np.int32), "metric": METRICS[1]}
    with pytest.raises(ValueError, match=message):
        path_problem().paths().exact(**{**question, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.zeros(36)}, "weight 0"),
        ({"weight": np.ones(35)}, "For 35 paths|For P paths"),
        ({"judge_delay_s": -1.0}, "judge_delay_s is -1"),
        ({"judge_sample": np.zeros((36, 2), np.int32)}, "give judge_sample if"),
        ({"escalates": np.full((36, 2), 99, np.int32)}, "escalates of path 0 is 99"),
        ({"sample": np.full((36, 3), 1_000_000, np.int32)}, r"sample\[0\] of path 0 is 1000000"),
    ],
)
def test_bad_paths_are_refused(changes: dict[str, Any], message: str) -> None:
    case = path_problem()
    paths: dict[str, Any] = {
        "search": case.search,
        "escalates": case.escalates,
        "sample": case.sample,
        "judge_sample": None,
        "weight": case.weight,
        "judge_delay_s": 0.1,
    }
    with pytest.raises(ValueError, match=message):
        _core.PathSearch(**{**paths, **changes})
