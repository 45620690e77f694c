"""What one request sees, against loops over requests that add up its own path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascadia_fast.prediction import EndToEnd, end_to_end
from cascadia_fast.routing import LengthCells
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
Samples = dict[int, tuple[FloatArray, FloatArray]]


def scored(scores: FloatArray, weight: FloatArray) -> ScoredRequests:
    stages, size = scores.shape
    ones = np.ones((stages, size))
    return ScoredRequests(
        models=tuple(f"model{stage}" for stage in range(stages)),
        request_ids=np.array([f"r{k}" for k in range(size)]),
        input_tokens=ones,
        output_tokens=ones,
        score=scores,
        quality=ones,
        weight=weight,
    )


def path_of(requests: ScoredRequests, k: int, thresholds: list[float]) -> list[int]:
    """The stages a request visits, one look at its scores after the other."""
    visited = [0]
    while visited[-1] < len(thresholds) and requests.score[visited[-1], k] < thresholds[visited[-1]]:
        visited.append(visited[-1] + 1)
    return visited


def totals(
    requests: ScoredRequests,
    thresholds: list[float],
    cells: list[LengthCells],
    stages: Samples,
    judge_latency_s: float,
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Every request with every combination of its stages' samples: (seconds, weight) in total and to first token."""
    in_total, to_first = [], []
    last = len(requests.models) - 1
    for k in range(requests.size):
        visited = path_of(requests, k, thresholds)
        nodes = [range(stages[stage][0].shape[0]) for stage in visited]
        for picks in itertools.product(*nodes):
            probability = requests.weight[k] / np.prod([len(node) for node in nodes])
            clock_s = first_s = 0.0
            for stage, node in zip(visited, picks, strict=True):
                cell = cells[stage].cell_of[k]
                if stage == last:
                    first_s = clock_s + stages[stage][1][node, cell]
                    clock_s += stages[stage][0][node, cell]
                else:
                    clock_s += stages[stage][0][node, cell] + judge_latency_s
                    first_s = clock_s
            in_total.append((clock_s, probability))
            to_first.append((first_s, probability))
    return in_total, to_first


def quantile(values: list[tuple[float, float]], q: float) -> float:
    total, reached = sum(weight for _, weight in values), 0.0
    for value, weight in sorted(values):
        reached += weight
        if reached >= q * total * (1 - 1e-12):
            return value
    raise AssertionError("no quantile")


def share_up_to(values: list[tuple[float, float]], limit: float) -> float:
    return sum(w for value, w in values if value <= limit * (1 + 1e-12)) / sum(w for _, w in values)


def one_length(cell_of: NDArray[np.int64], count: int) -> LengthCells:
    return LengthCells(np.ones(count), np.ones(count), cell_of.astype(np.int32), np.zeros(count))


def random_case(
    seed: int, stages: int, size: int, nodes: int
) -> tuple[ScoredRequests, list[float], list[LengthCells], Samples]:
    rng = np.random.default_rng(seed)
    requests = scored(np.round(rng.uniform(0, 100, (stages, size)), -1), rng.gamma(1.0, size=size) + 0.05)
    thresholds = rng.choice([0.0, 30.0, 60.0, 90.0, np.inf], stages - 1).tolist()
    cells, samples = [], {}
    for stage in range(stages):
        count = int(rng.integers(1, size + 1))
        cells.append(one_length(rng.integers(0, count, size), count))
        first_s = rng.gamma(1.0, 0.5, (nodes, count))
        samples[stage] = first_s + rng.gamma(2.0, 5.0, (nodes, count)), first_s
    return requests, thresholds, cells, samples


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 30), st.floats(0, 3))
def test_without_chance_it_is_the_sum_over_each_requests_own_path(
    seed: int, stages: int, size: int, judge_latency_s: float
) -> None:
    case = random_case(seed, stages, size, nodes=1)
    in_total, to_first = totals(*case, judge_latency_s)
    found = end_to_end(*case, judge_latency_s)
    assert found.p50_s == pytest.approx(quantile(in_total, 0.5), rel=1e-12)
    assert found.p95_s == pytest.approx(quantile(in_total, 0.95), rel=1e-12)
    assert found.ttft_p95_s == pytest.approx(quantile(to_first, 0.95), rel=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from([1, 3, 51]))
def test_with_chance_it_is_a_quantile_of_every_combination(seed: int, stages: int, size: int) -> None:
    """4,096 paths leave a quantile's own level uncertain by 0.01 (three standard deviations at the median: 0.024)."""
    case = random_case(seed, stages, size, nodes=6)
    in_total, to_first = totals(*case, 0.2)
    found = end_to_end(*case, 0.2)
    for values, value, q in (
        (in_total, found.p50_s, 0.5),
        (in_total, found.p95_s, 0.95),
        (to_first, found.ttft_p95_s, 0.95),
    ):
        assert share_up_to(values, value) > q - 0.035
        below = sum(w for total_s, w in values if total_s < value * (1 - 1e-12)) / sum(w for _, w in values)
        assert below < q + 0.035


def test_a_stage_nobody_reaches_needs_no_samples() -> None:
    requests, _, cells, samples = random_case(1, 3, 20, nodes=4)
    del samples[1], samples[2]
    found = end_to_end(requests, [0.0, 0.0], cells, samples, 1e6)
    # The stage that accepts everything is the last one: it streams, and no judge is asked.
    assert found.ttft_p95_s < found.p95_s < 1e6


def test_the_last_stage_streams_and_calls_no_judge() -> None:
    requests = scored(np.zeros((1, 2)), np.ones(2))
    cells = [one_length(np.zeros(2, np.int64), 1)]
    found = end_to_end(requests, [], cells, {0: (np.array([[7.0]]), np.array([[0.5]]))}, 9.0)
    assert found == EndToEnd(7.0, 7.0, 0.5)


def test_weights_move_the_quantiles() -> None:
    """A tenth of the requests is slow; weighted by a hundredth of the others they no longer make the p95."""
    size = 100
    cells = [one_length((np.arange(size) < 10).astype(np.int64), 2)]
    samples = {0: (np.array([[1.0, 50.0]]), np.array([[0.1, 0.2]]))}
    plain = end_to_end(scored(np.zeros((1, size)), np.ones(size)), [], cells, samples, 0.0)
    light = np.where(np.arange(size) < 10, 0.01, 1.0)
    assert plain == EndToEnd(1.0, 50.0, 0.2)
    assert end_to_end(scored(np.zeros((1, size)), light), [], cells, samples, 0.0) == EndToEnd(1.0, 1.0, 0.1)


def test_the_same_call_gives_the_same_answer() -> None:
    case = random_case(3, 3, 51, nodes=8)
    assert end_to_end(*case, 0.2) == end_to_end(*case, 0.2)
