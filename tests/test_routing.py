"""The threshold grid against the one-combination-at-a-time oracle, and the decisions made from it."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import routing as oracle

import cascadia_fast
from cascadia_fast import length_cells, routing
from cascadia_fast.errors import CascadiaWarning, InputError
from cascadia_fast.student_t import student_t975
from cascadia_fast.workload import ScoredRequests

# Ties, scores exactly at integer levels, and their nearest neighbours on either side.
SCORES = st.one_of(
    st.sampled_from([0.0, 100.0, 50.0, 49.99999999999999, 50.00000000000001, 99.99999999999999, 5e-324]),
    st.integers(0, 100).map(float),
    st.floats(0, 100),
)
LEVELS = st.lists(st.one_of(st.integers(0, 100).map(float), st.floats(0, 100)), max_size=3, unique=True).map(sorted)


@st.composite
def scored_requests(draw: st.DrawFn, fewest_models: int = 1, most_models: int = 4) -> ScoredRequests:
    models, size = draw(st.integers(fewest_models, most_models)), draw(st.integers(1, 12))

    def table(values: st.SearchStrategy[float]) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=models * size, max_size=models * size))).reshape(models, size)

    weight = draw(st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.5, 0.3]), min_size=size, max_size=size))
    return ScoredRequests(
        models=tuple(f"m{i}" for i in range(models)),
        request_ids=np.array([f"r{i}" for i in range(size)]),
        input_tokens=table(st.integers(1, 9).map(float)),
        output_tokens=table(st.integers(1, 9).map(float)),
        score=table(SCORES),
        quality=table(st.integers(0, 100).map(float)),
        weight=np.array(weight) if sum(weight) > 0 else np.ones(size),
    )


@st.composite
def requests_and_levels(draw: st.DrawFn) -> tuple[ScoredRequests, list[list[float]]]:
    requests = draw(scored_requests())
    return requests, [draw(LEVELS) for _ in requests.models[1:]]


def random_requests(size: int, stages: int = 3, seed: int = 0) -> ScoredRequests:
    rng = np.random.default_rng(seed)
    quality = np.sort(rng.uniform(0, 100, (stages, size)), axis=0)
    score = np.clip(quality + rng.normal(0, 15, (stages, size)), 0, 100)
    score[-1] = np.nan
    return ScoredRequests(
        models=tuple(f"m{i}" for i in range(stages)),
        request_ids=np.arange(size).astype(str),
        input_tokens=np.rint(rng.lognormal(6.5, 1.0, (stages, size))).clip(1),
        output_tokens=np.rint(rng.lognormal(5.5, 1.2, (stages, size))).clip(1),
        score=score,
        quality=quality,
    )


def assert_agrees(grid: routing.RoutingGrid, requests: ScoredRequests, combination: int) -> None:
    shape = tuple(level.size for level in grid.levels)
    indexes = np.unravel_index(combination, shape) if shape else ()
    thresholds = [level[k] for level, k in zip(grid.levels, indexes, strict=True)]
    expected = oracle.evaluate(
        thresholds,
        requests.score,
        requests.quality,
        requests.weight,
        [cells.cell_of for cells in grid.cells],
        [cells.tokens_in.size for cells in grid.cells],
    )
    assert grid.quality[combination] == pytest.approx(expected.quality, abs=1e-9)
    for stage, weight in enumerate(expected.cell_weight):
        row = combination // math.prod(shape[stage:])
        np.testing.assert_allclose(grid.cell_weight[stage][row], weight, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(routing.route(requests, thresholds), expected.stage_of)


@given(requests_and_levels())
@settings(deadline=None)
def test_every_combination_agrees_with_the_oracle(case: tuple[ScoredRequests, list[list[float]]]) -> None:
    requests, levels = case
    grid = routing.routing_grid(requests, levels)
    for combination in range(grid.quality.size):
        assert_agrees(grid, requests, combination)
    assert [tuple(row) for row in grid.routings] == oracle.distinct_routings(grid.levels, requests.score)
    assert grid.distinct == len(grid.routings)


@given(scored_requests(most_models=3), st.data())
@settings(deadline=None, max_examples=50)
def test_all_integer_levels_agree_with_the_oracle(requests: ScoredRequests, data: st.DataObject) -> None:
    grid = routing.routing_grid(requests)
    assert grid.quality.size == 102 ** (len(requests.models) - 1)
    for combination in data.draw(st.lists(st.integers(0, grid.quality.size - 1), min_size=5, max_size=5)):
        assert_agrees(grid, requests, combination)


@given(scored_requests(most_models=3))
@settings(deadline=None, max_examples=50)
def test_distinct_levels_give_every_routing_once(requests: ScoredRequests) -> None:
    grid = routing.routing_grid(requests, "distinct")
    found = {routing.route(requests, grid.thresholds(r)).tobytes() for r in range(grid.distinct)}
    every_score = [np.append(np.unique(requests.score[:-1]), np.inf)] * (len(requests.models) - 1)
    assert len(found) == grid.distinct == len(oracle.distinct_routings(every_score, requests.score))


def test_a_large_sample_agrees_with_the_oracle_and_counts_exactly() -> None:
    requests = random_requests(3_000)
    grid = routing.routing_grid(requests)
    for combination in (0, 101, 102, 51 * 102 + 37, 73 * 102 + 101, 102 * 102 - 1):
        assert_agrees(grid, requests, combination)
    for shares in grid.cell_weight:
        counts = np.rint(shares * requests.size)
        np.testing.assert_array_equal(shares, counts / requests.size)
    np.testing.assert_array_equal(grid.cell_weight[0].sum(axis=1).round(12), [1.0])
    assert grid.cell_weight[2].shape == (102 * 102, grid.cells[2].tokens_in.size)


def test_reach_rises_with_thresholds_and_never_escalates_everything() -> None:
    grid = routing.routing_grid(random_requests(2_000))
    reach = [shares.sum(axis=1) for shares in grid.cell_weight]
    assert reach[1][0] == 0
    assert reach[1][-1] == pytest.approx(1)
    assert reach[2][-1] == pytest.approx(1)
    assert (np.diff(reach[1]) >= 0).all()
    last = reach[2].reshape(102, 102)
    assert (np.diff(last, axis=0) >= -1e-12).all()
    assert (np.diff(last, axis=1) >= -1e-12).all()
    assert (last <= reach[1][:, None] + 1e-12).all()


def test_accepting_everything_is_a_single_routing() -> None:
    grid = routing.routing_grid(random_requests(1_000))
    assert [tuple(row) for row in grid.routings if row[0] == 0] == [(0, 0)]
    assert (np.diff([tuple(row) for row in grid.routings] @ np.array([102, 1])) > 0).all()


def test_a_single_model_has_one_routing() -> None:
    requests = random_requests(700, stages=1)
    grid = routing.routing_grid(requests)
    assert grid.levels == grid.thresholds(0) == ()
    assert grid.routings.shape == (1, 0)
    assert grid.quality == pytest.approx(requests.quality.mean(axis=1))
    assert routing.threshold_intervals(requests, ()) == []
    assert routing.middle_thresholds(requests, ()) == routing.proportional_start(requests) == ()
    assert not routing.route(requests, ()).any()


@pytest.mark.parametrize("stages", [5, 8, 15])
def test_long_cascades_get_a_coarse_grid(stages: int) -> None:
    requests = random_requests(20, stages=stages)
    grid = routing.routing_grid(requests)
    assert grid.quality.size <= routing.COARSE_COMBINATIONS
    assert all(levels[0] == 0 and levels[-1] == np.inf and (np.diff(levels) > 0).all() for levels in grid.levels)
    assert_agrees(grid, requests, grid.quality.size // 2)


def test_four_models_have_a_fine_grid_without_a_table_of_the_last() -> None:
    requests = random_requests(700, stages=4)
    grid = routing.routing_grid(requests)
    assert grid.quality.size == 102**3
    assert grid.cell_weight[-1].shape == (0, grid.cells[-1].tokens_in.size)
    for routing_index in range(0, grid.distinct, grid.distinct // 50):
        accepted_by = routing.route(requests, grid.thresholds(routing_index))
        for stage in range(4):
            share = np.average(accepted_by >= stage, weights=requests.weight)
            assert grid.reach[stage][grid.rows(stage)[routing_index]] == pytest.approx(share, abs=1e-12)
        served = requests.quality[accepted_by, np.arange(requests.size)]
        mean = np.average(served, weights=requests.weight)
        assert grid.quality[grid.combination(routing_index)] == pytest.approx(mean)


def test_bins_say_at_which_level_a_request_moves_on() -> None:
    requests = random_requests(700)
    bins = routing.bin_requests(requests)
    for stage, levels in enumerate(bins.levels):
        for level, threshold in enumerate(levels):
            assert ((bins.escalates[:, stage] <= level) == (requests.score[stage] < threshold)).all()


def test_new_weights_and_qualities_reuse_the_bins() -> None:
    requests = random_requests(2_000)
    bins = routing.bin_requests(requests)
    other = ScoredRequests(
        requests.models,
        requests.request_ids,
        requests.input_tokens,
        requests.output_tokens,
        requests.score,
        np.rint(requests.quality),
        np.random.default_rng(1).uniform(0, 2, requests.size),
    )
    grid = routing.grid_of_bins(other, bins)
    assert grid.cells is bins.cells
    assert_agrees(grid, other, 40 * 102 + 60)


def test_the_grid_is_the_same_bits_from_several_threads() -> None:
    requests = random_requests(5_000)
    grids: list[routing.RoutingGrid] = []
    threads = [threading.Thread(target=lambda: grids.append(routing.routing_grid(requests))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for grid in grids[1:]:
        assert grid.quality.tobytes() == grids[0].quality.tobytes()
        assert [a.tobytes() for a in grid.cell_weight] == [a.tobytes() for a in grids[0].cell_weight]


def test_results_are_read_only() -> None:
    grid = routing.routing_grid(random_requests(600))
    cells = grid.cells[0]
    for array in (*grid.levels, *grid.cell_weight, grid.quality, grid.routings, cells.tokens_in, cells.cell_of):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("levels", "match"),
    [
        ([[0, 50]], "1 lists; 3 models have 2 thresholds"),
        ([[0, 50], [50, 50]], "threshold 2.*ascending"),
        ([[0, math.nan], [50]], "threshold 1.*ascending"),
        ("every", "'every'; use 'distinct'"),
        ([np.linspace(0, 100, 5_000)] * 2, "combinations"),
    ],
)
def test_malformed_levels_are_named(levels: object, match: str) -> None:
    with pytest.raises(InputError, match=match):
        routing.routing_grid(random_requests(600), levels)  # type: ignore[arg-type]


@pytest.mark.parametrize("decide", [routing.route, routing.threshold_intervals, routing.middle_thresholds])
@pytest.mark.parametrize(("thresholds", "match"), [((50,), "1 numbers; 3 models need 2"), ((1, math.nan), "nan")])
def test_malformed_thresholds_are_named(decide: object, thresholds: tuple[float, ...], match: str) -> None:
    with pytest.raises(InputError, match=match):
        decide(random_requests(5), thresholds)  # type: ignore[operator]


# Length cells


def test_up_to_512_requests_are_cells_of_their_own() -> None:
    tokens_in, tokens_out = np.arange(1.0, 513.0), np.arange(512.0, 0.0, -1.0)
    cells = length_cells.length_cells(tokens_in, tokens_out, np.ones(512))
    np.testing.assert_array_equal(cells.tokens_in[cells.cell_of], tokens_in)
    np.testing.assert_array_equal(cells.tokens_out[cells.cell_of], tokens_out)
    assert not cells.spread_out.any()


def test_cells_hold_their_weighted_means_and_are_finer_towards_long_outputs() -> None:
    rng = np.random.default_rng(5)
    tokens_in, tokens_out = np.rint(rng.lognormal((7.0, 5.5), 1.3, (50_000, 2))).clip(1).T
    weight = rng.uniform(0, 2, tokens_in.size)
    cells = length_cells.length_cells(tokens_in, tokens_out, weight)
    in_cell = np.bincount(cells.cell_of, weights=weight)
    assert in_cell.size == cells.tokens_in.size == cells.tokens_out.size == 64
    np.testing.assert_allclose(cells.tokens_in, np.bincount(cells.cell_of, weight * tokens_in) / in_cell)
    np.testing.assert_allclose(cells.tokens_out, np.bincount(cells.cell_of, weight * tokens_out) / in_cell)
    away = tokens_out - cells.tokens_out[cells.cell_of]
    spread = np.sqrt(np.bincount(cells.cell_of, weight * away**2) / in_cell)
    np.testing.assert_allclose(cells.spread_out, spread, rtol=1e-6, atol=1e-3)
    # The cuts are those of 16 groups by output and 4 by input within each, up to the histograms' resolution.
    share = in_cell.reshape(16, 4) / weight.sum()
    for axis, groups in ((1, 16), (0, 4)):
        expected = np.diff(1 - np.linspace(1, 0, groups + 1) ** 1.6)
        np.testing.assert_allclose(share.sum(axis=axis), expected, atol=1e-2)
    group_of = cells.cell_of // 4
    highest = [tokens_out[group_of == g].max() for g in range(16)]
    lowest = [tokens_out[group_of == g].min() for g in range(16)]
    assert (np.array(highest[:-1]) < np.array(lowest[1:])).all()


@given(
    st.lists(st.sampled_from([0.2, 1.0, 2.0, 3.0, 700.0, 5e4, 1e9]), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=50)
def test_few_distinct_lengths_give_few_cells_none_without_weight(lengths: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens_in, tokens_out = rng.choice(lengths, (2, 600))
    weight = rng.choice([0.0, 0.0, 1.0, 7.0], 600)
    weight[rng.integers(600)] = 1.0
    cells = length_cells.length_cells(tokens_in, tokens_out, weight)
    in_cell = np.bincount(cells.cell_of, weight, minlength=cells.tokens_in.size)
    assert in_cell.size == cells.tokens_in.size <= len(set(lengths)) ** 2
    assert (in_cell > 0).all()
    np.testing.assert_allclose(in_cell @ cells.tokens_in, weight @ tokens_in)
    np.testing.assert_allclose(in_cell @ cells.tokens_out, weight @ tokens_out)


# Thresholds


@given(scored_requests(fewest_models=2), st.data())
@settings(deadline=None)
def test_intervals_hold_the_routing_and_nothing_wider_does(requests: ScoredRequests, data: st.DataObject) -> None:
    any_threshold = st.one_of(SCORES, st.just(math.inf))
    thresholds = [data.draw(any_threshold) for _ in requests.models[1:]]
    expected = routing.route(requests, thresholds)
    for stage, (lo, hi) in enumerate(routing.threshold_intervals(requests, thresholds)):
        moved = thresholds.copy()
        # 0 stands for "below every score", so it belongs to the interval when all are accepted.
        for inside in (hi, min(np.nextafter(lo, np.inf), hi), lo if (expected <= stage).all() else hi):
            moved[stage] = inside
            np.testing.assert_array_equal(routing.route(requests, moved), expected)
        reaching = expected >= stage
        if (expected > stage).any():
            moved[stage] = lo
            assert (routing.route(requests, moved) != expected).any()
        if reaching.any() and hi < math.inf:
            moved[stage] = np.nextafter(hi, np.inf)
            assert (routing.route(requests, moved) != expected).any()
    np.testing.assert_array_equal(routing.route(requests, routing.middle_thresholds(requests, thresholds)), expected)


def two_stages(scores: list[float]) -> ScoredRequests:
    ones = np.ones((2, len(scores)))
    return ScoredRequests(("small", "large"), np.arange(len(scores)).astype(str), ones, ones, ones * scores, ones)


def test_middles() -> None:
    requests = two_stages([20.0, 40.0, 70.0])
    assert routing.threshold_intervals(requests, [50]) == [(40.0, 70.0)]
    assert routing.middle_thresholds(requests, [70]) == (55.0,)
    assert routing.middle_thresholds(requests, [20]) == (0.0,)
    assert routing.threshold_intervals(requests, [20]) == [(0.0, 20.0)]
    assert routing.middle_thresholds(requests, [71]) == (math.inf,)
    assert routing.threshold_intervals(requests, [71]) == [(70.0, math.inf)]


@pytest.mark.parametrize("lower", [0.0, 1.0, np.nextafter(1.0, 2.0), 63.7])
def test_the_middle_of_adjacent_scores_is_the_upper_one(lower: float) -> None:
    upper = float(np.nextafter(lower, 100.0))
    assert routing.middle_thresholds(two_stages([lower, upper]), [upper]) == (upper,)


def test_a_stage_nobody_reaches_accepts() -> None:
    requests = random_requests(10)
    assert routing.middle_thresholds(requests, [0, 63]) == (0.0, 0.0)
    assert routing.threshold_intervals(requests, [0, 63])[1] == (0.0, math.inf)


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_proportional_start_reaches_each_stage_in_proportion(stages: int) -> None:
    requests = random_requests(4_000, stages=stages)
    for levels in (None, [np.append(np.linspace(0, 100, 401), np.inf)] * (stages - 1)):
        thresholds = routing.proportional_start(requests, levels)
        stage_of = routing.route(requests, thresholds)
        for stage in range(stages):
            assert np.mean(stage_of >= stage) == pytest.approx((stages - stage) / stages, abs=0.02)
        assert levels is None or all(h in level for h, level in zip(thresholds, levels, strict=True))


def test_proportional_start_counts_weights() -> None:
    requests = ScoredRequests(
        ("a", "b"), np.array(["x", "y", "z"]), *[np.ones((2, 3))] * 2, np.array([[10, 60, 90.0]] * 2), np.ones((2, 3)),
        np.array([1.0, 1.0, 6.0]),
    )  # fmt: skip
    assert routing.proportional_start(requests) == (90.0,)


# Quality


@pytest.mark.parametrize("degrees", [1, 1.3, 2, 3, 4.7, 10, 50, 407, 1e4, 1e6])
def test_student_quantile_agrees_with_scipy(degrees: float) -> None:
    assert student_t975(degrees) == pytest.approx(scipy.stats.t.ppf(0.975, degrees), rel=1e-8)


def test_quality_interval_is_the_t_interval_of_the_served_mean() -> None:
    requests = random_requests(200)
    thresholds = (60.0, 70.0)
    served = requests.quality[routing.route(requests, thresholds), np.arange(200)]
    expected = scipy.stats.t.interval(0.95, 199, served.mean(), scipy.stats.sem(served))
    assert routing.quality_ci95(requests, thresholds) == pytest.approx(expected, rel=1e-9)


def test_quality_interval_covers_the_truth() -> None:
    thresholds = (60.0, 70.0)
    everyone = random_requests(200_000, seed=1_000)
    truth = everyone.quality[routing.route(everyone, thresholds), np.arange(everyone.size)].mean()
    intervals = [routing.quality_ci95(random_requests(30, seed=seed), thresholds) for seed in range(400)]
    assert 0.92 <= np.mean([lo <= truth <= hi for lo, hi in intervals]) <= 0.98


def test_quality_interval_widens_with_uneven_weights_and_stays_on_the_scale() -> None:
    few = random_requests(2)
    lo, hi = routing.quality_ci95(few, (50.0, 50.0))
    assert 0 <= lo <= hi <= 100
    assert routing.quality_ci95(random_requests(1), (50.0, 50.0)) == (0.0, 100.0)
    even = random_requests(100)
    values = (even.request_ids, even.input_tokens, even.output_tokens, even.score, even.quality)
    uneven = ScoredRequests(even.models, *values, np.r_[np.full(10, 10.0), np.ones(90)])
    widths = [np.diff(routing.quality_ci95(requests, (50.0, 50.0)))[0] for requests in (even, uneven)]
    assert widths[1] > 1.3 * widths[0]


def with_qualities(*means: float) -> ScoredRequests:
    quality = np.outer(means, np.ones(4))
    ones = np.ones_like(quality)
    names = tuple(f"m{i}" for i in range(len(means)))
    return ScoredRequests(names, np.array(list("abcd")), ones, ones, ones, quality)


def test_span() -> None:
    assert routing.span_of(with_qualities(40, 60, 85)) == pytest.approx(45)
    assert routing.span_of(with_qualities(60, 40, 85)) == pytest.approx(45)
    with pytest.warns(CascadiaWarning, match=r"within 0\.50 points"):
        assert routing.span_of(with_qualities(70, 70.5)) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert routing.span_of(with_qualities(70)) == 1.0


def test_chebyshev_penalises_only_a_shortfall() -> None:
    objective = routing.chebyshev(np.array([10.0, 10.0, np.inf]), np.array([80.0, 60.0, 60.0]), 75.0, 20.0, 30.0)
    np.testing.assert_allclose(objective, [10.0, 20.0, np.inf])
    assert routing.chebyshev(3.0, 75.0, 75.0, 20.0, 30.0) == 3.0


# The compile cache


# Root may write anywhere; without this capability (1, CAP_DAC_OVERRIDE) permissions bind it as they bind others.
UNPRIVILEGED = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
USE_A_KERNEL = """
import os, sys
import numpy as np
if os.access(os.path.join(sys.argv[1], "cascadia_fast"), os.W_OK):
    sys.exit("writable")
sys.path.insert(0, sys.argv[1])
from cascadia_fast import routing_kernels as kernels
assert kernels.__file__.startswith(sys.argv[1]), kernels.__file__
sums = np.ones((3, 2))
kernels.accumulate_cells(sums, np.array([3]), 2.0)
print(sums[2, 0])
"""


@pytest.mark.parametrize("home_is_writable", [True, False])
def test_kernels_compile_when_the_package_cannot_be_written(tmp_path: Path, home_is_writable: bool) -> None:
    package = tmp_path / "cascadia_fast"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(Path(cascadia_fast.__file__).parent / "routing_kernels.py", package)
    home = tmp_path / "home"
    home.mkdir()
    package.chmod(0o555)
    home.chmod(0o755 if home_is_writable else 0o555)
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment["HOME"] = str(home)
    # Without `site`, so that an editable install does not come before the copy.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    command = [sys.executable, "-S", "-c", USE_A_KERNEL, str(tmp_path)]
    if os.geteuid() == 0:
        command = [sys.executable, "-S", "-c", UNPRIVILEGED, *command]
    result = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    if result.stderr.strip() == "writable":
        pytest.skip("permissions do not bind this user, and its capabilities cannot be dropped")
    assert result.stdout.strip() == "1.5", result.stderr
    assert not (package / "__pycache__").exists()
    assert bool(list(home.rglob("*.nbi"))) == home_is_writable
