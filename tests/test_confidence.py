from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascadia_fast.errors import InputError
from cascadia_fast.planning import confidence
from cascadia_fast.planning.confidence import (
    check_confidence,
    few_requests,
    quality_bounds,
    replicates_for,
    requests_needed,
    requests_to_meet,
)
from cascadia_fast.routing import RoutingGrid, route, routing_grid
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]


def requests_of(
    size: int, seed: int = 0, models: int = 3, *, right_or_wrong: bool = False, noise: float = 15.0
) -> ScoredRequests:
    """Better models answer better, hard requests are hard for all, and scores are noisy qualities."""
    rng = np.random.default_rng(seed)
    level = np.linspace(50, 80, models)[:, None] + rng.normal(0, 20, size) + rng.normal(0, 10, (models, size))
    quality = np.where(rng.random((models, size)) * 100 < level, 100.0, 0.0) if right_or_wrong else np.rint(level)
    quality = np.clip(quality, 0, 100)
    return ScoredRequests(
        models=tuple(f"m{k}" for k in range(models)),
        request_ids=np.arange(size).astype(str),
        input_tokens=np.full((models, size), 10.0),
        output_tokens=np.full((models, size), 10.0),
        score=np.clip(np.rint(quality * 0.7 + 20 + rng.normal(0, noise, (models, size))), 0, 100),
        quality=quality,
    )


def bounds_of(requests: ScoredRequests, level: float = 0.95, **options: float | int | None) -> FloatArray:
    (bounds,) = quality_bounds([(requests, routing_grid(requests))], level, **options)  # type: ignore[arg-type]
    return bounds


def means_of(grid: RoutingGrid) -> FloatArray:
    return grid.quality[grid.combinations]


def truth_of(population: ScoredRequests, grid: RoutingGrid) -> FloatArray:
    """Quality in the population of every distinct routing of a sample's grid."""
    return routing_grid(population, list(grid.levels)).quality[grid.combinations]


@pytest.mark.parametrize("models", [1, 2, 3, 4])
def test_mean_and_spread_are_those_of_each_routing(models: int) -> None:
    rng = np.random.default_rng(models)
    requests = dataclasses.replace(requests_of(300, models, models), weight=rng.random(300) + 0.1)
    grid = routing_grid(requests, [np.arange(0, 101, 20.0)] * (models - 1))
    surface = confidence._surface(requests, grid.bins.escalates, [level.size for level in grid.levels])
    np.testing.assert_allclose(surface.mean, grid.quality, rtol=1e-12)
    for index in range(0, grid.distinct, 7):
        served = requests.quality[route(requests, grid.thresholds(index)), np.arange(requests.size)]
        mean = np.average(served, weights=requests.weight)
        variance = np.average((served - mean) ** 2, weights=requests.weight)
        expected = math.sqrt(variance + mean**2 / requests.effective_size)
        assert surface.spread[grid.combination(index)] == pytest.approx(expected, rel=1e-9)


def test_weights_are_poisson_and_differ_between_replicates() -> None:
    from cascadia_fast.planning import confidence_kernels as kernels

    drawn = np.empty((200, 1000))
    for replicate in range(200):
        kernels.poisson_weights(3, replicate, kernels.POISSON, drawn[replicate])
    # Mean, variance and third central moment of a Poisson number with mean 1 are all 1.
    error = np.sqrt(drawn.size)
    assert drawn.mean() == pytest.approx(1, abs=5 / error)
    assert drawn.var() == pytest.approx(1, abs=5 * math.sqrt(3) / error)
    assert ((drawn - 1) ** 3).mean() == pytest.approx(1, abs=5 * math.sqrt(40) / error)
    assert np.abs(np.corrcoef(drawn) - np.eye(200)).max() < 6 / math.sqrt(1000)
    shifted = np.corrcoef(drawn[:-1, 4:].ravel(), drawn[1:, :-4].ravel())[0, 1]
    assert abs(shifted) < 5 / error


@pytest.mark.parametrize("floor", [None, 65.0])
def test_bounds_are_the_same_bits_on_any_number_of_threads(floor: float | None) -> None:
    requests = requests_of(400)
    one = bounds_of(requests, floor=floor)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(one, bounds_of(requests, floor=floor, threads=threads))
    assert (bounds_of(requests, floor=floor, seed=1) != one).any()


@given(st.integers(0, 10_000), st.booleans(), st.floats(30, 90))
def test_bounds_lie_below_means_and_fall_with_confidence(seed: int, right_or_wrong: bool, floor: float) -> None:
    requests = requests_of(60, seed, 2, right_or_wrong=right_or_wrong)
    means = means_of(routing_grid(requests))
    sure, less_sure, asked = bounds_of(requests), bounds_of(requests, 0.8), bounds_of(requests, floor=floor)
    assert (sure < means).all()
    assert (sure >= 0).all()
    assert (sure <= less_sure).all()
    assert (asked >= sure).all()
    # A floor only lifts bounds that the test near it lets pass, and only up to it.
    assert (asked[asked != sure] == floor).all()
    assert (means[asked >= floor] >= floor).all()


def coverage(population: ScoredRequests, size: int, samples: int, floor: float | None) -> tuple[float, float]:
    """Share of samples in which all bounds hold, and in which all routings that pass the floor truly meet it."""
    held = met = 0
    for seed in range(samples):
        rows = np.random.default_rng(seed).integers(0, population.size, size)
        requests = dataclasses.replace(population.select(rows), source=np.arange(size))
        grid = routing_grid(requests)
        truth = truth_of(population, grid)
        (bounds,) = quality_bounds([(requests, grid)], 0.95, floor=floor)
        held += bool((bounds <= truth).all())
        met += floor is None or bool((truth[bounds >= floor] >= floor).all())
    return held / samples, met / samples


@pytest.mark.parametrize("size", [51, 400])
@pytest.mark.parametrize("right_or_wrong", [False, True])
def test_all_bounds_hold_together_as_often_as_stated(size: int, right_or_wrong: bool) -> None:
    held, _ = coverage(requests_of(20_000, 5, 2, right_or_wrong=right_or_wrong), size, 300, None)
    # Three standard errors of a share of 300 below 95 %; far above it the bounds would be needlessly low.
    assert 0.912 <= held <= 0.99


@pytest.mark.parametrize("size", [51, 400])
def test_every_routing_that_passes_the_floor_truly_meets_it_as_often_as_stated(size: int) -> None:
    population = requests_of(20_000, 5, 2, right_or_wrong=True)
    floor = float(np.quantile(routing_grid(population).quality, 0.5))
    _, met = coverage(population, size, 300, floor)
    assert met >= 0.912


def test_near_the_floor_more_routings_pass() -> None:
    requests = requests_of(2000)
    floor = float(np.quantile(means_of(routing_grid(requests)), 0.5))
    plain, asked = bounds_of(requests), bounds_of(requests, floor=floor)
    assert (asked >= floor).sum() > (plain >= floor).sum()


def test_resampled_rows_look_no_surer_than_their_sample() -> None:
    sample = requests_of(60, models=2)
    blown_up = sample.bootstrap(0, 5000)
    mistaken = dataclasses.replace(blown_up, source=np.arange(5000))

    def width(requests: ScoredRequests) -> float:
        return float((means_of(routing_grid(requests)) - bounds_of(requests)).mean())

    assert width(blown_up) > 0.8 * width(sample)
    assert width(mistaken) < 0.2 * width(sample)


def test_a_weight_of_two_is_a_row_twice() -> None:
    sample = requests_of(100, models=2)
    twice = np.arange(100) < 30
    weighted = dataclasses.replace(sample, weight=np.where(twice, 2.0, 1.0))
    repeated = sample.select(np.repeat(np.arange(100), 1 + twice))
    np.testing.assert_allclose(bounds_of(weighted), bounds_of(repeated), rtol=1e-9)


def parts_of(requests: ScoredRequests) -> list[tuple[ScoredRequests, RoutingGrid]]:
    models = range(len(requests.models))
    subsets = [subset for count in range(len(models), 0, -1) for subset in combinations(models, count)]
    return [(part, routing_grid(part)) for part in map(requests.of_models, subsets)]


def test_a_subset_is_a_cascade_that_never_accepts_the_models_it_skips() -> None:
    requests = requests_of(200)
    parts = parts_of(requests)
    together = quality_bounds(parts, 0.95)
    whole_grid, whole = parts[0][1], together[0]
    for (part, grid), bounds in zip(parts[1:], together[1:], strict=True):
        for index in range(0, grid.distinct, 5):
            levels = dict(zip(part.models, grid.thresholds(index), strict=False))
            levels[part.models[-1]] = 0.0
            thresholds = [levels.get(model, math.inf) for model in requests.models[:-1]]
            same = whole_grid.routing_of(requests, thresholds)
            assert bounds[index] == pytest.approx(whole[same], rel=1e-9)


def test_subsets_that_no_cascade_contains_count_too() -> None:
    requests = requests_of(200)
    pairs = [part for part in parts_of(requests) if len(part[0].models) == 2]
    together = quality_bounds(pairs, 0.95)
    alone = [quality_bounds([pair], 0.95)[0] for pair in pairs]
    for both, one in zip(together, alone, strict=True):
        assert (both <= one).all()
    assert any((both < one).any() for both, one in zip(together, alone, strict=True))


def test_large_grids_are_bootstrapped_on_fewer_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of(500, noise=20)
    grid = routing_grid(requests)

    def errors(deviations: FloatArray) -> float:
        return float(np.quantile(deviations.max(axis=1), 0.95))

    full = errors(confidence._extremes([(requests, grid)], 1000, None, 0, 1)[0])
    monkeypatch.setattr(confidence, "COMBINATIONS", 500)
    fewer = confidence._surface_at(requests, grid, confidence._fewer_levels(grid))
    assert fewer.mean.size <= 500
    uncorrected = errors(confidence._replicated(requests, fewer, 1000, None, 0, 1)[0]) * math.sqrt(500)
    corrected = errors(confidence._extremes([(requests, grid)], 1000, None, 0, 1)[0])
    assert uncorrected < full - 0.05
    assert corrected == pytest.approx(full, abs=0.03)


@pytest.mark.parametrize("value", [0.0, 60.0, 100.0])
def test_a_sample_without_any_spread_leaves_room_for_what_it_did_not_show(value: float) -> None:
    requests = requests_of(50, models=2)
    flat = dataclasses.replace(requests, quality=np.full((2, 50), value))
    # That 50 requests all miss a part of the traffic of this size has a chance of 5 %.
    unseen = 1 - 0.05 ** (1 / 50)
    np.testing.assert_allclose(bounds_of(flat), value * (1 - unseen))


def test_a_model_alone_has_a_bound() -> None:
    requests = requests_of(200, models=1)
    (bound,) = bounds_of(requests)
    standard_error = requests.quality.std() / math.sqrt(200)
    assert requests.quality.mean() - 2 * standard_error < bound < requests.quality.mean() - 1.4 * standard_error


@pytest.mark.parametrize("level", [0.3, 1.0, 0.9995, math.nan])
def test_confidence_outside_its_range_is_refused(level: float) -> None:
    with pytest.raises(InputError, match=r"q_confidence is \S+; give 0\.5 to 0\.999"):
        check_confidence(requests_of(100), level)


@pytest.mark.parametrize(("level", "needed"), [(0.95, 29), (0.99, 44), (0.999, 66)])
def test_confidence_that_the_sample_cannot_support_says_how_many_requests_would(level: float, needed: int) -> None:
    assert requests_needed(level) == needed
    check_confidence(requests_of(needed), level)
    with pytest.raises(InputError, match=f"{needed - 1} independent ones and {needed} are needed") as caught:
        bounds_of(requests_of(needed - 1), level)
    supported = float(str(caught.value).rsplit(" ", 1)[1])
    check_confidence(requests_of(needed - 1), supported)


def test_few_independent_requests_support_no_confidence_however_many_rows_repeat_them() -> None:
    with pytest.raises(InputError, match="its 5,000 requests count as"):
        bounds_of(requests_of(10).bootstrap(0, 5000))


def test_replicates_leave_fifty_beyond_the_quantile() -> None:
    assert [replicates_for(level) for level in (0.5, 0.95, 0.99)] == [1000, 1000, 5000]


def test_requests_to_meet_a_floor_would_meet_it() -> None:
    requests = requests_of(200, models=2)
    parts = [(requests, routing_grid(requests))]
    best = float(means_of(parts[0][1]).max())
    floor = best - 1.0
    bounds = quality_bounds(parts, 0.95)
    assert bounds[0].max() < floor
    needed = requests_to_meet(parts, bounds, floor)
    assert needed is not None
    more = requests.select(np.arange(needed) % 200)
    more = dataclasses.replace(more, source=np.arange(needed))
    assert bounds_of(more).max() == pytest.approx(floor, abs=0.1)
    assert requests_to_meet(parts, bounds, best) is None


def test_models_that_few_requests_reach_are_named() -> None:
    requests = requests_of(200)
    third_escalates = float(np.partition(requests.score[0], 11)[11]) + 0.5
    reaching = int((requests.score[0] < third_escalates).sum())
    assert few_requests(requests, (100.5, 100.5)) == []
    assert few_requests(requests, (0.0, 100.5)) == []
    first, second = few_requests(requests, (third_escalates, 100.5))
    assert f"only {reaching} reach m1" in first
    assert f"only {reaching} reach m2" in second
    (only,) = few_requests(requests, (100.5, 0.5 + float(requests.score[1].min())))
    assert "reach m2" in only


def test_repeated_rows_do_not_hide_how_few_requests_reach_a_model() -> None:
    requests = requests_of(40, models=2).bootstrap(0, 4000)
    threshold = float(np.median(requests.score[0]))
    (sentence,) = few_requests(requests, (threshold,))
    assert "reach m1" in sentence
