"""The halves of a case's traffic: what plans are made from never tells what they are tried on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast.comparison.splitting import rotated, split
from cascadia_fast.errors import InputError
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.problem import Problem
from cascadia_fast.workload import Arrivals, ScoredRequests


def scored(size: int, seed: int = 0, **fields: object) -> ScoredRequests:
    """Two models; longer requests are harder."""
    rng = np.random.default_rng(seed)
    length = rng.lognormal(6, 1, (2, size))
    quality = np.clip(90 - 8 * np.log(length) + rng.normal(0, 10, (2, size)) + 20, 0, 100)
    return ScoredRequests(
        models=("small", "large"),
        request_ids=np.array([f"r{place}" for place in range(size)]),
        input_tokens=rng.lognormal(5, 1, (2, size)),
        output_tokens=length,
        score=quality,
        quality=quality,
        **fields,  # type: ignore[arg-type]
    )


def test_every_request_is_in_one_half() -> None:
    for size in (2, 3, 9, 51, 100):
        requests = scored(size)
        halves = split(requests, seed=1)
        planning, test = (set(half.request_ids) for half in (halves.planning, halves.test))
        assert planning | test == set(requests.request_ids)
        assert not planning & test
        assert abs(len(planning) - len(test)) <= 1


def test_equal_seeds_split_alike_and_others_do_not() -> None:
    requests = scored(51)
    ids = [tuple(split(requests, seed).planning.request_ids) for seed in (3, 3, 4, 5)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_of_an_odd_number_any_one_may_be_left_over() -> None:
    requests = scored(5)
    larger = [split(requests, seed) for seed in range(60)]
    assert {halves.planning.size for halves in larger} == {2, 3}


@given(
    source=st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda drawn: len(set(drawn)) > 1),
    seed=st.integers(0, 5),
)
def test_copies_of_one_request_stay_together(source: list[int], seed: int) -> None:
    requests = scored(len(source), source=np.array(source))
    halves = split(requests, seed)
    assert not set(halves.planning.source) & set(halves.test.source)
    assert halves.planning.size + halves.test.size == len(source)
    groups = len(set(source))
    assert len(set(halves.planning.source)) in (groups // 2, groups - groups // 2)


@pytest.mark.parametrize("size", [500, 5000])
def test_copies_stay_together_where_a_simulated_judge_scores_each_anew(size: int) -> None:
    fields = Problem.example().fields.model_dump(exclude_unset=True, mode="json")
    fields["workload"]["bootstrap"] = {"size": size}
    fields["judge"]["simulated_auc"] = 0.8
    requests = Problem.from_dict(fields, base_dir=EXAMPLE_DIR).workload.requests
    halves = split(requests, seed=0)
    assert len(np.unique(halves.planning.source)) < halves.planning.size
    assert not np.intersect1d(halves.planning.source, halves.test.source).size
    assert halves.planning.size + halves.test.size == requests.size


def test_weights_go_with_their_requests_and_weightless_requests_go_away() -> None:
    weight = np.array([1.0, 2.0, 0.0, 4.0, 5.0, 0.0, 7.0, 8.0])
    requests = scored(8, weight=weight)
    halves = split(requests, seed=2)
    for half in (halves.planning, halves.test):
        original = np.array([weight[int(name[1:])] for name in half.request_ids])
        assert np.all(original > 0)
        assert np.allclose(half.weight, original / original.mean())


@pytest.mark.parametrize("weight", [np.ones(4), np.array([0.0, 0.0, 3.0, 0.0])])
def test_one_independent_request_cannot_be_split(weight: np.ndarray) -> None:
    requests = scored(4, source=np.array([0, 0, 0, 0]) if weight.all() else np.arange(4), weight=weight)
    with pytest.raises(InputError, match="one independent request.*at least two"):
        split(requests, seed=0)


def differences(requests: ScoredRequests, planning: np.ndarray, test: np.ndarray) -> list[float]:
    """By how much halves differ: weight, and mean lengths of both models."""
    weight = requests.weight
    tables = np.concatenate([requests.input_tokens, requests.output_tokens])
    means = [np.average(tables[:, half], axis=1, weights=weight[half]) for half in (planning, test)]
    return [float(weight[planning].sum() - weight[test].sum()), *(means[0] - means[1])]


@pytest.mark.parametrize("weighted", [False, True])
def test_halves_are_far_more_alike_than_random_ones(weighted: bool) -> None:
    weight = np.random.default_rng(1).uniform(0.5, 4, 60) if weighted else np.ones(60)
    requests = scored(60, weight=weight)
    balanced, random = [], []
    for seed in range(60):
        halves = split(requests, seed)
        found = [np.array([int(name[1:]) for name in half.request_ids]) for half in (halves.planning, halves.test)]
        balanced.append(differences(requests, *found))
        order = np.random.default_rng(seed).permutation(60)
        random.append(differences(requests, order[:30], order[30:]))
    smaller = np.std(balanced, axis=0)[not weighted :] / np.std(random, axis=0)[not weighted :]
    assert np.all(smaller < 0.5), smaller


def test_neither_half_is_favoured() -> None:
    requests = scored(51)
    larger = [
        split(requests, seed).planning.quality.mean() - split(requests, seed).test.quality.mean() for seed in range(200)
    ]
    assert abs(np.mean(larger)) < 3 * np.std(larger) / np.sqrt(200)


@pytest.mark.parametrize("field", ["score", "quality"])
def test_neither_scores_nor_quality_tell_the_halves(field: str) -> None:
    requests = scored(51)
    shuffled = np.random.default_rng(9).permuted(requests.quality, axis=1)
    changed = dataclasses.replace(requests, **{field: shuffled})  # type: ignore[arg-type]
    for seed in range(5):
        assert list(split(requests, seed).test.request_ids) == list(split(changed, seed).test.request_ids)


def test_a_rotated_trace_is_the_same_trace_begun_elsewhere() -> None:
    arrivals = Arrivals.from_times(np.cumsum(np.random.default_rng(0).exponential(2.0, 500)) + 1000)
    turned = rotated(arrivals, seed=3)
    assert turned.times_s is not None
    assert arrivals.times_s is not None
    assert turned.times_s[0] == 0
    assert np.all(np.diff(turned.times_s) >= 0)
    assert turned.times_s.size == arrivals.times_s.size
    assert turned.times_s[-1] == pytest.approx((arrivals.times_s.size - 1) / arrivals.rate_per_s, rel=0.02)
    assert (turned.rate_per_s, turned.cv, turned.dispersion) == (
        arrivals.rate_per_s,
        arrivals.cv,
        arrivals.dispersion,
    )
    starts = {float(rotated(arrivals, seed).times_s[1]) for seed in range(8)}  # type: ignore[index]
    assert len(starts) > 5


def test_a_rotated_trace_keeps_every_gap_but_one() -> None:
    times_s = np.array([10.0, 11.0, 13.0, 17.0, 18.5])
    arrivals = Arrivals.from_times(times_s)
    allowed = sorted([1.0, 2.0, 4.0, 1.5, 1 / arrivals.rate_per_s])
    for seed in range(20):
        turned = rotated(arrivals, seed).times_s
        assert turned is not None
        gaps = list(np.diff(turned))
        rest = list(allowed)
        for gap in gaps:
            nearest = min(rest, key=lambda one: abs(one - gap))
            assert nearest == pytest.approx(gap)
            rest.remove(nearest)
        assert len(rest) == 1


def test_a_plain_rate_has_nothing_to_rotate() -> None:
    arrivals = Arrivals.from_rate(3.0)
    assert rotated(arrivals, seed=1) is arrivals
