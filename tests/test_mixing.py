"""Two shapes at one stage, and what a stage must keep to, against brute force over all pairs of shapes and all counts.

The slow side asks `_core.latency_quantiles` for one p95 at a time: an engine that takes the rate x of a stage's rate is
one of rate / x such engines.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference.brute_force import engine

from cascadia_fast import _core
from cascadia_fast.fleet import build_fleet
from cascadia_fast.problem import Problem

FloatArray = NDArray[np.float64]
Engines = dict[int, int]  # shape: replicas
SMALL = (engine("llama-3.1-8b"), engine("llama-3.1-8b", 2), engine("llama-3.1-8b", 1, 2), engine("llama-3.1-8b", 4))
MIDDLE = (engine("mixtral-8x7b", 2), engine("mixtral-8x7b", 4), engine("mixtral-8x7b", 2, 2))
# Sizes with no common divisor.
ODD = (engine("llama-3.1-8b", 2), engine("llama-3.1-8b", 1, 3), engine("llama-3.1-8b", 1, 5))
FLEETS = [SMALL, MIDDLE, ODD, SMALL[1:]]
CLOSE = 1e-6  # relative; far above what either side rounds
MANY = 1e6  # replicas


@dataclass(frozen=True)
class Stage:
    """One stage that everyone reaches or, with shares that sum to less, a part of all requests."""

    engines: tuple[_core.Replica, ...]
    tokens_in: FloatArray
    tokens_out: FloatArray
    share: FloatArray
    rate_per_s: float
    scv: float = 1.0
    max_utilization: float = 0.9
    dispersion: FloatArray | None = None
    least_replicas: int = 0
    most_replicas: int = 1_000_000
    spare_replicas: int = 0
    survive_s: float = math.inf
    known: dict[Any, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def own_rate_per_s(self) -> float:
        return self.rate_per_s * float(self.share.sum())

    def gpus(self, engines: Engines) -> int:
        return sum(count * self.engines[shape].shape.gpus for shape, count in engines.items())

    def search(self, mixed: bool = True) -> _core.CascadeSearch:
        return _core.CascadeSearch(
            models=_core.Models(replicas=[list(self.engines)], cells=[(self.tokens_in, self.tokens_out)]),
            stations=[0],
            depth=[0],
            share=[self.share[None]],
            quality=np.zeros(1),
            levels=[],
            routings=np.zeros((1, 0), np.int32),
            traffic=_core.Traffic(
                rate_per_s=self.rate_per_s,
                scv=self.scv,
                max_utilization=self.max_utilization,
                dispersion=self.dispersion,
                mixed=mixed,
            ),
            limits=[
                _core.StageLimits(
                    least_replicas=self.least_replicas,
                    most_replicas=self.most_replicas,
                    spare_replicas=self.spare_replicas,
                    survive_s=self.survive_s,
                )
            ],
        )

    def least_load(self, shape: int) -> float:
        """Replicas, whole or not, that keep utilisation under the cap."""
        (capacity_per_s,) = _core.capacities(
            replica=self.engines[shape], tokens_in=self.tokens_in, tokens_out=self.tokens_out, share=self.share[None]
        )
        return max(1.0, self.own_rate_per_s / (self.max_utilization * capacity_per_s)) if capacity_per_s else math.inf

    def p95_s(self, shape: int, replicas: float) -> float:
        """p95 of an engine that takes 1 / replicas of the stage's requests; +inf above the cap."""
        key = (shape, replicas)
        if key not in self.known:
            self.known[key] = math.inf
            if replicas >= self.least_load(shape) * (1 - 1e-12):
                (self.known[key],) = _core.latency_quantiles(
                    replica=self.engines[shape],
                    tokens_in=self.tokens_in,
                    tokens_out=self.tokens_out,
                    share=self.share[None],
                    rate_per_s=np.array([self.own_rate_per_s / replicas]),
                    arrival_scv=1 + (self.scv - 1) * float(self.share.sum()),
                    replicas=replicas,
                    dispersion=self.dispersion,
                )
        return self.known[key]

    def least_holding(self, shape: int, limit_s: float) -> float:
        """Fewest replicas of one shape, whole or not, with p95 <= limit: bisected."""
        key = ("holding", shape, limit_s)
        if key not in self.known:
            lo, hi = self.least_load(shape), MANY
            if lo >= hi or self.p95_s(shape, hi) > limit_s:
                lo = hi = math.inf
            elif self.p95_s(shape, lo) <= limit_s:
                hi = lo
            while hi > lo * (1 + 1e-10):
                middle = math.sqrt(lo * hi)
                lo, hi = (lo, middle) if self.p95_s(shape, middle) <= limit_s else (middle, hi)
            self.known[key] = hi
        return self.known[key]

    def hold(self, engines: Engines, limit_s: float) -> bool:
        """Whether engines that share the stage's requests as it suits them have p95 <= limit."""
        parts = (count / self.least_holding(shape, limit_s) for shape, count in engines.items() if count)
        return sum(parts) >= 1 - 1e-9

    def allows(self, engines: Engines, limit_s: float) -> bool:
        count = sum(engines.values())
        if not self.least_replicas <= count <= self.most_replicas or count <= self.spare_replicas:
            return False
        if not self.spare_replicas:
            return self.hold(engines, limit_s)
        survivors = (
            {shape: engines[shape] - gone for shape, gone in zip(engines, lost, strict=True)}
            for lost in itertools.product(*(range(number + 1) for number in engines.values()))
            if sum(lost) == self.spare_replicas
        )
        survive_s = min(self.survive_s, 1e300)
        return self.hold(engines, limit_s) and all(self.hold(left, survive_s) for left in survivors)

    def deployments(self, gpus: int, shapes_each: int) -> Iterator[Engines]:
        sizes = [engine.shape.gpus for engine in self.engines]
        for shapes in itertools.combinations(range(len(sizes)), shapes_each):
            for counts in itertools.product(*(range(1, gpus // sizes[shape] + 1) for shape in shapes)):
                engines = dict(zip(shapes, counts, strict=True))
                if self.gpus(engines) <= gpus:
                    yield engines

    def fewest_gpus(self, limit_s: float, gpus: int, mixed: bool = True) -> float:
        """Of every pair of shapes and every pair of counts on at most `gpus` GPUs; +inf: none of them."""
        ways = itertools.chain.from_iterable(self.deployments(gpus, shapes) for shapes in ((1, 2) if mixed else (1,)))
        return min((self.gpus(way) for way in ways if self.allows(way, limit_s)), default=math.inf)


def engines_of(choice: _core.Choice) -> Engines:
    assert (choice.shape < 0) == (choice.replicas == 0)
    assert (choice.fill_shape < 0) == (choice.fill_replicas == 0)
    engines = {choice.shape: choice.replicas, choice.fill_shape: choice.fill_replicas}
    return {shape: count for shape, count in engines.items() if shape >= 0}


def need(search: _core.CascadeSearch, limit_s: float, gpus: int) -> _core.Choice | None:
    """The deployment with the fewest GPUs of those with p95 <= limit."""
    found = search.exact(candidates=np.zeros(1, np.int64), gpus=gpus, minimise="spend", limit_s=limit_s)
    return found.stages[0] if found.routing >= 0 else None


@st.composite
def stages(draw: st.DrawFn, limited: bool = False) -> Stage:
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    cells, reach = draw(st.integers(1, 4)), draw(st.sampled_from([0.3, 1.0]))
    wandering = draw(st.booleans()) and reach == 1  # `latency_quantiles` knows no dispersion of a part of a stream
    made = Stage(
        engines=draw(st.sampled_from(FLEETS)),
        tokens_in=np.ceil(np.exp(rng.normal(6, 0.8, cells))),
        tokens_out=np.ceil(np.exp(rng.normal(5.5, 0.8, cells))),
        share=rng.dirichlet(np.ones(cells)) * reach,
        rate_per_s=draw(st.sampled_from([0.3, 2.0, 6.0, 12.0, 25.0, 50.0])),
        scv=draw(st.sampled_from([0.5, 1.0, 4.0])),
        max_utilization=draw(st.sampled_from([0.9, 0.6])),
        dispersion=np.array([2.0, 3.0, 5.0, 9.0]) if wandering else None,
    )
    if not limited:
        return made
    at_ease_s = made.p95_s(0, MANY)
    return dataclasses.replace(
        made,
        least_replicas=draw(st.sampled_from([0, 0, 3, 5])),
        most_replicas=draw(st.sampled_from([5, 8, 1_000_000])),
        spare_replicas=draw(st.sampled_from([0, 1, 1, 2])),
        survive_s=draw(st.sampled_from([math.inf, 1.5 * at_ease_s, 3 * at_ease_s])),
    )


def limit_of(stage: Stage, tightness: float) -> float:
    """Between the p95 of idle engines and far more."""
    fastest_s = min(stage.p95_s(shape, MANY) for shape in range(len(stage.engines)))
    assume(math.isfinite(fastest_s))
    return fastest_s * (1 + tightness)


def assert_fewest(stage: Stage, limit_s: float, gpus: int, mixed: bool) -> None:
    fewest = stage.fewest_gpus(limit_s, gpus, mixed)
    assume(fewest == stage.fewest_gpus(limit_s * (1 - CLOSE), gpus, mixed))  # no tie that rounding decides
    assume(fewest == stage.fewest_gpus(limit_s * (1 + CLOSE), gpus, mixed))
    found = need(stage.search(mixed), limit_s, gpus)
    assert (math.inf if found is None else found.gpus) == fewest
    if found is not None:
        assert found.gpus == stage.gpus(engines_of(found))
        assert stage.allows(engines_of(found), limit_s * (1 + CLOSE))
        assert found.latency_s <= limit_s
        assert mixed or found.fill_shape < 0


TIGHTNESS = st.sampled_from([0.02, 0.1, 0.3, 1.0, 4.0])


@settings(max_examples=80)
@given(stages(), TIGHTNESS, st.integers(1, 20))
def test_fewest_gpus_for_a_limit_equal_brute_force(stage: Stage, tightness: float, gpus: int) -> None:
    assert_fewest(stage, limit_of(stage, tightness), gpus, mixed=True)


@settings(max_examples=120)
@given(stages(limited=True), TIGHTNESS, st.integers(1, 16), st.booleans())
def test_limits_of_a_stage_equal_brute_force(stage: Stage, tightness: float, gpus: int, mixed: bool) -> None:
    """Least and most replicas, and engines that may be lost whichever they are; with one shape and with two."""
    assert_fewest(stage, limit_of(stage, tightness), gpus, mixed)


@settings(max_examples=60)
@given(stages(limited=True), st.integers(1, 20), st.booleans())
def test_least_p95_equals_brute_force(stage: Stage, gpus: int, mixed: bool) -> None:
    """Some deployment is as fast as said, none is faster."""
    found = stage.search(mixed).single(0, gpus)
    # The stage alone answers every request of its share, as it does here anyway.
    if found.shape < 0:
        assert stage.fewest_gpus(1e300, gpus, mixed) == math.inf
        return
    assert found.gpus == stage.gpus(engines_of(found)) <= gpus
    assert stage.allows(engines_of(found), found.latency_s * (1 + CLOSE))
    assert stage.fewest_gpus(found.latency_s * (1 - CLOSE), gpus, mixed) == math.inf
    assert stage.fewest_gpus(found.latency_s * (1 + CLOSE), gpus, mixed) <= found.gpus


@settings(max_examples=60)
@given(stages(), st.integers(2, 24))
def test_groups_share_the_requests_so_that_neither_is_slower_than_it_must_be(stage: Stage, gpus: int) -> None:
    search = stage.search()
    choice = search.single(0, gpus)
    assume(choice.shape >= 0)
    rates_per_s = search.split(0, 0, choice)
    counts = (choice.replicas, choice.fill_replicas)
    assert np.dot(rates_per_s, counts) == pytest.approx(stage.own_rate_per_s, rel=1e-9)
    both = [(choice.shape, rates_per_s[0]), (choice.fill_shape, rates_per_s[1])]
    parts = [(shape, rate_per_s / stage.own_rate_per_s) for shape, rate_per_s in both if rate_per_s > 0]
    alone_s = [stage.p95_s(shape, max(1.0, 1 / part)) for shape, part in parts]
    assert max(alone_s) == pytest.approx(choice.latency_s, rel=CLOSE)
    if choice.fill_shape < 0:
        assert rates_per_s[1] == 0
        return
    for part in np.linspace(0.01, 0.99, 99):  # of the requests, to the first group
        slower_s = max(
            stage.p95_s(choice.shape, max(1.0, choice.replicas / part)),
            stage.p95_s(choice.fill_shape, max(1.0, choice.fill_replicas / (1 - part))),
        )
        assert slower_s >= choice.latency_s * (1 - CLOSE)


@settings(max_examples=60)
@given(stages(), TIGHTNESS)
def test_rate_within_a_limit_equals_brute_force(stage: Stage, tightness: float) -> None:
    limit_s = limit_of(stage, tightness)
    search = stage.search()
    found = search.capacities(station=0, prefixes=np.zeros(1, np.int64), limit_s=limit_s)
    assert found.shape == (1, len(stage.engines))
    for shape, rate_per_s in enumerate(found[0]):
        assert rate_per_s == pytest.approx(stage.own_rate_per_s / stage.least_holding(shape, limit_s), rel=CLOSE)
    unlimited = search.capacities(station=0, prefixes=np.zeros(1, np.int64), limit_s=math.inf)[0]
    for shape, rate_per_s in enumerate(unlimited):
        assert rate_per_s == pytest.approx(stage.own_rate_per_s / stage.least_load(shape), rel=CLOSE)


@settings(max_examples=40)
@given(stages(limited=True), st.integers(1, 24))
def test_mixing_is_never_worse_and_changes_nothing_where_it_does_not_help(stage: Stage, gpus: int) -> None:
    one, two = stage.search(mixed=False).single(0, gpus), stage.search().single(0, gpus)
    assert two.latency_s <= one.latency_s
    if two.fill_shape < 0:
        assert (two.shape, two.replicas, two.gpus, two.latency_s) == (one.shape, one.replicas, one.gpus, one.latency_s)
    else:
        assert two.latency_s < one.latency_s
    single = dataclasses.replace(stage, engines=stage.engines[:1], known={})
    one, two = single.search(mixed=False).single(0, gpus), single.search().single(0, gpus)
    assert (two.shape, two.replicas, two.latency_s, two.fill_shape) == (one.shape, one.replicas, one.latency_s, -1)


@settings(max_examples=40)
@given(stages(limited=True), st.booleans())
def test_tables_fall_and_tell_what_single_entries_tell(stage: Stage, mixed: bool) -> None:
    gpus = 24
    latency_s = stage.search(mixed).table(0, 0, gpus)[0]
    assert (latency_s[1:] <= latency_s[:-1]).all()
    assert np.array_equal(latency_s, stage.search(mixed).table(0, 0, gpus, threads=3)[0])
    search = stage.search(mixed)
    for f in (5, 24, 11, 17):  # what was asked before makes no difference
        assert search.single(0, f).latency_s == pytest.approx(latency_s[f], rel=1e-8)


@settings(max_examples=40)
@given(stages(limited=True), TIGHTNESS)
def test_needs_grow_with_what_is_asked(stage: Stage, tightness: float) -> None:
    limit_s = limit_of(stage, tightness)

    def fewest(changed: Stage, limit_s: float = limit_s) -> float:
        found = need(changed.search(), limit_s, 64)
        return math.inf if found is None else found.gpus

    here = fewest(stage)
    assert here >= fewest(stage, limit_s * 1.5)
    assert here <= fewest(dataclasses.replace(stage, spare_replicas=stage.spare_replicas + 1))
    free = dataclasses.replace(stage, most_replicas=10**6)
    assert here >= fewest(free)
    assert fewest(free) <= fewest(dataclasses.replace(free, least_replicas=stage.least_replicas + 2))
    assert here >= fewest(dataclasses.replace(stage, survive_s=math.inf))


@pytest.mark.parametrize(("least_replicas", "gpus"), [(0, 0), (3, 3)])
def test_a_stage_that_nobody_reaches_keeps_its_least_replicas(least_replicas: int, gpus: int) -> None:
    nobody = Stage(SMALL, np.full(1, 300.0), np.full(1, 300.0), np.zeros(1), 1.0, least_replicas=least_replicas)
    (choice,) = nobody.search().deploy(0, 4)
    assert (choice.gpus, choice.latency_s) == (gpus, 0.0)
    assert bool(nobody.search().deploy(0, 2)) == (gpus <= 2)


@pytest.mark.parametrize("case", ["deepseek", "llama20k"])
def test_p95_falls_with_the_part_of_the_requests_that_an_engine_takes(case: str, repository: Path) -> None:
    """What mixing rests on, for the engines and lengths of both cases."""
    path = repository / "benchmarks" / "cases" / f"{case}.yaml"
    if not path.exists():
        pytest.skip(f"{path} is not there: this is not a checkout")
    problem = Problem.read(path)
    requests = problem.workload.requests.select(np.arange(50))
    for index, fleet in enumerate(build_fleet(problem)):
        stage = Stage(
            engines=tuple(fleet.replicas),
            tokens_in=requests.input_tokens[index].astype(float),
            tokens_out=requests.output_tokens[index].astype(float),
            share=np.full(requests.size, 1 / requests.size),
            rate_per_s=problem.workload.rate_per_s,
            scv=problem.workload.cv**2,
            dispersion=problem.workload.swings,
        )
        for shape in range(len(stage.engines)):
            least = stage.least_load(shape)
            if math.isinf(least):
                continue
            latencies_s = [stage.p95_s(shape, least * 1.03**step) for step in range(100)]
            assert latencies_s == sorted(latencies_s, reverse=True)


def allocations(tables: Sequence[FloatArray], gpus: int) -> Iterator[tuple[float, ...]]:
    for counts in itertools.product(range(gpus + 1), repeat=len(tables)):
        if sum(counts) <= gpus:
            yield tuple(sorted((table[f] for table, f in zip(tables, counts, strict=True)), reverse=True))


@settings(max_examples=120)
@given(st.integers(0, 10_000), st.integers(3, 14), st.sampled_from([2.0, 8.0, 20.0]))
def test_whole_cascades_equal_brute_force_over_the_stages_tables(seed: int, gpus: int, rate_per_s: float) -> None:
    """The slowest stage as fast as can be, then the next: over every routing and every division of the GPUs."""
    rng = np.random.default_rng(seed)
    lengths = np.ceil(np.exp(rng.normal(6, 0.8, (2, 3))))
    shares = [rng.dirichlet(np.ones(3), rows) * rng.uniform(0.2, 1, (rows, 1)) for rows in (1, 4)]
    search = _core.CascadeSearch(
        models=_core.Models(replicas=[list(SMALL), list(MIDDLE)], cells=[(lengths[0], lengths[1])] * 2),
        stations=[0, 1],
        depth=[0, 1],
        share=[np.ascontiguousarray(share) for share in shares],
        quality=np.full(4, 50.0),
        levels=[4],
        routings=np.arange(4, dtype=np.int32)[:, None],
        traffic=_core.Traffic(rate_per_s=rate_per_s, mixed=True),
    )
    found = search.exact(candidates=np.arange(4), gpus=gpus)
    best = min(
        worst_first
        for routing in range(4)
        for worst_first in allocations([search.table(routing, stage, gpus)[0] for stage in (0, 1)], gpus)
    )
    assert (found.routing >= 0) == math.isfinite(best[0])
    if found.routing >= 0:
        assert sum(choice.gpus for choice in found.stages) <= gpus
        assert sorted((choice.latency_s for choice in found.stages), reverse=True) == pytest.approx(best, rel=1e-8)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"least_replicas": -1}, "least_replicas is -1"),
        ({"least_replicas": 3, "most_replicas": 2}, "most_replicas is 2"),
        ({"spare_replicas": -2}, "spare_replicas is -2"),
        ({"survive_s": 0.0}, "survive_s is 0"),
        ({"survive_s": math.nan}, "survive_s is nan"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.StageLimits(**limits)
