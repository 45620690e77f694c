from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast.errors import InputError
from cascadia_fast.workload import Arrivals, ScoredRequests, Workload, bursty_warning


def some_requests(size: int = 50, seed: int = 0, stages: int = 3) -> ScoredRequests:
    rng = np.random.default_rng(seed)
    return ScoredRequests(
        models=tuple(f"m{stage}" for stage in range(stages)),
        request_ids=np.array([f"r{index}" for index in range(size)]),
        input_tokens=rng.integers(1, 4000, (stages, size)),
        output_tokens=rng.integers(1, 4000, (stages, size)),
        score=rng.random((stages, size)) * 100,
        quality=rng.random((stages, size)) * 100,
    )


def test_arrays_are_checked_copied_and_read_only() -> None:
    mine = np.full((1, 2), 5.0)
    requests = ScoredRequests(("a",), np.array(["x", "y"]), mine, mine, mine, mine)
    mine[:] = 7
    for name in ("input_tokens", "output_tokens", "score", "quality", "weight"):
        array = getattr(requests, name)
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
        assert not array.flags.writeable
    assert requests.input_tokens.tolist() == [[5, 5]]
    assert requests.weight.tolist() == [1, 1]
    # A read-only view of memory that its owner can still write to must be copied as well.
    view = mine[:]
    view.setflags(write=False)
    again = dataclasses.replace(requests, score=view)
    mine[:] = 9
    assert again.score.tolist() == [[7, 7]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input_tokens": [[1.0, 0.0]]}, r"input_tokens of request 'y' for model 'a' is 0; .* positive"),
        ({"output_tokens": [[float("nan"), 1.0]]}, r"output_tokens of request 'x' for model 'a' is nan"),
        ({"output_tokens": [[1.0, float("inf")]]}, r"is inf"),
        ({"quality": [[101.0, 1.0]]}, r"quality of request 'x' for model 'a' is 101; .* 0 to 100"),
        ({"quality": [[1.0, float("nan")]]}, r"quality of request 'y'"),
        ({"score": [[-1.0, 1.0]]}, r"score of request 'x' for model 'a' is -1"),
        ({"score": [[1.0]]}, r"score has shape \(1, 1\); it must be .* \(1, 2\)"),
        ({"score": [["high", "low"]]}, r"cannot be read as float64"),
        ({"weight": [1.0]}, r"weight has shape"),
        ({"weight": [1.0, -1.0]}, r"weight holds a negative"),
        ({"source": [0, -1]}, r"source"),
        ({"models": ()}, r"models is empty"),
        ({"request_ids": []}, r"request_ids has shape"),
    ],
)
def test_bad_requests_are_named(change: dict[str, object], says: str) -> None:
    good = ScoredRequests(("a",), np.array(["x", "y"]), *[np.ones((1, 2))] * 4)
    with pytest.raises(InputError, match=says):
        dataclasses.replace(good, **change)  # type: ignore[arg-type]


def test_only_the_last_stage_may_lack_scores() -> None:
    requests = some_requests()
    score = requests.score.copy()
    score[-1] = np.nan
    assert np.isnan(dataclasses.replace(requests, score=score).score[-1]).all()
    score[0, 3] = np.nan
    with pytest.raises(InputError, match="score of request 'r3' for model 'm0' is nan"):
        dataclasses.replace(requests, score=score)


def test_select_and_bootstrap() -> None:
    requests = some_requests()
    chosen = requests.select([4, 4, 1])
    assert chosen.request_ids.tolist() == ["r4", "r4", "r1"]
    assert np.array_equal(chosen.quality, requests.quality[:, [4, 4, 1]])
    assert chosen.source.tolist() == [4, 4, 1]
    assert requests.select(requests.quality[0] > 50).size == int((requests.quality[0] > 50).sum())
    drawn = requests.bootstrap(seed=3, size=2000)
    assert drawn.size == 2000
    assert np.array_equal(drawn.score, requests.bootstrap(3, 2000).score)
    assert not np.array_equal(drawn.score, requests.bootstrap(4, 2000).score)
    assert requests.bootstrap(0).size == requests.size
    with pytest.raises(InputError, match="size is 0"):
        requests.bootstrap(0, 0)


def test_bootstrap_follows_the_weights() -> None:
    weight = np.where(np.arange(50) < 10, 4.0, 0.25)
    requests = dataclasses.replace(some_requests(), weight=weight)
    drawn = requests.bootstrap(0, 100_000)
    assert (drawn.weight == 1).all()
    assert drawn.quality.mean(axis=1) == pytest.approx(np.average(requests.quality, axis=1, weights=weight), abs=0.5)


def test_effective_size() -> None:
    requests = some_requests()
    assert requests.effective_size == pytest.approx(50)
    halves = dataclasses.replace(requests, weight=np.where(np.arange(50) < 25, 1.0, 0.0))
    assert halves.effective_size == pytest.approx(25)
    assert halves.weight.mean() == pytest.approx(1)
    # Repeating a sample adds no information.
    assert requests.select(np.tile(np.arange(50), 40)).effective_size == pytest.approx(50)
    assert requests.bootstrap(0, 5000).effective_size < 50


def test_content_hash_sees_what_planning_sees() -> None:
    requests = some_requests()
    assert requests.content_hash() == some_requests().content_hash()
    for name in ("input_tokens", "output_tokens", "score", "quality"):
        array = getattr(requests, name).copy()
        array[1, 2] *= 1 + 1e-12
        assert dataclasses.replace(requests, **{name: array}).content_hash() != requests.content_hash()
    assert dataclasses.replace(requests, models=("m0", "m1", "x")).content_hash() != requests.content_hash()
    assert requests.select(np.arange(50)[::-1]).content_hash() != requests.content_hash()


def test_content_hash_is_the_same_on_every_platform() -> None:
    one = np.array([[1.0, 2.0]])
    requests = ScoredRequests(("ä",), np.array(["x", "y"]), one, one, np.array([[np.nan, -0.0]]), one)
    expected = hashlib.sha256("ä".encode())
    number = {1.0: "000000000000f03f", 2.0: "0000000000000040", 0.0: "0000000000000000", "nan": "000000000000f87f"}
    for value in (1.0, 2.0, 1.0, 2.0, "nan", 0.0, 1.0, 2.0, 1.0, 1.0):
        expected.update(bytes.fromhex(number[value]))
    assert requests.content_hash() == expected.hexdigest()


def test_poisson_arrivals_look_like_poisson() -> None:
    times = np.cumsum(np.random.default_rng(0).exponential(0.5, 40_000))
    arrivals = Arrivals.from_times(times)
    assert arrivals.rate_per_s == pytest.approx(2, rel=0.02)
    assert arrivals.cv == pytest.approx(1, abs=0.02)
    assert list(arrivals.dispersion) == [1, 10, 60]
    assert list(arrivals.dispersion.values()) == pytest.approx([1, 1, 1], abs=0.25)
    assert arrivals.rate_per_s < arrivals.p95_1min_per_s < arrivals.peak_1min_per_s
    assert bursty_warning(arrivals) is None


def test_statistics_of_a_known_trace() -> None:
    # Minutes of 60, 120 and 60 arrivals, and one that closes the last minute.
    times = np.concatenate([np.arange(60), 60 + np.arange(120) / 2, 120 + np.arange(60), [180]])
    arrivals = Arrivals.from_times(times)
    assert (arrivals.count, arrivals.duration_s) == (241, 180)
    assert arrivals.rate_per_s == pytest.approx(240 / 180)
    assert arrivals.peak_1min_per_s == pytest.approx(2)
    assert arrivals.p95_1min_per_s == pytest.approx(np.quantile([1, 2, 1], 0.95))
    assert list(arrivals.dispersion) == [1, 10]
    counts = np.repeat([1, 2, 1], 60)
    assert arrivals.dispersion[1] == pytest.approx(counts.var(ddof=1) / counts.mean())


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=60), st.floats(0.01, 1000))
def test_rescaling_keeps_the_cv(gaps_s: list[float], rate_per_s: float) -> None:
    arrivals = Arrivals.from_times(np.cumsum([0.0, *gaps_s]))
    scaled = arrivals.rescaled(rate_per_s)
    assert scaled.rate_per_s == rate_per_s
    assert scaled.times_s is not None
    gaps = np.diff(scaled.times_s)
    assert gaps.mean() == pytest.approx(1 / rate_per_s)
    assert gaps.std() / gaps.mean() == pytest.approx(arrivals.cv, abs=1e-6)
    assert scaled.cv == arrivals.cv


def test_swings_of_poisson_arrivals_are_one_and_those_of_a_wandering_rate_grow_with_the_window() -> None:
    gaps = np.random.default_rng(0).exponential(1, 100_000)
    steady = Arrivals.from_times(np.cumsum(gaps)).swings
    assert steady.size == 15  # 4 windows of 2^14, not of 2^15
    assert steady[:10] == pytest.approx(np.ones(10), abs=0.12)
    # Every other 10,000 requests come twice as fast.
    wandering = Arrivals.from_times(np.cumsum(gaps * np.where(np.arange(gaps.size) // 10_000 % 2, 2 / 3, 4 / 3))).swings
    # Two thirds of the time at rate 3/4 and one third at 3/2: the rate's variance is 1/8, and I(m) = 1 + m / 8 but for
    # the short intervals, which lie within one stretch.
    rate = np.array([3 / 4, 3 / 2])
    variance = float(np.average((rate - 1) ** 2, weights=[2 / 3, 1 / 3]))
    windows = 2.0 ** np.arange(4, 10)
    assert wandering[4:10] == pytest.approx(1 + variance * windows, rel=0.15)


def test_swings_stay_when_time_is_stretched_and_leave_out_what_the_planned_rate_holds() -> None:
    arrivals = Arrivals.from_times(np.cumsum(np.random.default_rng(1).exponential(0.5, 20_000)))
    assert np.array_equal(arrivals.rescaled(77.0).swings, arrivals.swings)
    assert not arrivals.swings.flags.writeable
    assert Arrivals.from_rate(2.0, cv=3.0).swings.size == 0
    requests = some_requests()
    assert np.array_equal(Workload.build(requests, arrivals).swings, arrivals.swings)
    minute = Workload.build(requests, arrivals, "p95_1min").swings
    assert 60 * arrivals.rate_per_s / 2 < 2 ** (minute.size - 1) <= 60 * arrivals.rate_per_s
    assert Arrivals.from_times([0.0, 1.0, 3.0]).swings.size == 0


def test_real_bursty_trace_is_called_bursty(repository: Path) -> None:
    table = np.loadtxt(repository / "tests/data/azure2023_code_600.csv", delimiter=",", skiprows=1)
    arrivals = Arrivals.from_times(table[:, 0])
    sentence = bursty_warning(arrivals)
    assert sentence is not None
    assert f"CV is {arrivals.cv:.1f}" in sentence
    assert "rate_from: p95_1min" in sentence


def test_dispersion_alone_is_bursty_too() -> None:
    # Every other minute twice as fast: hardly any CV, but counts per minute vary far more than Poisson's.
    gaps = np.concatenate([np.full(600, 0.1) if minute % 2 else np.full(300, 0.2) for minute in range(30)])
    arrivals = Arrivals.from_times(np.cumsum(gaps))
    assert arrivals.cv < 0.5
    sentence = bursty_warning(arrivals)
    assert sentence is not None
    assert "dispersion over 60 s" in sentence


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([1.0], "at least two"),
        ([], "at least two"),
        ([1.0, 1.0], "two different times"),
        ([1.0, 3.0, 2.0], "arrival 3 at 2 s comes before"),
        ([1.0, float("nan")], "arrival 2 is nan"),
        ([0.0, 1.0, 1e19], "3 arrivals span 1e\\+19 s; at most 1,000,000,000,000 s"),
        ([-1e308, 1e308], "2 arrivals span inf s"),
        ([0.0, 1e-12], "the rate of the arrivals is 1e\\+12 per second; it must lie between 1e-09 and 1,000,000,000"),
    ],
)
def test_bad_arrivals_are_named(times: list[float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Arrivals.from_times(times)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e-300, 2e9])
def test_bad_rates_are_named(rate: float) -> None:
    with pytest.raises(InputError, match="rate_per_s is"):
        Arrivals.from_rate(rate)


def test_traces_are_not_stretched_beyond_reason() -> None:
    arrivals = Arrivals.from_times(np.arange(10_001.0))
    assert arrivals.rescaled(1e-7).p95_1min_per_s == 0
    with pytest.raises(InputError, match="rate_per_s is 1e-300"):
        arrivals.rescaled(1e-300)
    with pytest.raises(InputError, match=r"10,001 arrivals span 1e\+13 s"):
        arrivals.rescaled(1e-9)


def test_planned_rate() -> None:
    times = np.concatenate([np.arange(60), 60 + np.arange(120) / 2, 120 + np.arange(60), [180]])
    arrivals, requests = Arrivals.from_times(times), some_requests()
    assert Workload.build(requests, arrivals).rate_per_s == arrivals.rate_per_s
    peak = Workload.build(requests, arrivals, "peak_1min", 1.5)
    assert peak.rate_per_s == pytest.approx(3)
    assert Workload.build(requests, arrivals, "p95_1min").rate_per_s == arrivals.p95_1min_per_s
    faster = peak.with_rate(6)
    assert faster.rate_per_s == 6
    assert faster.arrivals.rate_per_s == pytest.approx(2 * arrivals.rate_per_s)
    assert faster.cv == peak.cv
    assert faster.requests is requests
    with pytest.raises(InputError, match="only a rate is given"):
        Workload.build(requests, Arrivals.from_rate(2), "peak_1min")
    with pytest.raises(InputError, match="did you mean 'p95_1min'"):
        Workload.build(requests, arrivals, "p95_min")
    with pytest.raises(InputError, match=r"headroom is 0\.5"):
        Workload.build(requests, arrivals, headroom=0.5)


def test_workload_replace_and_hash() -> None:
    workload = Workload.build(some_requests(), Arrivals.from_rate(2))
    other = workload.replace(requests=some_requests(seed=1))
    assert other.rate_per_s == workload.rate_per_s
    hashes = {item.content_hash() for item in (workload, other, workload.with_rate(3), workload.replace(cv=2.0))}
    assert len(hashes) == 4
    assert workload.content_hash() == Workload.build(some_requests(), Arrivals.from_rate(2)).content_hash()
    with pytest.raises(InputError, match="no field 'request'; did you mean 'requests'"):
        workload.replace(request=1)
