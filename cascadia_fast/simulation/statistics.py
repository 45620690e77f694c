"""What columns of a simulation say: warm-up, quantiles with intervals, SLO attainment, queues; functions of arrays.

Observations stand in order of arrival; that order carries the correlation that intervals and the warm-up rule need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.student_t import student_t975

FloatArray = NDArray[np.float64]

QUANTILES = (0.5, 0.9, 0.95, 0.99)
# Asmussen & Glynn (Stochastic Simulation, 2007) advise few sections: the longer they are, the less consecutive ones
# depend on each other.
SECTIONS = 10
SHORTEST_SECTION = 10
MSER_BATCH = 5
LEAST_BATCHES = 10  # of fewer, the last ones are alike by chance
MOST_WARM_UP = 0.5
# A request alone in the system takes its idle latency but for rounding.
ALONE = 1 + 1e-9
# Batch means that differ by no more than rounding have no warm-up.
ROUNDING = 1e-12
BLOCK = 1 << 16  # numbers at a time where results are not kept


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % confidence interval, None where the run is too short for one."""

    value: float
    low: float | None
    high: float | None

    @property
    def relative_half_width(self) -> float:
        """Half the interval over the value; infinite without an interval."""
        if self.low is None or self.high is None:
            return math.inf
        width = max(self.high - self.value, self.value - self.low)
        return width / self.value if self.value > 0 else (0.0 if width == 0 else math.inf)

    def holds(self, value: float) -> bool:
        """Whether the interval holds a value."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Quantiles of `count` observations, with intervals from `sections` batches of consecutive ones."""

    count: int
    sections: int
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate

    def tail(self, share: float) -> float:
        """Observations beyond a quantile, per section."""
        return self.count / max(self.sections, 1) * (1 - share)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How many observations at the start are left out, and whether the rule hit its limit."""

    observations: int
    at_limit: bool


def warm_up(values: FloatArray) -> WarmUp:
    """Return what MSER-5 leaves out (White, Simulation 69(6), 1997): the cut after which the mean is surest.

    The cut minimises the squared standard error of the mean of what stays, Σ(y - ȳ)²/k², over batches of 5 consecutive
    observations; it is sought in the first half, and a minimum at the end of that half says that no steady state shows.
    """
    batches = values.size // MSER_BATCH
    if batches < LEAST_BATCHES:
        return WarmUp(0, False)
    means = values[: batches * MSER_BATCH].reshape(batches, MSER_BATCH).mean(axis=1)
    level = means.mean()
    means -= level  # sums of squares of what is centred lose no digits
    if np.abs(means).max() <= ROUNDING * abs(level):
        return WarmUp(0, False)
    cuts = int(batches * MOST_WARM_UP) + 1
    left = np.arange(batches, batches - cuts, -1.0)
    total = means.sum() - np.concatenate(([0.0], np.cumsum(means[: cuts - 1])))
    squares = (means @ means) - np.concatenate(([0.0], np.cumsum(means[: cuts - 1] ** 2)))
    errors = (squares - total**2 / left) / left**2
    cut = int(np.argmin(errors))
    return WarmUp(cut * MSER_BATCH, cut == cuts - 1 and errors[cut] < errors[0])


def percentiles(values: FloatArray, most_sections: int = SECTIONS) -> Percentiles | None:
    """Return the quantiles of a column that holds no NaN, with intervals by sectioning; None of an empty one.

    The overall quantile is the centre, as it is less biased than the mean of the sections' (Asmussen & Glynn 2007).
    The column is reordered: hand over a copy of what is still needed.
    """
    if not values.size:
        return None
    sections = min(most_sections, values.size // SHORTEST_SECTION)
    sections = sections if sections >= 2 else 0
    cuts = np.linspace(0, values.size, sections + 1).astype(int) if sections else np.zeros(1, int)
    by_section = np.array(
        [np.quantile(values[start:end], QUANTILES, overwrite_input=True) for start, end in pairwise(cuts)]
    )
    overall = np.quantile(values, QUANTILES, overwrite_input=True)
    found = []
    for place, value in enumerate(map(float, overall)):
        low = high = None
        if sections:
            spread = float(np.square(by_section[:, place] - value).sum()) / (sections - 1)
            half_width = student_t975(sections - 1) * math.sqrt(spread / sections)
            low, high = max(value - half_width, 0.0), value + half_width
        found.append(Estimate(value, low, high))
    return Percentiles(values.size, sections, *found)


def mean_of_drawn(
    drawn: FloatArray, sample: FloatArray, weight: FloatArray, effective_size: float, top: float
) -> Estimate | None:
    """Return the mean of values in 0 … `top` that were drawn from a sample, sure only as far as that sample is.

    The variance of the mean adds what the draws leave open to what the `effective_size` independent values behind the
    weighted sample do; Student's t is that of the sample.
    """
    if not drawn.size:
        return None
    mean = float(drawn.mean())
    if effective_size < 2:
        return Estimate(mean, 0.0, top)
    center = np.average(sample, weights=weight)
    variance = float(np.average((sample - center) ** 2, weights=weight)) * effective_size / (effective_size - 1)
    half_width = student_t975(effective_size - 1) * math.sqrt(variance * (1 / effective_size + 1 / drawn.size))
    return Estimate(mean, max(mean - half_width, 0.0), min(mean + half_width, top))


def attainment(sorted_ratios: FloatArray, scale: float, requests: int) -> float:
    """Return the share of `requests` whose latency is at most `scale` times what it is on an idle system.

    `sorted_ratios` holds those that were served, ascending; the others attain nothing.
    """
    within = np.searchsorted(sorted_ratios, scale * ALONE, side="right")
    return float(within) / requests if requests else 0.0


def within_scale(ratios: FloatArray, scale: float) -> NDArray[np.bool_]:
    """Return whether each ratio of a latency to that on an idle system is within a scale; NaN is not."""
    found: NDArray[np.bool_] = ratios <= scale * ALONE
    return found


def smallest_scale(sorted_ratios: FloatArray, share: float, requests: int) -> float | None:
    """Return the least scale that `share` of the requests attain, None when too few were served for any."""
    place = max(math.ceil(share * requests - 1e-9), 1) - 1
    return float(sorted_ratios[place]) if place < sorted_ratios.size else None


def mean_present(entered_s: FloatArray, left_s: FloatArray, start_s: float, end_s: float) -> float:
    """Return the mean number present from `start_s` to `end_s`, of those that entered and left at some times."""
    if end_s <= start_s:
        return 0.0
    return float(np.clip(left_s, start_s, end_s).sum() - np.clip(entered_s, start_s, end_s).sum()) / (end_s - start_s)


def most_present(entered_s: FloatArray, left_s: FloatArray) -> int:
    """Return the largest number present at once; who leaves at the moment another enters is gone.

    Both columns are sorted in place: hand over copies of what is still needed.
    """
    entered_s.sort()
    left_s.sort()
    most = 0
    for start in range(0, entered_s.size, BLOCK):
        gone = np.searchsorted(left_s, entered_s[start : start + BLOCK], side="right")
        most = max(most, int((np.arange(start + 1, start + 1 + gone.size) - gone).max()))
    return most


def present_at(entered_s: FloatArray, left_s: FloatArray, times_s: FloatArray) -> NDArray[np.int64]:
    """Return the number present at each of some ascending times."""
    return counted_until(entered_s, times_s) - counted_until(left_s, times_s)


def counted_until(events_s: FloatArray, times_s: FloatArray) -> NDArray[np.int64]:
    """Return how many events had happened at each of some ascending times."""
    per_cell = np.zeros(times_s.size + 1, np.int64)
    for start in range(0, events_s.size, BLOCK):
        per_cell += np.bincount(_cells(events_s[start : start + BLOCK], times_s), minlength=per_cell.size)
    return per_cell[:-1].cumsum()


def busy_replicas_at(
    entered_s: FloatArray, left_s: FloatArray, replica: NDArray[np.int32], replicas: int, times_s: FloatArray
) -> NDArray[np.int64]:
    """Return how many replicas have someone present at each of some ascending times."""
    stride = times_s.size + 1
    change = np.zeros(replicas * stride, np.int64)
    for events_s, sign in ((entered_s, 1), (left_s, -1)):
        for start in range(0, events_s.size, BLOCK):
            cells = _cells(events_s[start : start + BLOCK], times_s)
            np.add.at(change, replica[start : start + BLOCK].astype(np.intp) * stride + cells, sign)
    by_replica = change.reshape(replicas, stride)[:, :-1].cumsum(axis=1)
    busy: NDArray[np.int64] = (by_replica > 0).sum(axis=0)
    return busy


def _cells(events_s: FloatArray, times_s: FloatArray) -> NDArray[np.intp]:
    """Return the interval of each event: cell k holds what happens after times k-1 and at or before time k."""
    return np.searchsorted(times_s, events_s, side="left")
