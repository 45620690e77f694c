"""Routing and counts on several pools against brute force over every deployment of small ones."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference.brute_force import engine
from test_search import scored_requests

from cascadia_fast import _core
from cascadia_fast.planning.capacity_bounds import LoadBounds, StationCapacities, proven_limit_s
from cascadia_fast.planning.capacity_program import Demand, relax, solve_counts
from cascadia_fast.planning.heterogeneous import PooledAnswer, PooledStation, PoolSupply, plan_pools
from cascadia_fast.planning.station_latency import latency_of
from cascadia_fast.routing import routing_grid

FloatArray = NDArray[np.float64]
CLOSE = 1e-6
NATIVE = (
    (engine("llama-3.1-8b"), engine("llama-3.1-8b", 2), engine("llama-3.1-8b", 4)),
    (engine("mixtral-8x7b", 2), engine("mixtral-8x7b", 4), engine("mixtral-8x7b", 2, 2)),
)


@dataclass
class Engines:
    """Replicas whose p95 is idle / (1 - rate / most): a queue, which can be turned round by hand."""

    idle_s: list[FloatArray]  # per station (prefixes, options)
    most_per_s: list[FloatArray]
    cap: float = 0.9
    calls: int = 0

    def capacities(
        self,
        *,
        station: int,
        prefixes: NDArray[np.int64],
        limit_s: float,
        enough_per_s: FloatArray | None = None,
        threads: int = 1,
    ) -> FloatArray:
        self.calls += 1
        most, idle_s = self.most_per_s[station][prefixes], self.idle_s[station][prefixes]
        found = most * np.clip(1 - idle_s / limit_s, 0, self.cap)
        if enough_per_s is None:
            return found
        return np.where(found <= enough_per_s, np.minimum(enough_per_s, most * self.cap), found)


@dataclass
class Case:
    """Everything that `plan_pools` takes."""

    engines: Engines
    stations: list[PooledStation]
    pools: list[PoolSupply]
    fixed_usd: FloatArray

    @property
    def candidates(self) -> int:
        return len(self.fixed_usd)

    def plan(self, **arguments: Any) -> PooledAnswer:
        return plan_pools(self.engines, self.stations, self.pools, fixed_usd=self.fixed_usd, **arguments)

    def latency_s(self, candidate: int, station: int, counts: tuple[int, ...], after: bool = False) -> float:
        """The station's p95 in closed form as far as possible: bisection on the limit."""
        known = self.stations[station]
        rate_per_s = known.rate_per_s[candidate]
        if rate_per_s == 0:
            return 0.0
        prefix = known.prefix[candidate : candidate + 1]

        def carried(limit_s: float) -> float:
            per_s = self.engines.capacities(station=station, prefixes=prefix, limit_s=limit_s)[0]
            return float(np.array(counts) @ per_s)

        low, high = 0.0, 1e7
        if carried(high) < rate_per_s * (1 - 1e-9):
            return math.inf
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (low, middle) if carried(middle) >= rate_per_s * (1 - 1e-9) else (middle, high)
        return high

    def deployments(self, candidate: int, station: int) -> list[tuple[tuple[int, ...], float]]:
        """Every count of every option that the pools could hold, with its p95; only those that keep the limits."""
        known = self.stations[station]
        ranges = [range(self.pools[p].gpus // g + 1) for p, g in zip(known.pool, known.gpus, strict=True)]
        found = []
        for counts in itertools.product(*ranges):
            if not known.least_replicas <= sum(counts) <= known.most_replicas:
                continue
            latency_s = self.latency_s(candidate, station, counts)
            if math.isfinite(latency_s) and self.survives(candidate, station, counts):
                found.append((counts, latency_s))
        return found

    def survives(self, candidate: int, station: int, counts: tuple[int, ...]) -> bool:
        known = self.stations[station]
        if known.spare_replicas == 0 or known.rate_per_s[candidate] == 0:
            return True
        for lost in np.flatnonzero(counts):
            left = tuple(n - (s == lost) for s, n in enumerate(counts))
            after_s = self.latency_s(candidate, station, left)
            if math.isinf(after_s) or after_s > known.survive_s * (1 + 1e-9):
                return False
        return True

    def best(self, minimise: str, limit_s: float, budget_usd: float) -> float:
        """The least value over all candidates and deployments; infinite when there is none."""
        best = math.inf
        for candidate in range(self.candidates):
            options = [self.deployments(candidate, station) for station in range(len(self.stations))]
            for chosen in itertools.product(*options):
                latency_s = max(latency for _, latency in chosen)
                spend = self.fixed_usd[candidate] + self.spend([counts for counts, _ in chosen])
                if latency_s > limit_s * (1 + 1e-9) or spend > budget_usd + 1e-9:
                    continue
                if self.fits([counts for counts, _ in chosen]):
                    gpus = sum(int(s.gpus @ np.array(n)) for s, (n, _) in zip(self.stations, chosen, strict=True))
                    best = min(best, {"latency": latency_s, "spend": spend, "gpus": gpus}[minimise])
        return best

    def fits(self, counts: list[tuple[int, ...]]) -> bool:
        used = np.zeros(len(self.pools))
        for station, chosen in zip(self.stations, counts, strict=True):
            np.add.at(used, station.pool, station.gpus * np.array(chosen))
        return bool((used <= [pool.gpus for pool in self.pools]).all())

    def spend(self, counts: list[tuple[int, ...]]) -> float:
        prices = np.array([pool.usd_per_gpu for pool in self.pools])
        return float(sum((s.gpus * prices[s.pool]) @ np.array(n) for s, n in zip(self.stations, counts, strict=True)))


def made(seed: int, *, pools: int, stations: int, candidates: int, gpus: int, limits: dict[str, Any]) -> Case:
    rng = np.random.default_rng(seed)
    engines = Engines([], [])
    found = []
    for index in range(stations):
        options = int(rng.integers(2, 4))
        pool = rng.integers(0, pools, options)
        size = rng.choice([1, 2], options)
        prefixes = candidates if index == stations - 1 else int(rng.integers(1, candidates + 1))
        prefix = np.sort(rng.integers(0, prefixes, candidates)) if prefixes < candidates else np.arange(candidates)
        rates = rng.choice([0.0, 0.5, 1.0, 2.0], prefixes, p=[0.1, 0.3, 0.3, 0.3])
        engines.idle_s.append(rng.uniform(1, 5, (prefixes, options)))
        engines.most_per_s.append(size * rng.uniform(0.3, 1.5, (prefixes, options)))
        own = limits if rng.random() < 0.7 else {}
        found.append(PooledStation(pool, size, prefix, rates[prefix], **own))
    supplies = [PoolSupply(int(rng.integers(1, gpus + 1)), float(rng.choice([1.0, 2.5]))) for _ in range(pools)]
    return Case(engines, found, supplies, rng.choice([0.0, 0.3], candidates))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    limits: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"least_replicas": 1},
                {"most_replicas": 2},
                {"spare_replicas": 1},
                {"spare_replicas": 1, "survive_s": 9.0},
                {"least_replicas": 2, "most_replicas": 3},
            ]
        )
    )
    return made(
        draw(st.integers(0, 100_000)),
        pools=draw(st.integers(1, 2)),
        stations=draw(st.integers(1, 2)),
        candidates=draw(st.integers(1, 4)),
        gpus=4,
        limits=limits,
    )


def assert_deployable(case: Case, found: PooledAnswer, limit_s: float, budget_usd: float) -> None:
    """The plan is what it says, and keeps every limit."""
    counts = []
    for index, (station, groups) in enumerate(zip(case.stations, found.stations, strict=True)):
        chosen = [0] * len(station.gpus)
        for group in groups:
            chosen[group.option] = group.replicas
        counts.append(tuple(chosen))
        latency_s = case.latency_s(found.routing, index, counts[-1])
        assert latency_s == pytest.approx(found.latency_s[index], rel=CLOSE)
        assert latency_s <= limit_s * (1 + CLOSE)
        rate_per_s = station.rate_per_s[found.routing]
        assert sum(group.replicas * group.rate_per_s for group in groups) == pytest.approx(rate_per_s)
        assert station.least_replicas <= sum(chosen) <= station.most_replicas
        assert case.survives(found.routing, index, counts[-1])
    assert case.fits(counts)
    assert case.fixed_usd[found.routing] + case.spend(counts) <= budget_usd + CLOSE


@settings(max_examples=120)
@given(cases(), st.sampled_from(["latency", "spend", "gpus"]), st.sampled_from([np.inf, 12.0, 6.0]), st.booleans())
def test_the_best_of_all_deployments_is_found(case: Case, minimise: Any, limit_s: float, tight: bool) -> None:
    budget_usd = 5.0 if tight else math.inf
    expected = case.best(minimise, limit_s, budget_usd)
    found = case.plan(minimise=minimise, limit_s=limit_s, budget_usd=budget_usd)
    if math.isinf(expected):
        assert (found.status, found.routing) == ("infeasible", -1)
        assert case.plan(minimise="any", limit_s=limit_s, budget_usd=budget_usd).status == "infeasible"
        return
    assert found.status == "optimal"
    assert found.gap <= 1e-3 * (1 + CLOSE)
    assert found.bound <= expected * (1 + CLOSE)
    assert expected * (1 - CLOSE) <= found.value <= expected * (1 + 1.1e-3)
    assert minimise != "gpus" or found.bound == found.value == expected
    assert_deployable(case, found, limit_s, budget_usd)
    some = case.plan(minimise="any", limit_s=limit_s, budget_usd=budget_usd)
    assert some.status == "optimal"
    assert_deployable(case, some, limit_s, budget_usd)


@settings(max_examples=30)
@given(cases(), st.sampled_from(["latency", "spend"]))
def test_only_what_beats_the_best_known_is_of_interest(case: Case, minimise: Any) -> None:
    found = case.plan(minimise=minimise)
    if found.routing < 0 or found.value == 0:
        return
    assert case.plan(minimise=minimise, beat=found.value * 0.99).routing == -1
    again = case.plan(minimise=minimise, beat=found.value * 1.01)
    assert again.value == pytest.approx(found.value, rel=1.1e-3)


def large(seed: int, candidates: int = 400) -> Case:
    """Three pools of 256 GPUs together, a cascade of three, and as many loads as candidates at the last."""
    rng = np.random.default_rng(seed)
    pool = np.repeat(np.arange(3), 4)
    gpus = np.tile([1, 2, 4, 8], 3)
    speed = np.repeat([1.0, 0.6, 1.4], 4)
    engines, stations = Engines([], []), []
    for prefixes, scale, rate in ((1, 4.0, 60.0), (20, 1.0, 30.0), (candidates, 0.3, 10.0)):
        prefix = np.arange(candidates) * prefixes // candidates
        engines.idle_s.append(rng.uniform(0.9, 1.1, (prefixes, 1)) * 20 / (speed * gpus**0.6) / scale**0.3)
        engines.most_per_s.append(rng.uniform(0.8, 1.2, (prefixes, 1)) * scale * speed * gpus**0.9)
        rates = rate * np.linspace(0.4, 1.0, prefixes) if prefixes > 1 else np.array([rate])
        stations.append(PooledStation(pool, gpus, prefix, rates[prefix]))
    return Case(
        engines, stations, [PoolSupply(96, 3.0), PoolSupply(96, 1.8), PoolSupply(64, 3.6)], np.zeros(candidates)
    )


@pytest.mark.parametrize("minimise", ["latency", "spend"])
def test_few_of_many_routings_are_tried_and_the_order_does_not_matter(minimise: Any) -> None:
    case = large(1)
    limit_s = math.inf if minimise == "latency" else 12.0
    found = case.plan(minimise=minimise, limit_s=limit_s)
    assert found.status == "optimal"
    assert found.gap <= 1e-3
    assert found.evaluated < 80
    assert found.evaluated + found.pruned == 400
    hinted = case.plan(minimise=minimise, limit_s=limit_s, first=[found.routing, 3])
    assert hinted.value == pytest.approx(found.value, rel=1.1e-3)


def test_a_pool_more_never_hurts_and_loss_is_paid_for() -> None:
    case = large(2, candidates=40)
    three = case.plan().value
    two = Case(case.engines, case.stations, [*case.pools[:2], PoolSupply(0, 3.6)], case.fixed_usd).plan().value
    assert three <= two
    spared = [
        PooledStation(s.pool, s.gpus, s.prefix, s.rate_per_s, spare_replicas=1, survive_s=three * 1.2)
        for s in case.stations
    ]
    assert Case(case.engines, spared, case.pools, case.fixed_usd).plan().value >= three * (1 - 1e-3)


def test_cheaper_as_the_deadline_loosens() -> None:
    case = large(3, candidates=40)
    spends = [case.plan(minimise="spend", limit_s=limit_s).value for limit_s in (8.0, 10.0, 14.0, 30.0)]
    assert spends == sorted(spends, reverse=True)
    assert spends[0] > spends[-1]


@pytest.mark.parametrize("minimise", ["latency", "spend"])
def test_time_runs_out_with_the_best_found_and_an_honest_bound(minimise: Any) -> None:
    case = large(4)
    limit_s = math.inf if minimise == "latency" else 12.0
    best = case.plan(minimise=minimise, limit_s=limit_s)
    for time_limit_s in (0.02, 0.1, 0.4):
        found = case.plan(minimise=minimise, limit_s=limit_s, time_limit_s=time_limit_s)
        assert found.status in ("optimal", "time_limit")
        assert (found.status == "optimal") == (found.gap <= 1e-3 * (1 + CLOSE))
        assert found.bound <= best.value * (1 + CLOSE)
        assert found.value >= best.bound * (1 - CLOSE)
    at_once = case.plan(minimise=minimise, limit_s=limit_s, time_limit_s=0.0)
    assert (at_once.status, at_once.routing) == ("time_limit", -1)


def test_of_what_is_proven_while_candidates_are_left_nothing_is_too_much() -> None:
    """With the clock stopped before the last candidates are looked at, low limits are still proven for all."""
    case = large(5, candidates=60)
    best = case.plan()
    usd_per_gpu = np.zeros(3)
    known = [
        StationCapacities(case.engines, index, station, station.usage(usd_per_gpu, budget=False), 1)
        for index, station in enumerate(case.stations)
    ]
    bounds = LoadBounds(known, np.tile([96.0, 96.0, 64.0], (60, 1)))
    before = [station.per_s.copy() for station in known]
    proven_s = proven_limit_s(known, bounds, np.arange(60), best.value * 1.5, math.inf)
    assert 0.2 * best.value < proven_s <= best.value
    assert all((station.per_s == per_s).all() for station, per_s in zip(known, before, strict=True))
    assert proven_limit_s(known, bounds, np.arange(60), best.value, 0.0) == 0.0


def test_of_equally_fast_deployments_the_cheapest_is_taken() -> None:
    engines = Engines([np.array([[2.0, 2.0]])], [np.array([[1.0, 1.0]])])
    station = PooledStation(np.array([0, 1]), np.array([1, 1]), np.array([0]), np.array([0.9]))
    for prices in ((3.0, 1.0), (1.0, 3.0)):
        found = plan_pools(engines, [station], [PoolSupply(1, prices[0]), PoolSupply(1, prices[1])])
        assert sum(g.replicas for g in found.stations[0]) == 2
    # At a load that one carries as fast as it can be, the other stays idle.
    alone = PooledStation(np.array([0, 1]), np.array([1, 1]), np.array([0]), np.array([1e-12]))
    found = plan_pools(engines, [alone], [PoolSupply(1, 3.0), PoolSupply(1, 1.0)], gap=1e-6)
    assert [(g.option, g.replicas) for g in found.stations[0]] == [(1, 1)]


def test_nobody_reaches_a_station_and_it_keeps_what_it_must() -> None:
    engines = Engines([np.array([[2.0, 1.0]])], [np.array([[1.0, 2.0]])])
    for least in (0, 2):
        station = PooledStation(
            np.array([0, 0]), np.array([1, 2]), np.array([0]), np.array([0.0]), least_replicas=least
        )
        found = plan_pools(engines, [station], [PoolSupply(4, 1.0)])
        assert found.status == "optimal"
        assert found.latency_s == (0.0,)
        assert sum(group.replicas for group in found.stations[0]) == least
        assert all(group.option == 0 for group in found.stations[0])


def demand(rate_per_s: float, per_s: list[float], gpus: list[int], **limits: int) -> Demand:
    return Demand(rate_per_s, np.array(per_s), np.array(per_s), np.array(gpus, float)[:, None], **limits)


def test_engines_that_others_beat_are_left_out() -> None:
    assert demand(1.0, [1.0, 1.9, 4.1], [1, 2, 4]).useful().tolist() == [0, 2]
    assert demand(1.0, [1.0, 1.0, 0.0], [1, 1, 1]).useful().tolist() == [0]
    # With few replicas two small ones do not stand for a large one.
    assert demand(1.0, [1.0, 1.9, 4.1], [1, 2, 4], most_replicas=3).useful().tolist() == [0, 1, 2]


def test_shadow_prices_prove_what_the_relaxation_says() -> None:
    demands = [demand(10.0, [1.0, 2.5], [1, 2]), demand(4.0, [0.5, 1.2], [2, 4])]
    supply = np.array([16.0])
    found = relax(demands, supply)
    assert found.share == pytest.approx((10 / 1.25 + 4 / 0.3) / 16)
    assert found.worth @ supply == pytest.approx(1.0)
    assert solve_counts(demands, supply, None, 10.0).status == "infeasible"
    enough = solve_counts(demands, np.array([24.0]), None, 10.0)
    assert all(d.holds(n) for d, n in zip(demands, enough.replicas, strict=True))


@given(st.integers(0, 10_000))
def test_latency_of_groups_is_where_they_just_carry_the_load(seed: int) -> None:
    rng = np.random.default_rng(seed)
    idle_s, most = rng.uniform(0.1, 30, 3), rng.uniform(0.1, 5, 3)
    replicas = rng.integers(0, 4, 3)
    rate_per_s = float(rng.uniform(0.1, 1.1) * (replicas @ most))

    def capacities(limit_s: float) -> FloatArray:
        return most * np.clip(1 - idle_s / limit_s, 0, 0.95)

    limit_s, per_s = latency_of(capacities, replicas, rate_per_s, float(rng.choice([np.inf, 1.0, 40.0])))
    if rate_per_s > 0.95 * (replicas @ most):
        assert math.isinf(limit_s)
    elif rate_per_s == 0:
        assert limit_s == 0
    else:
        assert replicas @ per_s >= rate_per_s * (1 - 1e-9)
        assert replicas @ capacities(limit_s * (1 - 1e-6)) < rate_per_s


def native_search(rate_per_s: float, *, mixed: bool, seed: int) -> tuple[_core.CascadeSearch, list[PooledStation]]:
    """A cascade of two on one pool, and its stations as candidates' rows and rates."""
    grid = routing_grid(scored_requests(seed, 12, 2, weighted=True), [[0, 30, 50, 70]])
    rows = [np.zeros(grid.distinct, np.int64), grid.routings[:, 0].astype(np.int64)]
    stations = [
        PooledStation(
            np.zeros(len(engines), np.int64),
            np.array([engine.shape.gpus for engine in engines]),
            row,
            rate_per_s * weight.sum(axis=1)[row],
        )
        for engines, row, weight in zip(NATIVE, rows, grid.cell_weight, strict=True)
    ]
    search = _core.CascadeSearch(
        models=_core.Models(
            replicas=[list(engines) for engines in NATIVE],
            cells=[(cells.tokens_in, cells.tokens_out, cells.spread_out) for cells in grid.cells],
        ),
        stations=[0, 1],
        depth=[0, 1],
        share=list(grid.cell_weight),
        quality=grid.quality,
        levels=[len(levels) for levels in grid.levels],
        routings=grid.routings,
        traffic=_core.Traffic(rate_per_s=rate_per_s, mixed=mixed),
    )
    return search, stations


@pytest.mark.parametrize("rate_per_s", [0.5, 6.0, 15.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_one_pool_any_mix_is_no_slower_than_what_the_native_search_finds(rate_per_s: float, seed: int) -> None:
    values = []
    for mixed in (False, True):
        search, stations = native_search(rate_per_s, mixed=mixed, seed=seed)
        candidates = np.arange(stations[0].prefix.size)
        found = search.exact(candidates=candidates, gpus=10)
        assert found.routing >= 0
        values.append(found.value)
    pooled = plan_pools(search, stations, [PoolSupply(10, 1.0)])
    assert pooled.status == "optimal"
    assert pooled.bound <= values[1] * (1 + CLOSE)
    assert pooled.value <= values[1] * (1 + 1.1e-3)
    assert values[1] <= values[0] * (1 + CLOSE)
    for index, (groups, latency_s) in enumerate(zip(pooled.stations, pooled.latency_s, strict=True)):
        for group in groups:
            detail = search.sampled(
                routing=pooled.routing, station=index, option=group.option, rate_per_s=group.rate_per_s
            )
            assert detail["p95_s"] <= latency_s * (1 + CLOSE)
            assert detail["utilization"] <= 0.9 * (1 + CLOSE)


def test_enough_capacity_comes_back_in_place_of_less() -> None:
    search, stations = native_search(6.0, mixed=False, seed=3)
    prefixes = np.unique(stations[1].prefix)
    exact = search.capacities(station=1, prefixes=prefixes, limit_s=20.0)
    most = search.capacities(station=1, prefixes=prefixes, limit_s=np.inf)
    assert (exact <= most).all()
    for factor in (0.0, 0.9, 1.1, 5.0):
        enough = np.ascontiguousarray(exact * factor + (factor > 1) * 1e-3)
        found = search.capacities(station=1, prefixes=prefixes, limit_s=20.0, enough_per_s=enough)
        assert (found <= np.maximum(exact * (1 + CLOSE), np.minimum(enough, most))).all()
        assert (found >= exact * (1 - CLOSE)).all()
