"""What a simulation sends: requests drawn from the scored ones, when they arrive, and how long a judge takes.

Requests and arrival times are drawn from streams of their own, so that two runs of one seed serve the same requests
whatever their arrivals.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import InputError

if TYPE_CHECKING:
    from cascadia_fast.workload import ScoredRequests, Workload

ARRIVALS = ("trace", "poisson", "gamma")
JUDGE_QUANTILES = 4096
MAX_REQUESTS = 16_000_000
MAX_TIME_S = 1e12  # beyond, times lose their milliseconds
MAX_CV = 1e3  # beyond, nearly all of the times between arrivals are less than the smallest number
# Beyond, an engine's counters of tokens would overflow; the longest context of any model is a thousandth of it.
MAX_TOKENS = 2**30

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]

# Streams of random numbers that no purpose shares with another; the last three are those of comparisons.
DRAWN, ARRIVING, SPLIT, ROTATION, PLANNING = range(5)


def drawn_requests(requests: ScoredRequests, count: int, seed: int) -> IndexArray:
    """Return, shape (count,), indexes of scored requests drawn with replacement, in proportion to their weights."""
    stream = stream_of(seed, DRAWN)
    if np.all(requests.weight == 1):
        return stream.integers(requests.size, size=count, dtype=np.int32)
    mass = np.cumsum(requests.weight)
    drawn = np.searchsorted(mass, stream.random(count) * mass[-1], side="right")
    # A product that rounds up to the whole mass would point behind the last request that has any.
    found: IndexArray = np.minimum(drawn, np.flatnonzero(requests.weight)[-1]).astype(np.int32)
    return found


def arrival_times(workload: Workload, kind: str, rate_per_s: float, count: int, seed: int) -> FloatArray:
    """Return, shape (count,), ascending arrival times in seconds.

    Parameters
    ----------
    workload
        Its trace or, for ``gamma``, its coefficient of variation (CV) of the times between arrivals.
    kind
        ``trace``: the trace stretched to the rate, and repeated end to end where it is too short. ``poisson`` and
        ``gamma``: independent times between arrivals of CV 1 or of the workload's; CV 0 is a metronome.
    rate_per_s
        Mean rate.
    count, seed
        How many arrivals; equal seeds give equal times.
    """
    times_s = (
        _trace(workload, rate_per_s, count) if kind == "trace" else _renewal(workload, kind, rate_per_s, count, seed)
    )
    if times_s[-1] >= MAX_TIME_S:
        raise InputError(
            f"rate_per_s is {rate_per_s:g}, so that {count:,} requests take {times_s[-1]:.3g} s; give a higher rate or "
            f"fewer requests, for at most {MAX_TIME_S:g} s"
        )
    return times_s


def _renewal(workload: Workload, kind: str, rate_per_s: float, count: int, seed: int) -> FloatArray:
    variation = 1.0 if kind == "poisson" else workload.cv
    if variation > MAX_CV:
        raise InputError(f"the workload's cv is {variation:g}; gamma arrivals have at most {MAX_CV:g}, so use poisson")
    stream = stream_of(seed, ARRIVING)
    if variation == 0:
        return np.arange(count) / rate_per_s
    if variation == 1:
        gaps_s = stream.standard_exponential(count)
    else:
        gaps_s = stream.standard_gamma(variation**-2, count)
        gaps_s *= variation**2
    gaps_s /= rate_per_s
    return np.cumsum(gaps_s, out=gaps_s)


def _trace(workload: Workload, rate_per_s: float, count: int) -> FloatArray:
    arrivals = workload.arrivals
    times_s = arrivals.times_s
    if times_s is None:
        raise InputError("arrivals is 'trace', but the workload has only a rate; use poisson or gamma, or add a trace")
    once_s: FloatArray = (times_s[:count] - times_s[0]) * (arrivals.rate_per_s / rate_per_s)
    if count <= times_s.size:
        return once_s
    # One mean gap between the last arrival and the next first one keeps the rate.
    period_s = times_s.size / rate_per_s
    rounds = -(-count // times_s.size)
    # Where the first and the last arrival of a trace come together, rounding may put the end of a round after the next.
    repeated_s: FloatArray = np.maximum.accumulate((np.arange(rounds)[:, None] * period_s + once_s).ravel())
    return repeated_s[:count]


def whole_tokens(tokens: FloatArray, what: str) -> IndexArray:
    """Return lengths in whole tokens of at least 1, rounded up."""
    longest = float(tokens.max())
    if longest > MAX_TOKENS:
        raise InputError(f"a request has {longest:,.0f} {what} tokens; at most {MAX_TOKENS:,} can be simulated")
    whole: IndexArray = np.maximum(np.ceil(tokens), 1).astype(np.int32)
    return whole


@cache
def judge_delays(latency_s: float, cv: float) -> FloatArray:
    """Return delays of a judge call that are equally likely: one, or the quantiles of a lognormal distribution.

    Parameters
    ----------
    latency_s
        Mean delay in seconds, kept exactly.
    cv
        Standard deviation over mean.
    """
    if latency_s == 0 or cv == 0:
        return np.array([latency_s])
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((k + 0.5) / JUDGE_QUANTILES) for k in range(JUDGE_QUANTILES)])
    delays_s: FloatArray = np.exp(quantiles * math.sqrt(math.log1p(cv**2)))
    delays_s *= latency_s / delays_s.mean()
    delays_s.setflags(write=False)  # it is kept
    return delays_s


def stream_of(seed: int, purpose: int) -> np.random.Generator:
    """Return the random numbers of a seed for one purpose."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))
