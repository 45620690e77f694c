"""The threshold grid in one pass against plain NumPy that goes over the requests again for every combination."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from cascadia_fast.routing import BinnedRequests, RoutingGrid, bin_requests, grid_of_bins, routing_grid
from cascadia_fast.workload import ScoredRequests

SIZES = (1_000_000, 20_000)
COMBINATIONS = (37 * 102 + 61, 60 * 102 + 45, 101 * 102 + 80)  # of the 102 x 102 that the grid evaluates


@cache
def requests_of(size: int) -> ScoredRequests:
    """Three models with log-normal lengths, continuous scores, and whole qualities (so that sums are exact)."""
    rng = np.random.default_rng(1)
    quality = np.rint(np.sort(rng.uniform(0, 100, (3, size)), axis=0))
    return ScoredRequests(
        models=("small", "medium", "large"),
        request_ids=np.arange(size).astype(str),
        input_tokens=np.rint(rng.lognormal(6.5, 1.0, (3, size))).clip(1),
        output_tokens=np.rint(rng.lognormal(5.5, 1.2, (3, size))).clip(1),
        score=np.clip(quality + rng.normal(0, 15, (3, size)), 0, 100),
        quality=quality,
    )


@cache
def bins_of(size: int) -> BinnedRequests:
    return bin_requests(requests_of(size))


def one_by_one(
    requests: ScoredRequests, bins: BinnedRequests
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]]:
    """Cell weights of the three stages and mean quality of each of `COMBINATIONS`, each from all requests."""
    found = []
    weight, total = requests.weight, requests.weight.sum()
    for combination in COMBINATIONS:
        h1, h2 = bins.levels[0][combination // 102], bins.levels[1][combination % 102]
        second = requests.score[0] < h1
        third = second & (requests.score[1] < h2)
        shares = [
            np.bincount(cells.cell_of[mask], weights=weight[mask], minlength=cells.tokens_in.size) / total
            for cells, mask in zip(bins.cells, (slice(None), second, third), strict=True)
        ]
        served = np.where(third, requests.quality[2], np.where(second, requests.quality[1], requests.quality[0]))
        found.append((shares[0], shares[1], shares[2], float((weight * served).sum() / total)))
    return found


def assert_equal_to_one_by_one(grid: RoutingGrid, size: int) -> None:
    for combination, expected in zip(COMBINATIONS, one_by_one(requests_of(size), bins_of(size)), strict=True):
        for stage, row in enumerate((0, combination // 102, combination)):
            np.testing.assert_array_equal(grid.cell_weight[stage][row], expected[stage])
        assert grid.quality[combination] == expected[3]


def group_of(size: int) -> str:
    return f"threshold grid, {size:,} requests x 3 stages, 102 x 102 levels"


@pytest.mark.parametrize("size", SIZES)
def test_from_raw_arrays(benchmark: BenchmarkFixture, size: int) -> None:
    benchmark.group = group_of(size)
    grid = benchmark(routing_grid, requests_of(size))
    benchmark.extra_info.update(combinations=grid.quality.size, distinct_routings=grid.distinct)
    assert_equal_to_one_by_one(grid, size)


@pytest.mark.parametrize("size", SIZES)
def test_once_binned(benchmark: BenchmarkFixture, size: int) -> None:
    benchmark.group = group_of(size)
    grid = benchmark(grid_of_bins, requests_of(size), bins_of(size))
    benchmark.extra_info.update(combinations=grid.quality.size, distinct_routings=grid.distinct)
    assert_equal_to_one_by_one(grid, size)


@pytest.mark.parametrize("size", SIZES)
def test_numpy_per_threshold(benchmark: BenchmarkFixture, size: int) -> None:
    """The baseline, on three combinations: its time for the whole grid is 102 x 102 / 3 times what the table shows."""
    benchmark.group = group_of(size)
    found = benchmark.pedantic(one_by_one, args=(requests_of(size), bins_of(size)), rounds=3, warmup_rounds=1)
    seconds = benchmark.stats["median"] / len(COMBINATIONS) if benchmark.stats else float("nan")
    benchmark.extra_info.update(
        combinations=len(COMBINATIONS), per_combination_s=seconds, whole_grid_s=seconds * 102 * 102
    )
    grid = grid_of_bins(requests_of(size), bins_of(size))
    assert [grid.quality[combination] for combination in COMBINATIONS] == [quality for *_, quality in found]
