"""What a window of observed stage visits says about the traffic: rate, burstiness, reach, lengths, scores.

The monitor hands over a copy of its recent visits; everything here is plain NumPy on that copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The record of one stage visit, as monitor.pyx writes it: 56 bytes, no padding.
VISIT = np.dtype(
    [
        ("request", np.intp),
        ("stage", np.int64),
        ("now_s", np.float64),
        ("latency_s", np.float64),
        ("input_tokens", np.float64),
        ("output_tokens", np.float64),
        ("score", np.float64),
    ]
)

# A visit is recorded when it ends, so the latest arrivals and paths are not all there yet, and the slow ones least of
# all. What depends on them is taken over the latest window of which this share has been seen to its end; waiting for
# the slowest percent too would let one stuck request age every figure by minutes.
SEEN_TO_THE_END = 0.99


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Traffic over the last window; tuples have one entry per stage, NaN marks what no visit tells.

    Attributes
    ----------
    end_s
        Time at which the window ends, on the clock of the observations.
    window_s
        Seconds the window really covers: less than asked for while the monitor is young, or when its ring is too small
        for the traffic.
    observations
        Visits recorded since the monitor was made.
    visits
        Visits per stage in the window. A request that a stage served twice (a retry) is two visits: both cost GPU time.
    rate_per_s
        New requests per second, that is arrivals at the first stage. An arrival is the time of the visit less its
        latency; the window is moved back to where 99 % of the arrivals have been answered.
    cv
        Coefficient of variation of the times between those arrivals.
    reach
        Share of requests that go on to the stage, joined by request id, over the latest window of first visits that are
        old enough for 99 % of the paths to have ended.
    mean_input_tokens, mean_output_tokens, mean_score
        Means per visit; scores on the scale 0 to 100.
    score_missing
        Share of the visits without a score (at the last stage usually all, as nothing depends on it).
    p95_latency_s
        95th percentile of the latency of a visit, in seconds.
    """

    end_s: float
    window_s: float
    observations: int
    visits: tuple[int, ...]
    rate_per_s: float
    cv: float
    reach: tuple[float, ...]
    mean_input_tokens: tuple[float, ...]
    mean_output_tokens: tuple[float, ...]
    mean_score: tuple[float, ...]
    score_missing: tuple[float, ...]
    p95_latency_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TrafficWindow:
    """A copy of the visits a monitor holds for the window that ends at `end_s`.

    Attributes
    ----------
    visits
        Shape (n,), dtype `VISIT`, in the order of their recording, none after `end_s`. They reach back two windows, so
        that what is seen late can still be taken over a whole one.
    stages
        Number of models in the cascade.
    window_s, end_s
        Length and end of the window, in seconds.
    known_from_s
        Nothing is known before this time: the monitor was not there, or has overwritten it.
    observations
        Visits recorded since the monitor was made.
    """

    visits: NDArray[Any]
    stages: int
    window_s: float
    end_s: float
    known_from_s: float
    observations: int

    def at_stage(self, stage: int) -> NDArray[Any]:
        """Return the visits to one stage inside the window."""
        inside = (self.visits["stage"] == stage) & (self.visits["now_s"] >= self._start_s(0.0))
        visited: NDArray[Any] = self.visits[inside]
        return visited

    def arrivals(self) -> tuple[NDArray[np.float64], float]:
        """Return the sorted arrival times at the first stage and the length of the window they fill, in seconds."""
        first = self.visits[self.visits["stage"] == 0]
        latency_s = np.nan_to_num(first["latency_s"], nan=0.0)
        lag_s = self._lag_s(latency_s)
        start_s, end_s = self._start_s(lag_s), self.end_s - lag_s
        times_s = np.sort(first["now_s"] - latency_s)
        return times_s[(times_s > start_s) & (times_s <= end_s)], max(end_s - start_s, 0.0)

    def reach(self) -> tuple[float, ...]:
        """Return the share of requests that go on to each stage, as `Snapshot.reach` describes it."""
        first = self.visits[self.visits["stage"] == 0]
        later = self.visits[self.visits["stage"] > 0]
        requests, place = np.unique(first["request"], return_index=True)
        first_s = first["now_s"][place]
        if not requests.size:
            return (math.nan,) * self.stages
        at = np.minimum(np.searchsorted(requests, later["request"]), requests.size - 1)
        joined = requests[at] == later["request"]
        lag_s = self._lag_s(later["now_s"][joined] - first_s[at[joined]])
        cohort = (first_s >= self._start_s(lag_s)) & (first_s <= self.end_s - lag_s)
        if not cohort.any():
            return (math.nan,) * self.stages
        reach = [1.0]
        for stage in range(1, self.stages):
            went_on = np.zeros(requests.size, dtype=bool)
            went_on[at[joined & (later["stage"] == stage)]] = True
            reach.append(float(went_on[cohort].mean()))
        return tuple(reach)

    def snapshot(self) -> Snapshot:
        """Summarise the window."""
        per_stage = [self.at_stage(stage) for stage in range(self.stages)]
        times_s, duration_s = self.arrivals()
        return Snapshot(
            end_s=self.end_s,
            window_s=min(max(self.end_s - self._start_s(0.0), 0.0), self.window_s) if self.observations else 0.0,
            observations=self.observations,
            visits=tuple(len(visited) for visited in per_stage),
            rate_per_s=times_s.size / duration_s if duration_s > 0 else 0.0,
            cv=_variation_of_gaps(times_s),
            reach=self.reach(),
            mean_input_tokens=tuple(_mean(visited["input_tokens"]) for visited in per_stage),
            mean_output_tokens=tuple(_mean(visited["output_tokens"]) for visited in per_stage),
            mean_score=tuple(_mean(visited["score"]) for visited in per_stage),
            score_missing=tuple(_mean(np.isnan(visited["score"])) for visited in per_stage),
            p95_latency_s=tuple(_quantile(visited["latency_s"], 0.95) for visited in per_stage),
        )

    def _start_s(self, lag_s: float) -> float:
        """Start of the window that ends `lag_s` before this one does."""
        return max(self.end_s - self.window_s - lag_s, self.known_from_s)

    def _lag_s(self, delays_s: NDArray[np.float64]) -> float:
        if not delays_s.size:
            return 0.0
        return min(max(_quantile(delays_s, SEEN_TO_THE_END), 0.0), self.window_s)


def _variation_of_gaps(times_s: NDArray[np.float64]) -> float:
    """Return standard deviation over mean of the differences of sorted times, NaN for fewer than three times."""
    gaps_s = np.diff(times_s)
    if gaps_s.size < 2 or gaps_s.mean() <= 0:
        return math.nan
    return float(gaps_s.std() / gaps_s.mean())


def _mean(values: NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _quantile(values: NDArray[Any], share: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.quantile(known, share)) if known.size else math.nan
