"""Small cascades, and what a search can be asked about them, for tests against brute force."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference.brute_force import Cascade, Limits, Option, Wanted, engine

from cascadia_fast import _core
from cascadia_fast.routing import RoutingGrid, routing_grid
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]
SMALL = (engine("llama-3.1-8b"), engine("llama-3.1-8b", 2), engine("llama-3.1-8b", 1, 2), engine("llama-3.1-8b", 4))
MIDDLE = (engine("mixtral-8x7b", 2), engine("mixtral-8x7b", 4), engine("mixtral-8x7b", 2, 2))
LARGE = (engine("llama-3.1-70b", 4), engine("llama-3.1-70b", 2, 2))
# Two stages of one model make p95s tie exactly where their traffic is the same.
FLEETS = [(SMALL, MIDDLE, LARGE), (SMALL, SMALL, MIDDLE), (MIDDLE, SMALL, SMALL), (SMALL, SMALL, SMALL)]
SAFE = 1 + 1e-6  # what HiGHS may be off by


def scored_requests(seed: int, size: int, stages: int, weighted: bool) -> ScoredRequests:
    """Scores with many ties, models whose quality grows, lengths of all sizes."""
    rng = np.random.default_rng(seed)
    merit = np.clip(rng.normal(np.linspace(40, 70, stages)[:, None], 25, (stages, size)), 0, 100)
    return ScoredRequests(
        models=tuple(f"model{stage}" for stage in range(stages)),
        request_ids=np.array([f"r{k}" for k in range(size)]),
        input_tokens=np.ceil(np.exp(rng.normal(6, 1, (stages, size)))),
        output_tokens=np.ceil(np.exp(rng.normal(5.5, 0.8, (stages, size)))),
        score=np.round(merit, -1),
        quality=np.clip(merit + rng.normal(0, 10, merit.shape), 0, 100),
        weight=np.where(rng.random(size) < 0.2, 0.0, rng.gamma(1.0, size=size)) + 1e-3 if weighted else np.empty(0),
    )


@st.composite
def real_cascades(draw: st.DrawFn) -> Cascade:
    """A grid as `routing_grid` makes it."""
    stages = draw(st.sampled_from([1, 2, 3, 3]))
    requests = scored_requests(draw(st.integers(0, 10_000)), draw(st.integers(1, 12)), stages, draw(st.booleans()))
    levels = [[0, 30, 50, 70]] * (stages - 1)
    fleet = draw(st.sampled_from(FLEETS))[:stages]
    return Cascade.of_grid(routing_grid(requests, levels), fleet, **draw(traffic()))


@st.composite
def made_up_cascades(draw: st.DrawFn) -> Cascade:
    """Loads drawn from few different ones, so that p95s, qualities and GPUs of many routings tie.

    Some have a station beside the cascade's own, as a judge of its answers is.
    """
    stages = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    depth = tuple(range(stages))
    if stages == 3 and draw(st.booleans()):
        depth = (0, 0, 1)
    levels = tuple(rng.integers(1, 4, depth[-1]).tolist())
    lengths = np.ceil(np.exp(rng.normal(6, 0.8, (2, 3))))
    loads = np.array([[0, 0, 0], [0.3, 0.1, 0.1], [0.1, 0.3, 0.1], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    rows = [math.prod(levels[:before]) for before in depth]
    share = [loads[rng.integers(1 if stage == 0 else 0, len(loads), rows[stage])] for stage in range(stages)]
    routings = np.array(list(itertools.product(*map(range, levels))), np.int32).reshape(rows[-1], depth[-1])
    return Cascade(
        replicas=draw(st.sampled_from(FLEETS))[:stages],
        cells=((lengths[0], lengths[1]),) * stages,
        levels=levels,
        share=tuple(share),
        quality=rng.choice([40.0, 60.0, 60.0 + 1e-12, 80.0], rows[-1]),
        routings=routings,
        depth=depth,
        **draw(traffic()),
    )


def requests_of(grid: RoutingGrid, requests: ScoredRequests) -> tuple[IndexArray, IndexArray, FloatArray]:
    """What a search adds the last share up from."""
    levels = [np.searchsorted(level, score, "right") for level, score in zip(grid.levels, requests.score, strict=False)]
    return np.stack(levels, axis=1).astype(np.int32), grid.cells[-1].cell_of, requests.weight


@st.composite
def lazy_cascades(draw: st.DrawFn) -> Cascade:
    """The last share is added up when it is asked for, and brute force is given what then comes out."""
    stages = draw(st.sampled_from([2, 3, 4]))
    requests = scored_requests(draw(st.integers(0, 10_000)), draw(st.integers(1, 12)), stages, draw(st.booleans()))
    grid = routing_grid(requests, [[0, 40, 60], [30, 70], [50]][: stages - 1])
    fleet = (*draw(st.sampled_from(FLEETS)), SMALL)
    cascade = Cascade.of_grid(grid, fleet[:stages], **draw(traffic()))
    cascade = dataclasses.replace(cascade, requests=requests_of(grid, requests))
    rows = grid.cell_weight[-1].copy()
    search = cascade.search()
    order = np.random.default_rng(0).permutation(cascade.count)  # blocks are made from one another, or anew
    for routing in order:
        row = search.share(routing, stages - 1)
        np.testing.assert_allclose(row, rows[grid.combination(routing)], rtol=1e-12, atol=1e-15)
        rows[grid.combination(routing)] = row
    return dataclasses.replace(cascade, share=(*cascade.share[:-1], rows))


@st.composite
def traffic(draw: st.DrawFn) -> dict[str, float | bool]:
    return {
        # 1e-9/s: no waits at all, so that more replicas give the very same p95.
        "rate_per_s": draw(st.sampled_from([1e-9, 0.3, 2.0, 6.0, 12.0, 25.0, 50.0])),
        "scv": draw(st.sampled_from([0.5, 1.0, 2.0, 9.0])),
        "max_utilization": draw(st.sampled_from([0.9, 0.9, 0.6, 0.99])),
        "idle_stage_keeps_replica": draw(st.booleans()),
    }


cascades = st.one_of(real_cascades(), made_up_cascades(), lazy_cascades())
pools = st.integers(1, 12)


@st.composite
def wishes(draw: st.DrawFn, count: int) -> Wanted:
    """Anything that `exact` can be asked, GPUs and fees by routing."""
    by_routing = st.lists(st.integers(0, 12), min_size=count, max_size=count).map(tuple)
    fees = st.lists(st.sampled_from([0.0, 1.0, 2.5, 30.0]), min_size=count, max_size=count).map(tuple)
    minimise = draw(st.sampled_from(["latency", "spend", "spend"]))
    values = [2.0, 5.0, 8.0, 12.5, 40.0] if minimise == "spend" else [1.0, 4.0, 10.0, 60.0]
    return Wanted(
        gpus=draw(pools | by_routing),
        minimise=minimise,
        limit_s=draw(st.just(math.inf) | st.sampled_from([0.5, 1.0, 3.0, 10.0, 60.0])),
        usd_per_gpu=draw(st.sampled_from([1.0, 2.5, 0.3])),
        fixed_usd=draw(st.none() | fees),
        beat=draw(st.just(math.inf) | st.sampled_from(values)),
        previous=draw(st.just(()) | st.tuples(*[st.integers(0, 8)] * 3)),
    )


@st.composite
def limited(draw: st.DrawFn) -> Cascade:
    """Stations with limits of their own."""
    cascade = draw(cascades)
    least = st.sampled_from([0, 0, 1, 2])
    limits = [
        Limits(
            least_replicas=draw(least),
            most_replicas=draw(st.sampled_from([2, 3, 1_000_000])),
            spare_replicas=draw(st.sampled_from([0, 0, 1])),
            survive_s=draw(st.sampled_from([math.inf, 4.0, 20.0])),
        )
        for _ in range(cascade.stages)
    ]
    return dataclasses.replace(cascade, limits=tuple(limits), known={})


def assert_deployable(cascade: Cascade, routing: int, chosen: Sequence[_core.Choice], gpus: int) -> None:
    """Every stage runs on what it says it runs on, and is as fast as it says."""
    assert sum(choice.gpus for choice in chosen) <= gpus
    for stage, choice in enumerate(chosen):
        said = Option(choice.gpus, choice.latency_s, choice.shape, choice.replicas)
        assert said in cascade.options(routing, stage, gpus)
