"""Whatever a search can be asked: ceilings, spend, fees, limits, fronts, capacities; against brute force."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.brute_force import Cascade, best_allocation, best_plan, key_of
from search_cases import SAFE, assert_deployable, cascades, limited, wishes


@settings(max_examples=250)
@given(cascades, st.sampled_from([0.0, 60.0]), st.data())
def test_any_wish_equals_brute_force(cascade: Cascade, quality_floor: float, data: st.DataObject) -> None:
    """Least latency or least spend, under a ceiling of latency, with GPUs and fees of each routing's own."""
    wanted, candidates = data.draw(wishes(cascade.count)), cascade.candidates(quality_floor)
    search = cascade.search()
    found = search.exact(**wanted.arguments(candidates), beat=wanted.beat, previous_gpus=wanted.previous)
    expected = best_plan(cascade, candidates, wanted)
    assert (found.routing >= 0) == (expected is not None)
    assert found.complete
    assert found.evaluated + found.pruned_by_load + found.pruned_by_need + found.pruned_by_latency == len(candidates)
    if expected is None:
        assert math.isinf(found.value)
        assert math.isinf(found.bound)
        return
    assert key_of(cascade, found.routing, found.stages, wanted) == expected
    assert found.value == found.bound == wanted.value(expected)
    assert_deployable(cascade, found.routing, found.stages, wanted.most_gpus(found.routing))


@settings(max_examples=200)
@given(limited(), st.data())
def test_limits_of_stations_are_kept(cascade: Cascade, data: st.DataObject) -> None:
    wanted, candidates = data.draw(wishes(cascade.count)), cascade.candidates(0.0)
    found = cascade.search().exact(**wanted.arguments(candidates), beat=wanted.beat, previous_gpus=wanted.previous)
    expected = best_plan(cascade, candidates, wanted)
    assert (found.routing >= 0) == (expected is not None)
    if expected is not None:
        assert key_of(cascade, found.routing, found.stages, wanted) == expected
        assert_deployable(cascade, found.routing, found.stages, wanted.most_gpus(found.routing))


@settings(max_examples=60)
@given(cascades, st.sampled_from([0.5, 2.0, 10.0, 60.0, math.inf]))
def test_engines_hold_a_limit_where_their_rates_within_it_add_up(cascade: Cascade, limit_s: float) -> None:
    search = cascade.search()
    for stage in range(cascade.stages):
        rows = cascade.share[stage].reshape(-1, cascade.cells[stage][0].size)
        within = search.capacities(station=stage, prefixes=np.arange(len(rows)), limit_s=limit_s)
        assert within.shape == (len(rows), len(cascade.replicas[stage]))
        enough = within.mean(axis=1, keepdims=True).repeat(within.shape[1], axis=1)
        sooner = search.capacities(
            station=stage, prefixes=np.arange(len(rows)), limit_s=limit_s, enough_per_s=enough, threads=2
        )
        assert (np.isclose(sooner, within, rtol=1e-6) | (within <= enough * SAFE)).all()
        assert (sooner <= np.maximum(enough, within) * SAFE).all()
        assert (sooner * SAFE >= within).all()
        for row, share in enumerate(rows[:3]):
            needed_per_s = cascade.rate_per_s * share.sum()
            for shape, rate_per_s in enumerate(within[row]):
                assert rate_per_s <= needed_per_s * SAFE
                for replicas in (1, 2, 5):
                    if needed_per_s == 0 or abs(replicas * rate_per_s / needed_per_s - 1) < 1e-6:
                        continue  # nobody comes, or too close to tell
                    latency_s = cascade.p95_s(np.ascontiguousarray(share), stage, shape, replicas)
                    assert (latency_s <= min(limit_s, 1e300)) == (replicas * rate_per_s > needed_per_s)


@settings(max_examples=80)
@given(cascades, st.data())
def test_some_plan_is_found_where_there_is_one(cascade: Cascade, data: st.DataObject) -> None:
    wanted = dataclasses.replace(data.draw(wishes(cascade.count)), minimise="any", beat=math.inf)
    candidates = cascade.candidates(0.0)
    found = cascade.search().exact(**wanted.arguments(candidates))
    assert (found.routing >= 0) == (best_plan(cascade, candidates, wanted) is not None)
    if found.routing >= 0:
        assert_deployable(cascade, found.routing, found.stages, wanted.most_gpus(found.routing))
        assert max(choice.latency_s for choice in found.stages) <= wanted.limit_s


@settings(max_examples=100)
@given(cascades, st.data())
def test_front_equals_brute_force(cascade: Cascade, data: st.DataObject) -> None:
    """Down a list of candidates, each that is better than all before."""
    wanted = dataclasses.replace(data.draw(wishes(cascade.count)), beat=math.inf, previous=())
    candidates = np.array(data.draw(st.permutations(range(cascade.count))), np.int64)
    best, expected = math.inf, []
    for routing in candidates:
        key = best_allocation(cascade, int(routing), wanted)
        if key is not None and wanted.value(key) < best:
            best = wanted.value(key)
            expected.append((int(routing), key))
    found = cascade.search().front(**wanted.arguments(candidates))
    assert [(one.routing, key_of(cascade, one.routing, one.stages, wanted)) for one in found] == expected
    assert [one.value for one in found] == [wanted.value(key) for _, key in expected]
