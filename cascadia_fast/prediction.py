"""What one request sees: its latency along the stages it visits, and when its first token arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.routing import LengthCells, route
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]

# Small samples are drawn several times with other waits, so that the p95 of 51 requests is not that of one draw.
PATHS = 4096


@dataclass(frozen=True)
class EndToEnd:
    """Latencies of a request's whole path, judge calls included, in seconds."""

    p50_s: float
    p95_s: float
    ttft_p95_s: float


def end_to_end(
    requests: ScoredRequests,
    thresholds: Sequence[float],
    cells: Sequence[LengthCells],
    stages: Mapping[int, tuple[FloatArray, FloatArray]],
    judge_latency_s: float,
) -> EndToEnd:
    """Sum each scored request's latency over its own path; stage p95s are never added.

    A request's lengths correlate across stages and are its own here; waits are drawn independently per stage from the
    latency model's samples. A judged answer is shown only once it is accepted, so its first token waits for the judge;
    the last stage that runs accepts whatever it answers, without a judge, and streams.

    Parameters
    ----------
    requests, thresholds
        The scored requests and what routes them.
    cells
        The length cells of each stage.
    stages
        For each stage that is reached: samples of latency and of time to first token, both of shape (nodes, K).
    judge_latency_s
        Latency of one judge call.
    """
    n = requests.size
    accepted_by = route(requests, thresholds)
    last = max(stages)
    draws = max(1, PATHS // n)
    picks = np.random.default_rng(0)
    total_s = np.zeros((draws, n))
    first_s = np.zeros((draws, n))
    for stage, (latency_s, first_token_s) in sorted(stages.items()):
        visits = np.flatnonzero(accepted_by >= stage)
        node = picks.integers(latency_s.shape[0], size=(draws, visits.size))
        cell = cells[stage].cell_of[visits]
        spent_s = latency_s[node, cell]
        if stage == last:
            first_s[:, visits] = total_s[:, visits] + first_token_s[node, cell]
            total_s[:, visits] += spent_s
        else:
            total_s[:, visits] += spent_s + judge_latency_s
            first_s[:, visits] = total_s[:, visits]
    weight = np.broadcast_to(requests.weight, total_s.shape).ravel()
    p50_s, p95_s = _weighted_quantiles(total_s.ravel(), weight, (0.5, 0.95))
    (ttft_p95_s,) = _weighted_quantiles(first_s.ravel(), weight, (0.95,))
    return EndToEnd(p50_s, p95_s, ttft_p95_s)


def _weighted_quantiles(values: FloatArray, weight: FloatArray, quantiles: Sequence[float]) -> list[float]:
    order = np.argsort(values)
    mass = np.cumsum(weight[order])
    places = np.searchsorted(mass, np.asarray(quantiles) * mass[-1])
    return [float(values[order[min(place, values.size - 1)]]) for place in places]
