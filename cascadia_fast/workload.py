"""What is served: scored requests, arrival statistics, and the rate that is planned."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadia_fast.dispersion import Windows, swings_of
from cascadia_fast.errors import InputError, did_you_mean

RATE_SOURCES = ("mean", "p95_1min", "peak_1min")
DISPERSION_WINDOWS_S = (1, 10, 60)
# Below this many windows the variance of the counts is too uncertain to print.
MIN_WINDOWS = 10
# Gaps with CV 2 are the edge of what the latency model was checked against; Poisson arrivals have
# dispersion 1 at every window, and 3 over a minute is far outside the sampling error of an hour of them.
BURSTY_CV = 2.0
BURSTY_DISPERSION = 3.0

# Far beyond any traffic; within them counts per window and queues keep their precision.
MIN_RATE_PER_S, MAX_RATE_PER_S = 1e-9, 1e9
MAX_DURATION_S = 1e12

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ScoredRequests:
    """Sampled requests with the answer lengths, scores and qualities of every model of the cascade.

    Parameters
    ----------
    models
        Names of the C models, small to large, as the table of requests calls them.
    request_ids
        Shape (n,), one name per request.
    input_tokens, output_tokens
        Shape (C, n), tokens; positive. Output tokens include thinking.
    score
        Shape (C, n), what the judge says when serving, 0 to 100; the last stage's may be NaN, since it always accepts.
    quality
        Shape (C, n), what really counts, 0 to 100.
    weight
        Shape (n,), scaled here to mean 1; empty, the default, stands for all ones.
    source
        Shape (n,), the index of the independent sample that a row repeats; 0 … n-1 unless rows were resampled.
        It keeps a table that was blown up by resampling from looking more certain than the sample behind it.

    Raises
    ------
    InputError
        When a shape does not fit or a value is out of range.
    """

    models: tuple[str, ...]
    request_ids: NDArray[np.str_]
    input_tokens: FloatArray
    output_tokens: FloatArray
    score: FloatArray
    quality: FloatArray
    weight: FloatArray = field(default_factory=lambda: np.empty(0))
    source: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        ids = _read_only(self.request_ids, np.str_)
        object.__setattr__(self, "request_ids", ids)
        size = ids.size
        if ids.ndim != 1 or size == 0:
            raise InputError(f"request_ids has shape {ids.shape}; it must be a list of at least one request")
        if not self.models:
            raise InputError("models is empty; name at least one model")
        for name in ("input_tokens", "output_tokens", "score", "quality"):
            array = _read_only(getattr(self, name), np.float64)
            if array.shape != (len(self.models), size):
                expected = (len(self.models), size)
                raise InputError(f"{name} has shape {array.shape}; it must be (models, requests) = {expected}")
            object.__setattr__(self, name, array)
        self._check_values()
        weight = np.asarray(self.weight, dtype=np.float64) if np.size(self.weight) else np.ones(size)
        object.__setattr__(self, "weight", _mean_one(weight, size))
        source = self.source if np.size(self.source) else np.arange(size)
        object.__setattr__(self, "source", _read_only(source, np.int64))
        if self.source.shape != (size,) or self.source.min() < 0:
            raise InputError(f"source has shape {self.source.shape}; it must be {size:,} indexes that are not negative")

    def _check_values(self) -> None:
        for name in ("input_tokens", "output_tokens"):
            values = getattr(self, name)
            self._require(name, values, (values > 0) & np.isfinite(values), "a positive number of tokens")
        in_range = (self.score >= 0) & (self.score <= 100)
        in_range[-1] |= np.isnan(self.score[-1])
        self._require("score", self.score, in_range, "a number from 0 to 100")
        self._require("quality", self.quality, (self.quality >= 0) & (self.quality <= 100), "a number from 0 to 100")

    def _require(self, name: str, values: FloatArray, ok: NDArray[np.bool_], expected: str) -> None:
        if ok.all():
            return
        stage, index = np.unravel_index(int(np.argmin(ok)), ok.shape)
        raise InputError(
            f"{name} of request {str(self.request_ids[index])!r} for model {self.models[stage]!r} "
            f"is {values[stage, index]:g}; it must be {expected}"
        )

    @property
    def size(self) -> int:
        """Number of requests n."""
        return int(self.request_ids.size)

    @cached_property
    def effective_size(self) -> float:
        """Kish's effective sample size, (Σw)² / Σw², with the weights of rows that repeat one sample added up."""
        per_sample = np.bincount(self.source, weights=self.weight)
        return float(self.weight.sum() ** 2 / np.square(per_sample).sum())

    def select(self, indices: ArrayLike) -> ScoredRequests:
        """Return the requests at `indices` (or under a boolean mask) with their weights and sources."""
        chosen = np.arange(self.size)[np.asarray(indices)]
        return ScoredRequests(
            models=self.models,
            request_ids=_sealed(self.request_ids[chosen]),
            input_tokens=_sealed(self.input_tokens[:, chosen]),
            output_tokens=_sealed(self.output_tokens[:, chosen]),
            score=_sealed(self.score[:, chosen]),
            quality=_sealed(self.quality[:, chosen]),
            weight=self.weight[chosen],
            source=_sealed(self.source[chosen]),
        )

    def of_models(self, indexes: Sequence[int]) -> ScoredRequests:
        """Return the same requests with some of the models only; the last one's scores do not matter."""
        chosen = list(indexes)
        return dataclasses.replace(
            self,
            models=tuple(self.models[index] for index in chosen),
            input_tokens=_sealed(self.input_tokens[chosen]),
            output_tokens=_sealed(self.output_tokens[chosen]),
            score=_sealed(self.score[chosen]),
            quality=_sealed(self.quality[chosen]),
        )

    def bootstrap(self, seed: int, size: int | None = None) -> ScoredRequests:
        """Return `size` (default n) requests drawn with replacement, in proportion to their weights; weights are 1."""
        if size is not None and size < 1:
            raise InputError(f"the bootstrap size is {size}; it must be at least 1")
        rng = np.random.default_rng(seed)
        drawn = self.size if size is None else size
        if np.all(self.weight == 1):
            chosen = rng.integers(0, self.size, drawn)
        else:
            chosen = rng.choice(self.size, drawn, p=self.weight / self.weight.sum())
        return dataclasses.replace(self.select(chosen), weight=np.ones(drawn))

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256("\0".join(self.models).encode())
        for array in (self.input_tokens, self.output_tokens, self.score, self.quality, self.weight):
            # NaN has many bit patterns and zero has two; both must hash alike everywhere.
            plain = np.where(np.isnan(array), np.nan, array + 0.0)
            digest.update(np.ascontiguousarray(plain, dtype="<f8").data)
        return digest.hexdigest()

    def content_hash(self) -> str:
        """Return the SHA-256 of everything that planning sees: models, lengths, scores, qualities and weights."""
        return self._hash


@dataclass(frozen=True, eq=False)
class Arrivals:
    """When requests arrive: a trace, or only a rate.

    Parameters
    ----------
    rate_per_s
        Mean rate: the inverse of the mean time between arrivals.
    cv
        Coefficient of variation of the times between arrivals.
    dispersion
        Index of dispersion of counts (variance / mean) by window length in seconds; windows of which the trace holds
        fewer than 10 are left out, and it is empty when only a rate is given.
    peak_1min_per_s, p95_1min_per_s
        Largest and 95th percentile rate over whole minutes; the mean rate when the trace is shorter than a minute.
    count, duration_s
        Arrivals in the trace and the time from first to last; zero when only a rate is given.
    times_s
        Shape (count,), ascending; None when only a rate is given.
    swings
        Shape (K,): index of dispersion of counts over windows of 1, 2, 4 … mean gaps, up to a quarter of the trace;
        stretching time leaves it as it is. Empty when only a rate is given: gaps are independent then.
    """

    rate_per_s: float
    cv: float
    dispersion: dict[int, float]
    peak_1min_per_s: float
    p95_1min_per_s: float
    count: int
    duration_s: float
    times_s: FloatArray | None
    swings: FloatArray = field(default_factory=lambda: _sealed(np.empty(0)))

    @classmethod
    def from_rate(cls, rate_per_s: float, cv: float = 1.0) -> Self:
        """Describe renewal arrivals of a given rate and variation (1 is Poisson) without a trace."""
        _require_rate("rate_per_s", rate_per_s)
        if not (math.isfinite(cv) and cv >= 0):
            raise InputError(f"cv is {cv:g}; it must be a number that is not negative")
        return cls(rate_per_s, cv, {}, rate_per_s, rate_per_s, 0, 0.0, None)

    @classmethod
    def from_times(cls, times_s: ArrayLike) -> Self:
        """Measure a trace of ascending arrival times, shape (count,), in seconds."""
        times = _read_only(times_s, np.float64)
        if times.ndim != 1 or times.size < 2:
            raise InputError(f"a trace of {times.size} arrival(s) has no rate; give at least two, or a rate_per_s")
        if not np.isfinite(times).all():
            row = int(np.argmin(np.isfinite(times)))
            raise InputError(f"arrival {row + 1} is {times[row]:g}; arrival times must be finite seconds")
        backwards = np.flatnonzero(times[1:] < times[:-1])
        if backwards.size:
            row = int(backwards[0]) + 1
            raise InputError(
                f"arrival {row + 1} at {times[row]:g} s comes before the one above it at {times[row - 1]:g} s; "
                "sort the arrivals by time"
            )
        duration_s = float(times[-1]) - float(times[0])
        if duration_s == 0:
            raise InputError(f"all {times.size:,} arrivals are at {times[0]:g} s; a rate needs two different times")
        if duration_s > MAX_DURATION_S:
            raise InputError(
                f"{times.size:,} arrivals span {duration_s:.3g} s; at most {MAX_DURATION_S:,.0f} s are supported, so "
                "give times in seconds and a higher rate"
            )
        gaps = np.diff(times)
        mean_gap_s = duration_s / gaps.size
        dispersion = {}
        for window_s in DISPERSION_WINDOWS_S:
            windows = Windows.of(times, window_s)
            if windows.count >= MIN_WINDOWS:
                dispersion[window_s] = windows.dispersion()
        minutes = Windows.of(times, 60)
        rate_per_s = gaps.size / duration_s
        _require_rate("the rate of the arrivals", rate_per_s)
        return cls(
            rate_per_s=rate_per_s,
            cv=float(gaps.std() / mean_gap_s),
            dispersion=dispersion,
            peak_1min_per_s=minutes.quantile(1.0) / 60 if minutes.count else rate_per_s,
            p95_1min_per_s=minutes.quantile(0.95) / 60 if minutes.count else rate_per_s,
            count=times.size,
            duration_s=duration_s,
            times_s=times,
            swings=_sealed(swings_of((times - times[0]) * rate_per_s)),
        )

    def rescaled(self, rate_per_s: float) -> Arrivals:
        """Stretch time to the mean rate `rate_per_s`; CV and swings stay, the statistics per window do not."""
        _require_rate("rate_per_s", rate_per_s)
        if self.times_s is None:
            return Arrivals.from_rate(rate_per_s, self.cv)
        start_s = self.times_s[0]
        stretch = self.rate_per_s / rate_per_s
        return dataclasses.replace(
            Arrivals.from_times(_sealed((self.times_s - start_s) * stretch)),
            rate_per_s=rate_per_s,
            cv=self.cv,
            swings=self.swings,
        )

    def rate_by(self, rate_from: str) -> float:
        """Return the mean, the 95th percentile minute, or the peak minute, in requests per second."""
        if rate_from not in RATE_SOURCES:
            hint = did_you_mean(rate_from, RATE_SOURCES)
            raise InputError(f"rate_from is {rate_from!r}; use one of {', '.join(RATE_SOURCES)}{hint}")
        if rate_from == "mean":
            return self.rate_per_s
        if self.times_s is None:
            raise InputError(
                f"rate_from is {rate_from!r}, but only a rate is given; add arrivals, or use mean with headroom"
            )
        return self.p95_1min_per_s if rate_from == "p95_1min" else self.peak_1min_per_s


@dataclass(frozen=True, eq=False)
class Workload:
    """Scored requests, how they arrive, and the rate that is planned.

    Parameters
    ----------
    requests
        The sample of scored requests.
    arrivals
        Arrival statistics, at the traffic's own mean rate.
    rate_per_s
        The planned rate: the rate that `rate_from` picks from the arrivals, times `headroom`.
    cv
        Coefficient of variation of the times between arrivals.
    rate_from
        ``mean``, ``p95_1min`` or ``peak_1min``.
    headroom
        Factor of at least 1.
    """

    requests: ScoredRequests
    arrivals: Arrivals
    rate_per_s: float
    cv: float
    rate_from: str = "mean"
    headroom: float = 1.0

    def __post_init__(self) -> None:
        _require_rate("rate_per_s", self.rate_per_s)
        if not (math.isfinite(self.cv) and self.cv >= 0):
            raise InputError(f"cv is {self.cv:g}; it must be a number that is not negative")
        if not (math.isfinite(self.headroom) and self.headroom >= 1):
            raise InputError(f"headroom is {self.headroom:g}; it must be at least 1")
        if self.rate_from not in RATE_SOURCES:
            raise InputError(f"rate_from is {self.rate_from!r}; use one of {', '.join(RATE_SOURCES)}")

    @classmethod
    def build(
        cls, requests: ScoredRequests, arrivals: Arrivals, rate_from: str = "mean", headroom: float = 1.0
    ) -> Self:
        """Plan the rate that `rate_from` picks from `arrivals`, times `headroom`."""
        return cls(requests, arrivals, arrivals.rate_by(rate_from) * headroom, arrivals.cv, rate_from, headroom)

    @property
    def swings(self) -> FloatArray:
        """Those of the arrivals that the planned rate leaves out: over a minute at most where it is a minute's."""
        known = self.arrivals.swings
        if self.rate_from == "mean":
            return known
        octaves = int(np.log2(max(60 * self.arrivals.rate_per_s, 1))) + 1
        return known[:octaves]

    def replace(self, **changes: Any) -> Workload:
        """Return a copy with fields replaced; the planned rate and CV stay unless they are given."""
        known = [item.name for item in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise InputError(f"a workload has no field {name!r}{did_you_mean(name, known)}")
        return dataclasses.replace(self, **changes)

    def with_rate(self, rate_per_s: float) -> Workload:
        """Return the same traffic at another planned rate; the arrivals are stretched by the same factor."""
        _require_rate("rate_per_s", rate_per_s)
        arrivals = self.arrivals.rescaled(self.arrivals.rate_per_s * rate_per_s / self.rate_per_s)
        return dataclasses.replace(self, arrivals=arrivals, rate_per_s=rate_per_s)

    def content_hash(self) -> str:
        """Return the SHA-256 of what planning sees: the requests, the planned rate, the CV and the swings."""
        digest = hashlib.sha256(self.requests.content_hash().encode())
        digest.update(np.array([self.rate_per_s, self.cv, *self.swings], dtype="<f8").data)
        return digest.hexdigest()


def bursty_warning(arrivals: Arrivals) -> str | None:
    """Return one sentence when arrivals are burstier than the latency model, which knows variances, is sure about."""
    longest_s = max(arrivals.dispersion, default=0)
    dispersion = arrivals.dispersion.get(longest_s, 1.0)
    reasons = []
    if dispersion > BURSTY_DISPERSION:
        reasons.append(
            f"their index of dispersion over {longest_s} s is {dispersion:.1f}, not the 1 of Poisson arrivals"
        )
    if arrivals.cv > BURSTY_CV:
        reasons.append(f"their inter-arrival CV is {arrivals.cv:.1f}")
    if not reasons:
        return None
    return (
        f"The latency model knows of bursts how much they vary, not when they come, and {' and '.join(reasons)}; "
        "plan with rate_from: p95_1min or with headroom"
    )


def _require_rate(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value:g}; it must be a positive number")
    if not MIN_RATE_PER_S <= value <= MAX_RATE_PER_S:
        raise InputError(
            f"{name} is {value:g} per second; it must lie between {MIN_RATE_PER_S:g} and {MAX_RATE_PER_S:,.0f}"
        )


def _mean_one(weight: FloatArray, size: int) -> FloatArray:
    if weight.shape != (size,):
        raise InputError(f"weight has shape {weight.shape}; it must hold one number for each of {size:,} requests")
    if not (np.isfinite(weight).all() and weight.min() >= 0 and weight.sum() > 0):
        raise InputError(
            "weight holds a negative or infinite number or only zeros; weights must be finite and not negative"
        )
    mean = weight.mean()
    # Dividing by a mean of 1 that carries rounding errors would change equal weights from call to call.
    return _sealed(weight.copy() if abs(mean - 1) < 1e-12 else weight / mean)


def _read_only(values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    """Return a C-contiguous read-only array; copies unless `values` already is one that nobody else can write to."""
    if (
        isinstance(values, np.ndarray)
        and np.issubdtype(values.dtype, dtype)
        and values.flags.c_contiguous
        and not values.flags.writeable
        and values.base is None
    ):
        return values
    try:
        return _sealed(np.array(values, dtype=dtype, order="C"))
    except (TypeError, ValueError) as error:
        raise InputError(f"an array cannot be read as {dtype.__name__}: {error}; give plain numbers or names") from None


def _sealed(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
