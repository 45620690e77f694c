"""What a timeline draws over time: means per bin, exact for any number of requests.

Every curve is the mean of its quantity over a bin, not a sample: a queue of a millisecond still counts for what it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.simulation.columns import REFUSED, SERVED, TIMED_OUT, UNFINISHED, Columns

if TYPE_CHECKING:
    from cascadia_fast.timeline.drawing import Station

FloatArray = NDArray[np.float64]
CountArray = NDArray[np.int64]

MOST_BINS = 300
_MOST_LATENCY_BINS = 100
_REQUESTS_PER_LATENCY_BIN = 50
# A 95th percentile of fewer is their maximum.
FEWEST_FOR_P95 = 20
_ROUND = (1, 2, 5, 10)
# From half a minute on, clocks count differently.
_CLOCK_S = (30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 21600.0, 43200.0, 86400.0)


@dataclass(frozen=True, slots=True)
class Bins:
    """`count` bins of `width_s` seconds from time 0."""

    width_s: float
    count: int

    @property
    def end_s(self) -> float:
        """End of the last bin."""
        return self.width_s * self.count

    def of(self, times_s: FloatArray) -> NDArray[np.int16]:
        """Bin of every time; what lies on the last edge is in the last bin."""
        return np.minimum(times_s / self.width_s, self.count - 1).astype(np.int16)

    def merged(self, factor: int) -> Bins:
        """Bins `factor` times as wide."""
        return Bins(self.width_s * factor, -(-self.count // factor))


@dataclass(frozen=True, slots=True)
class StationSeries:
    """One station in every bin: arrivals per second, requests waiting and running, share of its replicas busy."""

    visits: int
    arrivals_per_s: FloatArray
    waiting: FloatArray
    running: FloatArray
    busy_share: FloatArray


@dataclass(frozen=True, slots=True)
class LatencySeries:
    """End to end, by time of arrival: quantiles of the served (NaN where too few), and counts of what went wrong."""

    bins: Bins
    arrivals: CountArray
    p50_s: FloatArray
    p95_s: FloatArray
    late: CountArray
    timed_out: CountArray
    refused: CountArray
    unfinished: CountArray


def bins_until(end_s: float) -> Bins:
    """At most MOST_BINS bins of a round width that reach `end_s`."""
    width_s = round_step(end_s / MOST_BINS)
    return Bins(width_s, max(math.ceil(end_s / width_s), 1))


def round_step(least_s: float) -> float:
    """The least round length of time that is at least so long: 1, 2 or 5 times a power of ten, or of the clock."""
    if least_s <= 0:
        return 1.0
    if least_s > _CLOCK_S[-1]:
        return _CLOCK_S[-1] * round_number(least_s / _CLOCK_S[-1])
    if least_s > 20:
        return next(step_s for step_s in _CLOCK_S if step_s >= least_s)
    return round_number(least_s)


def round_number(least: float, factors: Sequence[int] = _ROUND) -> float:
    """The least of some factors, as 1, 2, 5 and 10, times a power of ten that is at least so large."""
    exponent = math.floor(math.log10(least))
    # Powers of negative exponents are not exact, quotients of whole numbers are rounded right.
    scaled = least / 10.0**exponent
    factor = next(factor for factor in factors if factor >= scaled * (1 - 1e-12))
    return float(factor * 10**exponent) if exponent >= 0 else factor / 10**-exponent


def station_series(columns: Columns, station: Station, bins: Bins) -> StationSeries:
    """What one station did."""
    visits, arrivals = 0, np.zeros(bins.count, np.int64)
    waiting, running, busy = np.zeros(bins.count), np.zeros(bins.count), []
    for row in station.rows:
        arrived_s, admitted_s = columns.visit_arrivals_s(row), columns.visit_admissions_s(row)
        left_s = columns.visit_ends_s(row)
        visits += arrived_s.size
        arrivals += np.bincount(bins.of(arrived_s), minlength=bins.count)
        waiting += mean_per_bin(arrived_s, admitted_s, bins)
        running += mean_per_bin(admitted_s, left_s, bins)
        busy.append((admitted_s, np.minimum(left_s, bins.end_s, out=left_s), columns.visit_replicas(row)))
        del arrived_s  # of ten million visits: 80 MB
    spans = busy_intervals(*(np.concatenate(parts) for parts in zip(*busy, strict=True)))
    busy_share = mean_per_bin(spans.start_s, spans.end_s, bins) / station.replicas
    return StationSeries(visits, arrivals / bins.width_s, waiting, running, busy_share)


def mean_per_bin(entered_s: FloatArray, left_s: FloatArray, bins: Bins) -> FloatArray:
    """Mean number present in every bin, of those that came and left at some times; infinity is never."""
    # Whole numbers carry the level from bin to bin, so that nothing is lost over millions of requests.
    changes, parts = np.zeros(bins.count, np.int64), np.zeros(bins.count)
    for times_s, sign in ((entered_s, 1), (left_s, -1)):
        at = bins.of(times_s)
        changes += sign * np.bincount(at, minlength=bins.count)
        rest = np.maximum(at + 1 - times_s / bins.width_s, 0.0)
        parts += sign * np.bincount(at, weights=rest, minlength=bins.count)
    before = np.cumsum(changes) - changes
    return np.maximum(before + parts, 0.0)


@dataclass(frozen=True, slots=True)
class BusyIntervals:
    """When replicas have somebody running: intervals by replica, then time."""

    replica: NDArray[np.int32]
    start_s: FloatArray
    end_s: FloatArray


def busy_intervals(start_s: FloatArray, end_s: FloatArray, replica: NDArray[np.int32]) -> BusyIntervals:
    """The union of finite visits on each replica."""
    if start_s.size == 0:
        return BusyIntervals(replica, start_s, end_s)
    # One sort and one running maximum serve all replicas when each one's times lie beyond those of the one before.
    span_s = float(end_s.max()) + 1.0
    shifted_s = start_s + replica * span_s
    order = np.argsort(shifted_s)
    starts_s = shifted_s[order]
    reached_s = (np.add(end_s, replica * span_s, out=shifted_s))[order]
    np.maximum.accumulate(reached_s, out=reached_s)
    begins = np.flatnonzero(np.concatenate(([True], starts_s[1:] > reached_s[:-1])))
    last = np.append(begins[1:], start_s.size) - 1
    where = replica[order[begins]]
    return BusyIntervals(where, start_s[order[begins]], reached_s[last] - where * span_s)


def latency_series(columns: Columns, deadline_s: float | None, bins: Bins) -> LatencySeries:
    """Latency and failures by time of arrival, in bins wide enough for a percentile."""
    sent = slice(columns.sent)
    wanted = min(max(columns.sent // _REQUESTS_PER_LATENCY_BIN, 1), _MOST_LATENCY_BINS)
    wide = bins.merged(-(-bins.count // wanted))
    at, status = wide.of(columns.native.arrived_s[sent]), columns.native.status[sent]
    latency_s = columns.latency_s(sent)
    served = status == SERVED
    late = latency_s > (math.inf if deadline_s is None else deadline_s)

    def counted(which: NDArray[np.bool_]) -> CountArray:
        return np.bincount(at[which], minlength=wide.count)

    order = np.argsort(at[served], kind="stable")
    by_bin = np.split(latency_s[served][order], np.cumsum(counted(served))[:-1])
    return LatencySeries(
        wide,
        np.bincount(at, minlength=wide.count),
        np.array([np.quantile(part, 0.5) if part.size else math.nan for part in by_bin]),
        np.array([np.quantile(part, 0.95) if part.size >= FEWEST_FOR_P95 else math.nan for part in by_bin]),
        counted(late),
        counted(status == TIMED_OUT),
        counted(status == REFUSED),
        counted(status == UNFINISHED),
    )
