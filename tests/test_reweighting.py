"""Raking: against planted truth, against censored traffic, and its own promises."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascadia_fast.errors import CascadiaWarning, InputError
from cascadia_fast.monitor import Monitor
from cascadia_fast.reweighting import MAX_WEIGHT, Margin, margin_of, rake
from cascadia_fast.workload import Arrivals, ScoredRequests, Workload

FloatArray = NDArray[np.float64]
PLAN_THRESHOLDS = (65.0, 55.0)


def squash(values: FloatArray) -> FloatArray:
    return 100 / (1 + np.exp(-values))


def population(size: int, seed: int) -> tuple[ScoredRequests, FloatArray]:
    """Requests on three models whose difficulty drives scores, qualities and lengths; also returns the difficulty."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=size)
    wordy = rng.normal(size=size)
    ability = np.array([[0.3], [1.2], [2.0]])
    merit = ability - difficulty + 0.5 * rng.normal(size=(3, size))
    thinking = 0.5 * difficulty + 0.4 * wordy + 0.3 * rng.normal(size=(3, size))
    requests = ScoredRequests(
        models=("small", "middle", "large"),
        request_ids=np.array([f"r{k}" for k in range(size)]),
        input_tokens=np.tile(np.ceil(np.exp(5.5 + 0.3 * difficulty + 0.8 * rng.normal(size=size))), (3, 1)),
        output_tokens=np.ceil(np.exp(np.array([[5.8], [6.0], [6.6]]) + thinking)),
        score=squash(1.5 * merit + 0.6 * rng.normal(size=(3, size))),
        quality=squash(1.5 * merit + 0.6 * rng.normal(size=(3, size))),
    )
    return requests, difficulty


def censored_traffic(monitor: Monitor, requests: ScoredRequests, rate_per_s: float, seed: int) -> None:
    """Serve requests one after another through the plan's thresholds; only the stages they visit are observed."""
    rng = np.random.default_rng(seed)
    arrivals_s = np.cumsum(rng.exponential(1 / rate_per_s, requests.size)).tolist()
    visits = []
    for k, arrival_s in enumerate(arrivals_s):
        now_s = arrival_s
        for stage in range(3):
            latency_s = 1.0 + 0.01 * requests.output_tokens[stage, k]
            now_s += latency_s
            score = requests.score[stage, k] if stage < 2 else math.nan
            lengths = requests.input_tokens[stage, k], requests.output_tokens[stage, k]
            visits.append((f"live-{k}", stage, *lengths, score, latency_s, now_s))
            if stage < 2 and score >= PLAN_THRESHOLDS[stage]:
                break
    for visit in sorted((visit for visit in visits if visit[-1] <= arrivals_s[-1]), key=lambda visit: visit[-1]):
        monitor.observe(*visit)


def reference_workload(requests: ScoredRequests, rate_per_s: float = 1.0) -> Workload:
    return Workload.build(requests, Arrivals.from_rate(rate_per_s, cv=1.7), "mean", 1.2)


def figures(requests: ScoredRequests) -> dict[str, float]:
    """What a planner reads from a sample, above all what censoring hides."""
    weight = requests.weight / requests.weight.sum()
    found = {"mean input tokens": float(requests.input_tokens[0] @ weight)}
    for stage, model in enumerate(requests.models):
        found[f"quality of {model}"] = float(requests.quality[stage] @ weight)
        found[f"output tokens of {model}"] = float(requests.output_tokens[stage] @ weight)
    for first, second in ((40.0, 40.0), (80.0, 70.0), (90.0, 90.0)):
        to_middle = requests.score[0] < first
        to_large = to_middle & (requests.score[1] < second)
        found[f"reach of middle at {first:g}"] = float(to_middle @ weight)
        found[f"reach of large at {first:g}, {second:g}"] = float(to_large @ weight)
        stage = to_middle.astype(int) + to_large
        found[f"quality at {first:g}, {second:g}"] = float(requests.quality[stage, np.arange(requests.size)] @ weight)
    return found


@dataclass
class Planted:
    live: ScoredRequests
    reference: Workload
    monitor: Monitor


@pytest.fixture(scope="module")
def planted() -> Planted:
    """Traffic that grew harder and wordier since its reference was sampled."""
    everyone, difficulty = population(40_000, seed=1)
    rng = np.random.default_rng(2)
    tilt = np.exp(0.8 * difficulty) * everyone.output_tokens[0] ** 0.4
    live = everyone.select(rng.choice(everyone.size, 3_000, p=tilt / tilt.sum()))
    reference = reference_workload(everyone.select(rng.choice(everyone.size, 1_500, replace=False)))
    monitor = Monitor(3, window_s=600.0)
    censored_traffic(monitor, live, rate_per_s=4.0, seed=3)
    return Planted(live, reference, monitor)


def test_raking_removes_most_of_the_bias_of_everything_a_planner_reads(planted: Planted) -> None:
    truth = figures(planted.live)
    before = figures(planted.reference.requests)
    after = figures(planted.monitor.workload(planted.reference).requests)
    left = {name: abs(after[name] - true) / abs(before[name] - true) for name, true in truth.items()}
    assert max(left.values()) < 0.5, left
    assert float(np.mean(list(left.values()))) < 0.2, left


def test_rate_and_burstiness_are_the_observed_ones(planted: Planted) -> None:
    workload = planted.monitor.workload(planted.reference)
    assert workload.arrivals.rate_per_s == pytest.approx(4.0, rel=0.05)
    assert workload.rate_per_s == pytest.approx(1.2 * workload.arrivals.rate_per_s)
    assert workload.headroom == 1.2
    assert workload.cv == workload.arrivals.cv == pytest.approx(1.0, abs=0.06)
    assert workload.arrivals.rate_per_s == planted.monitor.snapshot().rate_per_s


def test_margins_are_met_and_trust_is_stated(planted: Planted) -> None:
    result = planted.monitor.reweight(planted.reference)
    weight = result.workload.requests.weight
    assert result.margin_error < 0.01
    assert weight.mean() == pytest.approx(1.0)
    assert weight.max() <= MAX_WEIGHT * (1 + 1e-9)
    assert result.effective_size == result.workload.requests.effective_size
    assert 100 < result.effective_size < 1_200
    assert set(result.coverage) == {"input_tokens", "output_tokens", "score"}
    assert min(result.coverage.values()) > 0.9
    assert 2_000 < result.requests_seen <= 3_000


def test_only_weights_and_arrivals_change(planted: Planted) -> None:
    before, after = planted.reference.requests, planted.monitor.workload(planted.reference).requests
    for name in ("models", "request_ids", "input_tokens", "output_tokens", "score", "quality", "source"):
        assert np.array_equal(getattr(before, name), getattr(after, name)), name


def test_the_answer_depends_on_nothing_but_the_traffic(planted: Planted) -> None:
    hashes = {planted.monitor.workload(planted.reference).content_hash() for _ in range(3)}
    again = Monitor(3, window_s=600.0)
    censored_traffic(again, planted.live, rate_per_s=4.0, seed=3)
    assert hashes == {again.workload(planted.reference).content_hash()}


def test_traffic_like_the_reference_leaves_it_almost_alone() -> None:
    everyone, _ = population(10_000, seed=5)
    monitor = Monitor(3, window_s=600.0)
    censored_traffic(monitor, everyone.select(np.arange(3_000)), rate_per_s=6.0, seed=6)
    result = monitor.reweight(reference_workload(everyone.select(np.arange(5_000, 7_000))))
    assert result.effective_size > 1_800


def test_failed_judges_leave_lengths_to_go_by() -> None:
    requests, _ = population(300, seed=7)
    monitor = Monitor(3)
    for k in range(200):
        monitor.observe(f"r{k}", 0, 300, 200 + k, math.nan, 1.0, float(k))
    with pytest.warns(CascadiaWarning, match="fewer than 50 of 200 requests were scored at the first stage"):
        result = monitor.reweight(reference_workload(requests))
    assert set(result.coverage) == {"input_tokens", "output_tokens"}


def test_traffic_unlike_the_reference_is_said_so() -> None:
    requests, _ = population(300, seed=8)
    monitor = Monitor(3)
    for k in range(200):
        monitor.observe(f"r{k}", 0, 100_000 + k, 300 + k, k % 100, 1.0, float(k))
    with pytest.warns(CascadiaWarning) as caught:
        result = monitor.reweight(reference_workload(requests))
    sentences = [str(warning.message) for warning in caught]
    assert any(sentence.startswith("only 0% of the traffic has input_tokens") for sentence in sentences), sentences
    assert all(warning.filename == __file__ for warning in caught)
    assert result.coverage["input_tokens"] == 0.0


def test_a_reference_worth_too_few_requests_is_said_so() -> None:
    requests, _ = population(60, seed=9)
    hard = requests.select(np.argsort(requests.score[0])[:6])
    monitor = Monitor(3)
    for k in range(300):
        row = k % 6
        lengths = hard.input_tokens[0, row], hard.output_tokens[0, row]
        monitor.observe(f"r{k}", 0, *lengths, hard.score[0, row], 1.0, float(k))
    with pytest.warns(CascadiaWarning, match=r"the reweighted reference is worth \d+ requests of 60, fewer than 30"):
        monitor.workload(reference_workload(requests))


def test_too_little_traffic_gets_a_sentence() -> None:
    requests, _ = population(60, seed=10)
    monitor = Monitor(3)
    with pytest.raises(InputError, match=r"the monitor saw 0 requests in its window of 300 s, and a workload needs 50"):
        monitor.workload(reference_workload(requests))
    for k in range(49):
        monitor.observe(f"r{k}", 0, 300, 300, 50.0, 0.0, float(k))
    with pytest.raises(InputError, match="a workload needs 50"):
        monitor.workload(reference_workload(requests))


def test_a_reference_of_another_cascade_is_refused() -> None:
    requests, _ = population(60, seed=11)
    with pytest.raises(InputError, match="the reference has 3 models and the monitor 2 stages"):
        Monitor(2).workload(reference_workload(requests))


def test_a_single_stage_needs_no_score() -> None:
    requests, _ = population(400, seed=12)
    alone = ScoredRequests(
        models=("only",),
        request_ids=requests.request_ids,
        input_tokens=requests.input_tokens[:1],
        output_tokens=requests.output_tokens[:1],
        score=np.full((1, 400), math.nan),
        quality=requests.quality[:1],
    )
    monitor = Monitor(1)
    for k in range(200):
        lengths = requests.input_tokens[0, k], requests.output_tokens[0, k]
        monitor.observe(f"r{k}", 0, *lengths, None, 1.0, float(k))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = monitor.reweight(reference_workload(alone))
    assert set(result.coverage) == {"input_tokens", "output_tokens"}


def test_shared_values_get_a_bin_of_their_own() -> None:
    reference = np.repeat([0.0, 30.0, 100.0], [50, 20, 30])
    margin = margin_of(reference, np.repeat([0.0, 100.0], [850, 150]))
    bins = [set(margin.bin_of[reference == value]) for value in (0.0, 30.0, 100.0)]
    assert [len(found) for found in bins] == [1, 1, 1]
    assert len(set.union(*bins)) == 3
    assert margin.target[[found.pop() for found in bins]] == pytest.approx([0.85, 0.0, 0.15], abs=0.01)
    assert margin.coverage == 1.0


def test_raking_agrees_with_a_solution_by_hand() -> None:
    """Two margins on a 2 x 2 table: the odds ratio stays (it is 1 here), so the fit is the product of the margins."""
    rows, columns = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    margins = [Margin(rows, np.array([0.8, 0.2]), 1.0), Margin(columns, np.array([0.3, 0.7]), 1.0)]
    weight, error = rake(np.ones(4), margins)
    assert weight / 4 == pytest.approx([0.24, 0.56, 0.06, 0.14], abs=1e-6)
    assert error < 1e-6


def test_rake_keeps_what_the_margins_do_not_decide() -> None:
    margin = Margin(np.array([0, 0, 1, 1]), np.array([0.5, 0.5]), 1.0)
    weight, _ = rake(np.array([3.0, 1.0, 1.0, 1.0]), [margin])
    assert weight == pytest.approx([1.5, 0.5, 1.0, 1.0])
    untouched, error = rake(np.array([3.0, 1.0]), [])
    assert untouched == pytest.approx([1.5, 0.5])
    assert error == 0.0


@st.composite
def samples(draw: st.DrawFn) -> tuple[FloatArray, FloatArray]:
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    sizes = draw(st.integers(1, 400)), draw(st.integers(1, 2_000))
    levels = draw(st.sampled_from([1, 2, 11, 10**9]))
    reference, observed = (np.floor(squash(rng.normal(shift, 2, size)) * levels) / levels for shift, size in
                           zip((0.0, draw(st.floats(-8, 8))), sizes, strict=True))  # fmt: skip
    return reference, observed


@given(samples())
def test_every_bin_has_reference_mass_and_a_positive_target(sample: tuple[FloatArray, FloatArray]) -> None:
    reference, observed = sample
    margin = margin_of(reference, observed)
    assert margin.target.sum() == pytest.approx(1.0)
    assert margin.target.min() > 0
    assert np.bincount(margin.bin_of, minlength=margin.target.size).min() >= min(5, reference.size)
    assert 0 <= margin.coverage <= 1


@given(st.lists(samples(), min_size=1, max_size=3), st.integers(0, 10_000))
def test_weights_are_bounded_and_have_mean_one(several: list[tuple[FloatArray, FloatArray]], seed: int) -> None:
    size = min(reference.size for reference, _ in several)
    margins = [margin_of(reference[:size], observed) for reference, observed in several]
    start = np.random.default_rng(seed).gamma(0.2, size=size) + 1e-12
    weight, error = rake(start, margins)
    assert weight.mean() == pytest.approx(1.0)
    assert weight.min() >= 0
    assert weight.max() <= MAX_WEIGHT * (1 + 1e-9)
    assert 0 <= error <= 1


def test_a_weighted_reference_can_be_weighted_again(planted: Planted) -> None:
    once = planted.monitor.workload(planted.reference)
    twice = planted.monitor.workload(dataclasses.replace(once))
    assert twice.requests.weight == pytest.approx(once.requests.weight, abs=1e-3)
