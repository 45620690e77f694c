"""What a simulated run of a cell says, as plain numbers and None."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.economics import gpus_usd_per_hour
from cascadia_fast.simulation.belonging import pools_by_name
from cascadia_fast.simulation.columns import Columns, known
from cascadia_fast.simulation.results import Measured
from cascadia_fast.simulation.run import SLO_SHARE
from cascadia_fast.simulation.statistics import WarmUp, attainment, smallest_scale
from cascadia_fast.student_t import student_t975

if TYPE_CHECKING:
    from cascadia_fast.simulation import Simulation

FloatArray = NDArray[np.float64]

# Which part of a run is measured, by order of arrival. It is the same for every system, and so are the requests that
# statistics are of: with a warm-up by its own latency, as `Simulation.measured` has, each would be asked about other
# bursts of one trace.
WINDOW = (0.2, 0.9)
# Where curves of SLO attainment are written down: deadlines over a request's reference latency.
SCALES: tuple[float, ...] = tuple(float(f"{scale:.3g}") for scale in np.geomspace(0.25, 64, 41))
# Shares in a file need no more digits than requests can make.
PLACES = 6


def measured(run: Simulation, reference_s: FloatArray) -> dict[str, Any]:
    """Return the figures of a run.

    Parameters
    ----------
    run
        All requests are served, refused or timed out in it.
    reference_s
        Shape (n,): of each scored request, the latency that an SLO scale of 1 stands for.
    """
    columns, part = run.columns, window_of(run)
    rows, requests = part.rows, part.count
    unsorted_s = columns.latency_s(rows)
    scales = _ascending(unsorted_s / reference_s[run.drawn[rows]])
    latency_s, ttft_s = _ascending(unsorted_s), _ascending(columns.ttft_s(rows))
    throughput_per_s = part.per_second(run.native.finished_s)
    judge_calls = columns.judge_calls(rows)
    usd_per_hour = _usd_per_hour(run, throughput_per_s, judge_calls)
    served_usd = None if usd_per_hour is None or not throughput_per_s else usd_per_hour / 3.6 / throughput_per_s
    p95_s = smallest_scale(latency_s, SLO_SHARE, requests)
    return {
        **_quality(columns, rows),
        "p50_s": smallest_scale(latency_s, 0.5, requests),
        "p95_s": p95_s,
        "ttft_p95_s": smallest_scale(ttft_s, SLO_SHARE, requests),
        "scale95": smallest_scale(scales, SLO_SHARE, requests),
        "attainment": [round(attainment(scales, scale, requests), PLACES) for scale in SCALES],
        "offered_per_s": part.rate_per_s,
        "throughput_per_s": throughput_per_s,
        "reach": _reach(run, rows),
        "usd_per_hour": usd_per_hour,
        "usd_per_1000": served_usd,
        "judge_calls": judge_calls,
        # Who is served slowly fills up slowly: then the run was measured before it was as full as it gets.
        "short": p95_s is None or p95_s > part.start_s - float(run.native.arrived_s[0]),
    }


def window_of(run: Simulation) -> Measured:
    """Return the part of a run that is measured."""
    first, last = (int(share * run.requests) for share in WINDOW)
    arrived_s = run.native.arrived_s
    return Measured(
        start=first,
        stop=last,
        start_s=float(arrived_s[first]),
        end_s=float(arrived_s[last - 1]),
        warm_up=WarmUp(0, False),
        p99_s=0.0,
        short=False,
        ended_s=float(run.native.ended_s),
    )


def _ascending(values: FloatArray) -> FloatArray:
    """What is known, sorted; who was not served is beyond any deadline."""
    return np.sort(known(values))


def _quality(columns: Columns, rows: slice) -> dict[str, float | None]:
    """Mean quality of the test half as it was routed, and its 95 % interval for requests like those in it.

    No draws are needed for it but to know how often each gear was in use, in the whole run: a gear plan meets its floor
    over a whole period of the trace. The mean over the scored requests themselves knows nothing of which of them were
    drawn how often. Only where requests were lost do those served count. What
    repeats one independent request counts once in the interval: it is that of a mean of clusters of unequal size, by
    the sum of each one's deviations, with Student's t.
    """
    requests = columns.system.requests
    in_gears = columns.in_gears()
    if not in_gears.any():
        return {"quality": None, "quality_low": None, "quality_high": None}
    by_gear = requests.quality[columns.system.accepted_by, np.arange(requests.size)]
    quality: FloatArray = np.average(by_gear, axis=0, weights=in_gears)
    weight = requests.weight
    served = columns.accepted_by(rows) >= 0
    if not served.all():
        weight = np.bincount(columns.drawn[rows][served], minlength=requests.size).astype(np.float64)
    mean = float(np.average(quality, weights=weight))
    half_width = _half_width(weight * (quality - mean), requests.source, weight)
    return {
        "quality": mean,
        "quality_low": max(mean - half_width, 0.0),
        "quality_high": min(mean + half_width, 100.0),
    }


def _half_width(deviation: FloatArray, source: NDArray[np.int64], weight: FloatArray) -> float:
    """Half the interval of a weighted mean, from weighted deviations; endless for one independent request."""
    _, member = np.unique(source, return_inverse=True)
    clusters = int(np.count_nonzero(np.bincount(member, weights=weight)))
    if clusters < 2:
        return math.inf
    by_cluster = np.bincount(member, weights=deviation)
    error = math.sqrt(clusters / (clusters - 1) * float(by_cluster @ by_cluster)) / float(weight.sum())
    return student_t975(clusters - 1) * error


def _reach(run: Simulation, rows: slice) -> list[float]:
    """Share of the requests that came to each model of the problem's cascade."""
    reach = [0.0] * len(run.problem.stages)
    for place, stage in enumerate(run.plan.stages):
        reach[stage.index] = round(float(run.columns.visited(place, rows).mean()), PLACES)
    return reach


def _usd_per_hour(run: Simulation, throughput_per_s: float | None, judge_calls: float) -> float | None:
    """Price of the GPUs in use and of the judge's calls; None where the price of some of them is unknown."""
    gpus: Counter[str] = Counter()
    for group in run.plan.groups:
        gpus[group.pool] += group.count * group.tp * group.pp
    prices = {name: pool.price_usd_per_hour for name, pool in pools_by_name(run.plan, run.problem).items()}
    gpus_usd = gpus_usd_per_hour(gpus, prices)
    if gpus_usd is None:
        return None
    return gpus_usd + 3600 * (throughput_per_s or 0.0) * judge_calls * run.problem.judge.usd_per_call
