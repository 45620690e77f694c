"""Where requests go: every threshold combination's reach, lengths and quality, and the thresholds finally chosen.

A request reaches stage i exactly when its score is below the threshold at every stage before it, so what stage i sees
under all thresholds is a cumulative sum, along every threshold axis, over requests binned once by score. The whole grid
then costs O(requests + grid), exactly, where evaluating one combination after the other costs their product.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import CascadiaWarning, InputError
from cascadia_fast.length_cells import LengthCells, all_cells, sealed
from cascadia_fast.student_t import student_t975
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]
Levels = Sequence[Sequence[float] | FloatArray] | Literal["distinct"] | None

QUALITY_SLACK = 1e-9  # points by which a mean may miss a floor and still meet it: sums round
FINE_STAGES = 4  # cascades up to here get all of 0 … 100 and never, longer ones at most COARSE_COMBINATIONS
COARSE_COMBINATIONS = 20_000
MAX_COMBINATIONS = 1 << 22
TABULATED_ENTRIES = 1 << 24  # combinations × length cells of a stage: 128 MiB; beyond, rows are made when asked for


@dataclass(frozen=True, eq=False)
class BinnedRequests:
    """What stays of scored requests when only their weights or qualities change: score bins and length cells.

    `levels` and `cells` are those of `RoutingGrid`; `rows` are C arrays of shape (n,), the first row of a stage's
    `cell_weight` in which a request reaches the stage.
    """

    levels: tuple[FloatArray, ...]
    rows: tuple[IndexArray, ...]
    cells: tuple[LengthCells, ...]

    @cached_property
    def escalates(self) -> IndexArray:
        """Shape (n, C - 1): the lowest level of each threshold at which a request that gets there moves on."""
        steps = [
            after - before * level.size
            for before, after, level in zip(self.rows[:-1], self.rows[1:], self.levels, strict=True)
        ]
        n = self.rows[0].size
        return sealed(np.ascontiguousarray(np.stack(steps, axis=1) if steps else np.empty((n, 0), np.int32), np.int32))


@dataclass(frozen=True, eq=False)
class RoutingGrid:
    """Every combination of threshold levels with what it sends to each stage. All arrays are read-only.

    Parameters
    ----------
    levels
        C - 1 ascending arrays, L_i levels each; the last level is ``inf``: no score is enough ("never").
    bins
        The requests' score bins and the length cells of each of the C stages.
    cell_weight
        C arrays. That of stage i has shape (L_1·…·L_i, K_i), in C order over the thresholds before the stage: the
        share of all requests that reaches the stage and lies in the cell, so that a row's sum is the stage's reach.
        That of the last stage is empty where it would be too large: whoever needs a row sums `bins` over it.
    reach
        C arrays of shape (L_1·…·L_i,): the share of all requests that reaches the stage.
    quality
        Shape (L_1·…·L_{C-1},): mean quality of the answers served, 0 to 100.
    routings
        Shape (R, C - 1): level indexes of the distinct routings, in C order. Combinations that send every request the
        same way are merged into the one with the lowest levels.
    """

    levels: tuple[FloatArray, ...]
    bins: BinnedRequests
    cell_weight: tuple[FloatArray, ...]
    reach: tuple[FloatArray, ...]
    quality: FloatArray
    routings: IndexArray

    @property
    def cells(self) -> tuple[LengthCells, ...]:
        """The length cells of each of the C stages."""
        return self.bins.cells

    @property
    def distinct(self) -> int:
        """Number R of distinct routings."""
        return len(self.routings)

    def thresholds(self, routing: int) -> tuple[float, ...]:
        """Return the C - 1 thresholds of a distinct routing."""
        return tuple(float(levels[k]) for levels, k in zip(self.levels, self.routings[routing], strict=True))

    def combination(self, routing: int) -> int:
        """Return the row of `quality` of a distinct routing."""
        return int(self.combinations[routing])

    @cached_property
    def combinations(self) -> NDArray[np.intp]:
        """Shape (R,): the row of `quality` of every distinct routing."""
        return self.rows(len(self.levels))

    def rows(self, stage: int) -> NDArray[np.intp]:
        """Return, shape (R,), the row of `reach` and `cell_weight` of a stage for every distinct routing."""
        rows = np.zeros(self.distinct, np.intp)
        for levels, k in zip(self.levels[:stage], self.routings.T[:stage], strict=True):
            rows = rows * len(levels) + k
        return rows

    def routing_of(self, requests: ScoredRequests, thresholds: Sequence[float]) -> int:
        """Return the distinct routing that sends the grid's requests where these thresholds do.

        The thresholds are levels of the grid. Merged combinations are represented by their lowest levels, hence by the
        first level above the highest score that escalates.
        """
        wanted = []
        reaching = np.arange(requests.size)
        for stage, (threshold, levels) in enumerate(zip(thresholds, self.levels, strict=True)):
            score = requests.score[stage][reaching]
            escalates = score < threshold
            wanted.append(int(np.searchsorted(levels, score[escalates].max(), "right")) if escalates.any() else 0)
            reaching = reaching[escalates]
        return int(np.flatnonzero((self.routings == wanted).all(axis=1))[0])


def routing_grid(
    requests: ScoredRequests, levels: Levels = None, cells: tuple[LengthCells, ...] | None = None
) -> RoutingGrid:
    """Evaluate the routing of every combination of threshold levels.

    Parameters
    ----------
    requests
        Scored requests of a cascade of C models.
    levels
        None: 0, 1, …, 100 and never; from five models on, evenly spaced levels and never that make at most 20,000
        combinations. ``"distinct"``: the distinct scores of each stage and never, hence every possible routing.
        Otherwise C - 1 ascending sequences of levels; "never" (``inf``) is added where it is missing.
    cells
        The requests' `all_cells`, where they are known.

    Raises
    ------
    InputError
        When the levels are malformed or the grid would be too large.
    """
    return grid_of_bins(requests, bin_requests(requests, levels, cells))


def bin_requests(
    requests: ScoredRequests, levels: Levels = None, cells: tuple[LengthCells, ...] | None = None
) -> BinnedRequests:
    """Cut lengths into cells and scores into bins; for the arguments and errors see `routing_grid`."""
    chosen = _threshold_levels(requests, levels)
    combinations = math.prod(level.size for level in chosen)
    if combinations > MAX_COMBINATIONS:
        raise InputError(
            f"levels make {combinations:,} threshold combinations, more than {MAX_COMBINATIONS:,}; give fewer levels, "
            "or leave them out for 0 … 100"
        )
    rows = [np.zeros(requests.size, np.int32)]
    for score, level in zip(requests.score, chosen, strict=False):
        rows.append(_extended_rows(rows[-1], score, level))
    return BinnedRequests(chosen, tuple(sealed(row) for row in rows), cells or all_cells(requests))


def grid_of_bins(requests: ScoredRequests, bins: BinnedRequests) -> RoutingGrid:
    """Evaluate the grid of requests that are binned already; their weights and qualities may have changed since."""
    from cascadia_fast import routing_kernels as kernels

    lengths = tuple(level.size for level in bins.levels)
    total = float(requests.weight.sum())
    quality = np.zeros(lengths)
    distinct = np.ones((), np.bool_)
    cell_weight, reach = [], []
    for stage, (rows, cells) in enumerate(zip(bins.rows, bins.cells, strict=True)):
        axes = lengths[:stage]
        combinations, width = math.prod(axes), cells.tokens_in.size
        # What moving on changes: with it, the quality of a combination is a sum over the stages' own grids.
        gain = requests.quality[stage] - requests.quality[stage - 1] if stage else requests.quality[0]
        if combinations * width <= TABULATED_ENTRIES:
            sums = np.zeros((combinations, width))
            gains = np.zeros(combinations)
            occupied = np.zeros(combinations, np.bool_)
            kernels.scatter_requests(rows, cells.cell_of, requests.weight, gain, sums, gains, occupied)
            kernels.accumulate_cells(sums, np.array(axes or (1,)), total)
            reached = sums.sum(axis=1)
        else:
            sums = np.empty((0, width))
            gains = np.bincount(rows, requests.weight * gain, combinations).astype(np.float64)
            occupied = np.bincount(rows, minlength=combinations) > 0
            arrived = np.bincount(rows, requests.weight, combinations).astype(np.float64)
            reached = _accumulated(arrived, axes).ravel() / total
        cell_weight.append(sealed(sums))
        reach.append(sealed(reached))
        quality += _accumulated(gains, axes).reshape(axes + (1,) * (len(lengths) - stage))
        if stage:
            distinct = distinct[..., None] & _changes_routing(occupied.reshape(axes))
    return RoutingGrid(
        levels=bins.levels,
        bins=bins,
        cell_weight=tuple(cell_weight),
        reach=tuple(reach),
        quality=sealed(quality.ravel() / total),
        routings=sealed(np.argwhere(distinct).astype(np.int32)),
    )


def _accumulated(sums: FloatArray, axes: tuple[int, ...]) -> FloatArray:
    """Sums over all bins up to each level, along every axis."""
    sums = sums.reshape(axes)
    for axis in range(len(axes)):
        sums = sums.cumsum(axis)
    return sums


def _changes_routing(occupied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the levels of the last threshold that, given the levels before, route unlike every lower level.

    `occupied` marks the bins that hold a request. Only requests that reach the stage count: those whose bins at the
    thresholds before are within the levels there. The lowest level always stands, for "accept everything" at least.
    """
    for axis in range(occupied.ndim - 1):
        occupied = np.logical_or.accumulate(occupied, axis=axis)
    changes = occupied.copy()
    changes[..., 0] = True
    return changes


def _extended_rows(rows: IndexArray, score: FloatArray, levels: FloatArray) -> IndexArray:
    from cascadia_fast import routing_kernels as kernels

    finite = levels[:-1]
    origin = float(finite[0]) if finite.size else 0.0
    buckets = max(finite.size - 1, 1)  # evenly spaced levels then fall into one bucket each
    spread = float(finite[-1]) - origin if finite.size else 0.0
    per_score = min(buckets / spread, 1e12) if spread > 0 else 1.0
    bucket = np.clip((finite - origin) * per_score, 0, buckets).astype(np.int64)
    levels_before = np.r_[0, np.bincount(bucket, minlength=buckets + 1).cumsum()]
    extended = np.empty(rows.size, np.int32)
    kernels.threshold_rows(rows, score, levels, levels_before, origin, per_score, extended)
    return extended


def _threshold_levels(requests: ScoredRequests, levels: Levels) -> tuple[FloatArray, ...]:
    thresholds = len(requests.models) - 1
    if levels is None:
        return (_default_levels(thresholds),) * thresholds
    if isinstance(levels, str):
        if levels != "distinct":
            raise InputError(f"levels is {levels!r}; use 'distinct', or one list of levels for each threshold")
        return tuple(sealed(np.append(np.unique(score), np.inf)) for score in requests.score[:-1])
    if len(levels) != thresholds:
        raise InputError(f"levels has {len(levels)} lists; {len(requests.models)} models have {thresholds} thresholds")
    chosen = []
    for index, given in enumerate(levels):
        level = np.array(given, dtype=np.float64).ravel()
        if np.isnan(level).any() or (np.diff(level) <= 0).any() or (level == -np.inf).any():
            raise InputError(f"levels of threshold {index + 1} are {level.tolist()}; they must be ascending numbers")
        chosen.append(sealed(level if level.size and level[-1] == np.inf else np.append(level, np.inf)))
    return tuple(chosen)


def _default_levels(thresholds: int) -> FloatArray:
    return sealed(np.append(np.arange(101.0), np.inf)) if thresholds < FINE_STAGES else coarse_levels(thresholds)


def coarse_levels(thresholds: int) -> FloatArray:
    """Return evenly spaced levels and never, for each of the thresholds, that make at most 20,000 combinations."""
    count = 2
    while (count + 1) ** thresholds <= COARSE_COMBINATIONS:
        count += 1
    return sealed(np.append(np.rint(np.linspace(0, 100, count)[:-1]), np.inf))


def route(requests: ScoredRequests, thresholds: Sequence[float]) -> NDArray[np.intp]:
    """Return, shape (n,), the stage (from 0) that accepts each request: the first whose score reaches its threshold."""
    accepted_by = np.full(requests.size, len(requests.models) - 1, np.intp)
    for stage, threshold in reversed(list(enumerate(_checked(requests, thresholds)))):
        accepted_by[requests.score[stage] >= threshold] = stage
    return accepted_by


def threshold_intervals(requests: ScoredRequests, thresholds: Sequence[float]) -> list[tuple[float, float]]:
    """Return for each threshold the interval (lo, hi] within which, the others fixed, it routes these requests alike.

    Of the scores that reach the stage, `lo` is the highest that escalates and `hi` the lowest that is accepted
    (``inf`` when none is). When all are accepted, `lo` is 0 and belongs to the interval.
    """
    intervals = []
    reaching = np.arange(requests.size)
    for stage, threshold in enumerate(_checked(requests, thresholds)):
        score = requests.score[stage][reaching]
        escalates = score < threshold
        lo = float(score[escalates].max()) if escalates.any() else 0.0
        hi = float(score[~escalates].min()) if not escalates.all() else math.inf
        intervals.append((lo, hi))
        reaching = reaching[escalates]
    return intervals


def middle_thresholds(requests: ScoredRequests, thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return the thresholds that route these requests alike and lie in the middle of their intervals.

    0 where every request that reaches the stage is accepted (or none reaches it), ``inf`` where none is accepted: new
    requests with scores beyond the sample's are then treated like the sample.
    """
    chosen = []
    reaching = np.arange(requests.size)
    intervals = threshold_intervals(requests, thresholds)
    for stage, (threshold, (lo, hi)) in enumerate(zip(thresholds, intervals, strict=True)):
        escalates = requests.score[stage][reaching] < threshold
        middle = lo + (hi - lo) / 2
        # Between neighbouring floats there is no middle, and rounding to `lo` would accept what escalates.
        chosen.append((middle if middle > lo else hi) if escalates.any() else 0.0)
        reaching = reaching[escalates]
    return tuple(chosen)


def proportional_start(requests: ScoredRequests, levels: Sequence[FloatArray] | None = None) -> tuple[float, ...]:
    """Return the thresholds with which stage i of C (from 0) is reached by the share of requests nearest to (C - i)/C.

    They are chosen from `levels`, one array per threshold as in `RoutingGrid`; without, from the scores and ``inf``.
    """
    stages = len(requests.models)
    total = float(requests.weight.sum())
    reaching = np.arange(requests.size)
    thresholds = []
    for stage in range(stages - 1):
        score = requests.score[stage][reaching]
        candidates = np.append(np.unique(score), np.inf) if levels is None else levels[stage]
        bins = np.searchsorted(candidates, score, side="right")
        escalated = np.bincount(bins, weights=requests.weight[reaching], minlength=candidates.size).cumsum()
        nearest = int(np.abs(escalated / total - (stages - 1 - stage) / stages).argmin())
        thresholds.append(float(candidates[nearest]))
        reaching = reaching[score < candidates[nearest]]
    return tuple(thresholds)


def quality_ci95(requests: ScoredRequests, thresholds: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean quality served, within 0 to 100; see `served_ci95`."""
    return served_ci95(requests, requests.quality[route(requests, thresholds), np.arange(requests.size)])


def served_ci95(requests: ScoredRequests, served: FloatArray) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of qualities served, shape (n,), within 0 to 100.

    Student's t over the effective sample size, which repeated and unequally weighted requests lower. It holds for
    routings fixed in advance: choosing the best of many over-states quality by more than the interval says.
    """
    effective = requests.effective_size
    if effective < 2:
        return 0.0, 100.0
    mean = float(np.average(served, weights=requests.weight))
    variance = float(np.average((served - mean) ** 2, weights=requests.weight)) * effective / (effective - 1)
    half_width = student_t975(effective - 1) * math.sqrt(variance / effective)
    return max(mean - half_width, 0.0), min(mean + half_width, 100.0)


def span_of(requests: ScoredRequests) -> float:
    """Return the range of quality by which the Chebyshev objective scales a shortfall.

    The paper's span is z1 - z2, the mean quality when all requests are answered by the largest model less that by the
    smallest (Cascadia, arXiv 2506.04203). Where a model in between is better or worse than both, that is not the range;
    highest less lowest mean is, and equals z1 - z2 otherwise. Under one point it counts as 1, with a `CascadiaWarning`.
    """
    means = np.average(requests.quality, axis=1, weights=requests.weight)
    span = float(means.max() - means.min())
    if span >= 1:
        return span
    if len(means) > 1:
        warnings.warn(
            f"the models' mean qualities lie within {span:.2f} points; the objective scales a shortfall by 1 point "
            "instead, and a cascade of models this alike may not pay",
            CascadiaWarning,
            stacklevel=2,
        )
    return 1.0


def chebyshev(
    latency_s: FloatArray | float, quality: FloatArray | float, q_min: float, mu_s: float, span: float
) -> Any:
    """Return the paper's objective J = L + μ·max(0, (q_min - Q)/span), in seconds (Cascadia, arXiv 2506.04203).

    Latency L and quality Q (0 to 100) are numbers or arrays that broadcast; `mu_s` is what falling short of `q_min` by
    a whole `span` (see `span_of`) costs.
    """
    return latency_s + mu_s * np.maximum(0.0, (q_min - quality) / span)


def _checked(requests: ScoredRequests, thresholds: Sequence[float]) -> Sequence[float]:
    expected = len(requests.models) - 1
    if len(thresholds) != expected:
        raise InputError(f"thresholds has {len(thresholds)} numbers; {expected + 1} models need {expected}")
    if any(math.isnan(threshold) for threshold in thresholds):
        raise InputError(f"thresholds are {list(thresholds)}; each must be a number, or inf for never")
    return thresholds
