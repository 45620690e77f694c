"""Statistics of simulated runs against known answers: warm-up, intervals, attainment, queues."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats

from cascadia_fast.simulation import statistics
from cascadia_fast.simulation.statistics import Estimate, attainment, percentiles, smallest_scale, warm_up


def coverage(draw, quantile: str, truth: float, runs: int = 400) -> float:
    """Share of runs whose interval holds the true quantile."""
    hits = 0
    for seed in range(runs):
        found = percentiles(draw(np.random.default_rng(seed)))
        assert found is not None
        hits += getattr(found, quantile).holds(truth)
    return hits / runs


def mser5_by_definition(values: np.ndarray) -> int:
    """White (1997): the cut d that minimises the squared standard error of what stays, in batches of 5."""
    means = values[: values.size // 5 * 5].reshape(-1, 5).mean(axis=1)
    cuts = range(means.size // 2 + 1)
    return 5 * min(cuts, key=lambda d: ((means[d:] - means[d:].mean()) ** 2).sum() / (means.size - d) ** 2)


# Warm-up


def test_a_ramp_before_a_plateau_is_left_out() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([np.linspace(50, 10, 300), np.full(2000, 10.0)]) + rng.normal(0, 0.5, 2300)
    found = warm_up(values)
    assert 250 <= found.observations <= 310
    assert not found.at_limit


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_is_that_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.exponential(1 + 5 * np.exp(-np.arange(503) / 40))
    assert warm_up(values).observations == mser5_by_definition(values)


def test_a_run_that_never_settles_reaches_the_limit() -> None:
    values = np.arange(1000.0)
    assert warm_up(values) == statistics.WarmUp(500, True)


@pytest.mark.parametrize("values", [np.zeros(0), np.ones(1), np.ones(9), np.full(1000, 0.1), np.full(1000, 1e9)])
def test_nothing_is_left_out_of_what_does_not_vary(values: np.ndarray) -> None:
    assert warm_up(values) == statistics.WarmUp(0, False)


def test_stationary_noise_loses_little() -> None:
    cuts = [warm_up(np.random.default_rng(seed).exponential(size=5000)) for seed in range(50)]
    assert np.mean([cut.observations for cut in cuts]) < 250
    assert not any(cut.at_limit for cut in cuts)


# Quantiles


def test_quantiles_are_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=1237)
    expected = np.quantile(values, [0.5, 0.9, 0.95, 0.99])
    found = percentiles(values.copy())
    assert found is not None
    assert [found.p50.value, found.p90.value, found.p95.value, found.p99.value] == pytest.approx(expected)
    assert (found.count, found.sections) == (1237, 10)
    assert found.tail(0.99) == pytest.approx(1.237)


def test_the_interval_is_the_t_interval_of_the_sections_around_the_overall_quantile() -> None:
    values = np.random.default_rng(0).exponential(size=2000)
    sections = [np.quantile(section, 0.9) for section in values.reshape(10, 200)]
    overall = np.quantile(values, 0.9)
    half_width = scipy.stats.t.ppf(0.975, 9) * math.sqrt(sum((q - overall) ** 2 for q in sections) / 9 / 10)
    found = percentiles(values)
    assert found is not None
    assert (found.p90.low, found.p90.high) == pytest.approx((overall - half_width, overall + half_width))


@pytest.mark.parametrize(("quantile", "share"), [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)])
def test_intervals_of_independent_values_hold_the_truth(quantile: str, share: float) -> None:
    covered = coverage(lambda rng: rng.exponential(size=5000), quantile, -math.log(1 - share))
    assert 0.92 <= covered <= 0.985


@pytest.mark.parametrize(("quantile", "share"), [("p50", 0.5), ("p95", 0.95)])
def test_intervals_of_correlated_values_hold_the_truth(quantile: str, share: float) -> None:
    """AR(1) with coefficient 0.9: intervals that take values as independent hold the median in 42 % of the runs."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        values = scipy.signal.lfilter([1.0], [1.0, -0.9], rng.normal(size=12000))[2000:]
        return np.exp(values * math.sqrt(1 - 0.81))

    covered = coverage(draw, quantile, math.exp(scipy.stats.norm.ppf(share)))
    assert 0.9 <= covered <= 0.99


@pytest.mark.parametrize(("size", "sections"), [(1, 0), (19, 0), (20, 2), (55, 5), (100, 10), (10**5, 10)])
def test_sections_need_ten_values_each(size: int, sections: int) -> None:
    found = percentiles(np.arange(float(size)))
    assert found is not None
    assert found.sections == sections
    assert (found.p99.low is None) == (found.p99.high is None) == (sections == 0)


def test_there_are_no_quantiles_of_nothing() -> None:
    assert percentiles(np.zeros(0)) is None


def test_estimates_say_how_sure_they_are() -> None:
    assert Estimate(10.0, 8.0, 12.0).relative_half_width == pytest.approx(0.2)
    assert Estimate(10.0, 8.0, 12.0).holds(12.0)
    assert not Estimate(10.0, 8.0, 12.0).holds(12.1)
    assert Estimate(10.0, None, None).relative_half_width == math.inf
    assert not Estimate(10.0, None, None).holds(10.0)
    assert Estimate(0.0, 0.0, 0.0).relative_half_width == 0


# A mean of values drawn from a sample


def test_the_mean_of_drawn_values_is_no_surer_than_the_sample() -> None:
    """However often 40 answers are drawn, they stay 40 answers."""
    hits, runs = 0, 500
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        sample = rng.uniform(0, 100, 40)
        drawn = rng.choice(sample, 100_000)
        found = statistics.mean_of_drawn(drawn, sample, np.ones(40), 40, 100.0)
        assert found is not None
        hits += found.holds(50.0)
    assert 0.925 <= hits / runs <= 0.975


def test_few_draws_widen_the_interval() -> None:
    sample = np.array([0.0, 100.0] * 50)
    one = statistics.mean_of_drawn(sample[1:2], sample, np.ones(100), 100, 100.0)
    assert one is not None
    assert one.value == 100
    assert one.low is not None
    assert one.low < 10
    assert statistics.mean_of_drawn(sample[:0], sample, np.ones(100), 100, 100.0) is None
    assert statistics.mean_of_drawn(np.array([60.0]), np.array([60.0]), np.ones(1), 1, 100.0) == Estimate(60, 0, 100)


# Attainment


def test_attainment_counts_the_lost_as_late() -> None:
    ratios = np.array([1.0, 1.5, 2.0, 4.0])
    assert [attainment(ratios, scale, 5) for scale in (0.9, 1.0, 1.9, 2.0, 4.0, 1e9)] == [0, 0.2, 0.4, 0.6, 0.8, 0.8]
    assert [smallest_scale(ratios, share, 5) for share in (0, 0.2, 0.5, 0.8)] == [1.0, 1.0, 2.0, 4.0]
    assert smallest_scale(ratios, 0.81, 5) is None
    assert smallest_scale(ratios, 0.95, 4) == 4.0
    assert smallest_scale(np.zeros(0), 0.95, 0) is None
    assert attainment(np.zeros(0), 2.0, 0) == 0


def test_the_smallest_scale_attains_its_share_and_nothing_smaller_does() -> None:
    rng = np.random.default_rng(3)
    ratios = np.sort(1 + rng.exponential(size=997))
    for share in (0.01, 0.5, 0.9, 0.95, 0.99, 1.0):
        scale = smallest_scale(ratios, share, 997)
        assert scale is not None
        assert attainment(ratios, scale, 997) >= share
        assert attainment(ratios, scale * (1 - 1e-6), 997) < share


# Who is there when


def counted(entered_s: np.ndarray, left_s: np.ndarray, time_s: float) -> int:
    return int(((entered_s <= time_s) & (left_s > time_s)).sum())


def stays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stays on a coarse grid, so that many begin and end together; some end never, some at once."""
    rng = np.random.default_rng(seed)
    entered_s = np.sort(rng.integers(0, 50, 200)).astype(float)
    left_s = entered_s + rng.integers(0, 8, 200)
    left_s[rng.random(200) < 0.05] = np.inf
    return entered_s, left_s


@pytest.mark.parametrize("seed", range(4))
def test_presence_is_counted_at_any_time(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BLOCK", 7)
    entered_s, left_s = stays(seed)
    times_s = np.linspace(0, 60, 121)
    expected = [counted(entered_s, left_s, time_s) for time_s in times_s]
    assert statistics.present_at(entered_s, left_s, times_s).tolist() == expected
    replica = np.arange(200, dtype=np.int32) % 3
    busy = [len({r for r in range(3) if counted(entered_s[replica == r], left_s[replica == r], t)}) for t in times_s]
    assert statistics.busy_replicas_at(entered_s, left_s, replica, 3, times_s).tolist() == busy
    most = max(counted(entered_s, left_s, time_s) for time_s in entered_s)
    assert statistics.most_present(entered_s[::-1].copy(), left_s[::-1].copy()) == most


def test_mean_presence_is_the_area_under_the_count() -> None:
    entered_s, left_s = np.array([0.0, 1.0, 4.0, 9.0]), np.array([2.0, 5.0, np.inf, 9.5])
    assert statistics.mean_present(entered_s, left_s, 1.0, 6.0) == pytest.approx((1 + 4 + 2) / 5)
    assert statistics.mean_present(entered_s, left_s, 3.0, 3.0) == 0
    assert statistics.most_present(np.zeros(0), np.zeros(0)) == 0
