"""Lower bounds of the true mean quality, valid for all routings at once, so that the one chosen meets its floor.

A planner that takes the best routing whose *sample* mean meets the floor takes one that the sample flatters: in
repeated samples it truly meets the floor 29 % to 56 % of the time. Here a lower confidence bound is held against the
floor instead, and the bounds hold together, whichever routing is picked and for whatever objective: the largest
studentised deviation over all routings ("max-t") is bootstrapped, and its quantile is the number of standard errors
that every bound keeps below its mean. Routings share most of their requests and deviate alike, so that 10,000 of them
need 2.1 to 3.2 standard errors at 95 %, where 4.4 would be needed if they were independent.

With a floor, fewer do. Only a routing that truly misses the floor does harm by passing, so that two kinds are left out
of the maximum: those whose upper bound misses the floor (two steps, as in Romano, Shaikh and Wolf, Econometrica 82,
2014), and those that have passed already (step-down, as in Romano and Wolf, Econometrica 73, 2005).

What else was compared on repeated samples (``python -m benchmarks.quality_confidence --compare``, 200 of each size):

* A bound for each routing alone gives away least and promises nothing about the one that is chosen: it met its floor in
  81 % of samples of 51 requests and 92 % to 97 % of those of 500 to 5,000, where what the bounds here let through met
  it in 97 % to 100 %.
* Holding back half of the sample, to test on it what the other half chose, needs no correction for choosing, but √2
  times the standard error, and an order of testing that only the objective gives. From 500 requests on it gave away as
  much or more.
* Restricting the maximum further to routings that the planner could prefer, or bootstrapping its choice, would give
  away less, but needs the objective of every routing, and ties the statement to it.

Replicates give Poisson weights to *samples*: rows that repeat one (`ScoredRequests.source`) share their weight, and
cannot make it look surer. Every replicate is studentised anew. That carries the skewness of means of few and bounded
qualities, for which the weights' third moment has to be 1: Gaussian weights exaggerate it by half, exponential ones
halve it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import InputError
from cascadia_fast.routing import FloatArray, RoutingGrid, route
from cascadia_fast.workload import ScoredRequests

Part = tuple[ScoredRequests, RoutingGrid]

LEAST_CONFIDENCE, MOST_CONFIDENCE = 0.5, 0.999
# The quantile of 1,000 replicates at 95 % is uncertain by 0.06 standard errors of the mean: 0.7 % of coverage. Fifty
# replicates beyond the quantile keep that so for higher confidence.
REPLICATES = 1000
REPLICATES_BEYOND = 50
# What a sample of n did not show at all can still be 1 - (1 - confidence)^(1/n) of the traffic. Beyond a tenth, a bound
# would speak of what nobody has seen.
UNSEEN_SHARE = 0.1
# Share of the allowed error that is spent on calling a routing's quality surely below the floor.
SURELY_BELOW = 0.1
# Routings are grouped by how many standard errors they lie from the floor: eighths, up to five either way.
GROUPS_PER_ERROR, WIDEST_ERRORS = 8, 5
GROUPS = 2 * GROUPS_PER_ERROR * WIDEST_ERRORS + 2
# Larger grids (102^3 with four models) are bootstrapped on fewer levels, where the maximum is 0.1 to 0.2 standard
# errors lower; how much is measured on a few replicates of the whole grid and added.
COMBINATIONS = 100_000
CONTROLS = 50
# Fewer requests than this say little about the mean of anything.
FEW_REQUESTS = 30


@dataclass(frozen=True, eq=False)
class _Surface:
    """What the bootstrap sees of one part: steps of the requests' quality over its grid of levels.

    `rows` has shape (C, n) and `values` (C, n, 2), see `confidence_kernels.grid_moments`; `mean` and `spread` are those
    of every combination of levels.
    """

    rows: NDArray[np.int32]
    values: FloatArray
    lengths: NDArray[np.int64]
    mean: FloatArray
    spread: FloatArray


def quality_bounds(
    parts: Sequence[Part], confidence: float, *, floor: float | None = None, seed: int = 0, threads: int = 1
) -> list[FloatArray]:
    """Return lower bounds of the true mean quality of every distinct routing, all valid at once.

    Parameters
    ----------
    parts
        The same requests, restricted to the models of each subset that may run, each with its grid.
    confidence
        Probability, over samples, that no bound exceeds the quality it bounds; 0.5 to 0.999.
    floor
        The quality that is asked for. With it, a bound is at least `floor` for more routings: with the stated
        confidence, every routing whose bound is at least `floor` truly meets it.
    seed
        Equal seeds give equal bounds, for any number of threads.
    threads
        Threads to spread the replicates over.

    Returns
    -------
    list of numpy.ndarray
        For each part, shape (R,), 0 to 100, in the order of its grid's `routings`.

    Raises
    ------
    InputError
        The confidence is out of range, or more than the sample can support.
    """
    requests = parts[0][0]
    check_confidence(requests, confidence)
    effective, error = requests.effective_size, 1 - confidence
    highest, lowest = _extremes(parts, replicates_for(confidence), floor, seed, threads)
    anywhere = _quantile(highest.max(axis=1), 1 - error)
    near = anywhere if floor is None else _near_floor(highest, lowest, error)
    # A sample on which nobody's quality varies shows no spread; what it did not show may all be worthless.
    unseen = error ** (1 / effective)
    found = []
    for part, grid in parts:
        mean = grid.quality[grid.combinations]
        spread = _surface(part, grid.bins.escalates, [level.size for level in grid.levels]).spread
        standard_error = spread[grid.combinations] / math.sqrt(effective)
        bound = np.minimum(mean - anywhere * standard_error, mean * unseen)
        if floor is not None:
            passes = np.minimum(mean - near * standard_error, mean * unseen) >= floor
            bound = np.where(passes, np.maximum(bound, floor), bound)
        found.append(np.maximum(bound, 0.0))
    return found


def requests_to_meet(parts: Sequence[Part], bounds: Sequence[FloatArray], floor: float) -> int | None:
    """Return about how many requests would lift some routing's bound to the floor; None: no mean is above it.

    A bound's distance from its mean shrinks with the square root of the number of requests.
    """
    least = math.inf
    for (_, grid), bound in zip(parts, bounds, strict=True):
        mean = grid.quality[grid.combinations]
        above = mean > floor
        shrink = (mean - bound)[above] / (mean[above] - floor)
        least = min(least, float(shrink.min(initial=math.inf)))
    return None if math.isinf(least) else math.ceil(parts[0][0].effective_size * least**2)


def requests_needed(confidence: float) -> int:
    """Return the least effective number of requests that supports a statement of this confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - UNSEEN_SHARE))


def replicates_for(confidence: float) -> int:
    """Return how many bootstrap replicates are drawn."""
    return max(REPLICATES, math.ceil(REPLICATES_BEYOND / (1 - confidence)))


def check_confidence(requests: ScoredRequests, confidence: float) -> None:
    """Raise `InputError` unless these requests support a statement of this confidence."""
    if not LEAST_CONFIDENCE <= confidence <= MOST_CONFIDENCE:
        raise InputError(f"q_confidence is {confidence:g}; give {LEAST_CONFIDENCE:g} to {MOST_CONFIDENCE:g}")
    effective, needed = requests.effective_size, requests_needed(confidence)
    if effective < needed:
        supported = math.floor(1000 * (1 - (1 - UNSEEN_SHARE) ** effective)) / 1000
        lower = f", or q_confidence at most {supported:g}" if supported >= LEAST_CONFIDENCE else ""
        raise InputError(
            f"q_confidence is {confidence:g}, a confidence level the sample cannot support: its {requests.size:,} "
            f"requests count as {effective:.4g} independent ones and {needed} are needed; score more requests{lower}"
        )


def few_requests(requests: ScoredRequests, thresholds: Sequence[float]) -> list[str]:
    """Return a sentence for each later model whose load and quality rest on fewer than 30 (effective) requests."""
    accepted_by = route(requests, thresholds)
    sentences = []
    for stage, model in enumerate(requests.models[1:], 1):
        reaching = accepted_by >= stage
        per_sample = np.bincount(requests.source[reaching], weights=requests.weight[reaching])
        total = float(per_sample.sum())
        if total == 0:
            break
        effective = total**2 / float(per_sample @ per_sample)
        if effective < FEW_REQUESTS:
            sentences.append(
                f"of the {requests.effective_size:.4g} independent requests that the sample counts as, only "
                f"{effective:.3g} reach {model}, and what is predicted of it rests on them; score more requests, so "
                f"that at least {FEW_REQUESTS} do"
            )
    return sentences


def _surface(requests: ScoredRequests, steps: NDArray[np.int32], lengths: Sequence[int]) -> _Surface:
    """Sum up the requests over a grid of `lengths` levels; `steps` are as in `BinnedRequests.escalates`."""
    from cascadia_fast.planning import confidence_kernels as kernels

    rows = np.zeros(requests.quality.shape, np.int32)
    for axis, length in enumerate(lengths):
        rows[axis + 1] = rows[axis] * length + steps[:, axis]
    served = np.stack([requests.quality, requests.quality**2], axis=2)
    values = np.concatenate([served[:1], np.diff(served, axis=0)])
    levels = np.array(lengths, np.int64)
    combinations = np.append(1, levels.cumprod())
    mean, square = np.empty((2, combinations.sum()))
    kernels.grid_moments(requests.weight, rows, values, levels, mean, square)
    mean, square = mean[-combinations[-1] :], square[-combinations[-1] :]
    # As if one more request had been answered worthlessly, so that no spread is zero.
    spread = np.sqrt(np.maximum(square - mean**2, 0.0) + mean**2 / requests.effective_size)
    return _Surface(rows, values, levels, mean, spread)


def _levels_that_matter(grid: RoutingGrid) -> list[NDArray[np.int32]]:
    """Return the indexes of the levels of each threshold that route these requests unlike the level below."""
    steps = grid.bins.escalates
    return [np.unique(np.append(np.int32(0), steps[:, axis])) for axis in range(len(grid.levels))]


def _fewer_levels(grid: RoutingGrid) -> list[NDArray[np.int32]]:
    """Return levels with as many requests between any two: routings that share most requests deviate alike."""
    steps = np.sort(grid.bins.escalates, axis=0)
    rank = np.linspace(0, len(steps) - 1, int(COMBINATIONS ** (1 / len(grid.levels))) - 1).astype(np.intp)
    return [np.unique(np.append(np.int32(0), steps[rank, axis])) for axis in range(len(grid.levels))]


def _surface_at(requests: ScoredRequests, grid: RoutingGrid, levels: Sequence[NDArray[np.int32]]) -> _Surface:
    """Sum up the requests over some of the grid's levels."""
    steps = np.empty_like(grid.bins.escalates)
    for axis, level in enumerate(levels):
        steps[:, axis] = np.searchsorted(level, grid.bins.escalates[:, axis])
    return _surface(requests, steps, [level.size for level in levels])


def _extremes(
    parts: Sequence[Part],
    replicates: int,
    floor: float | None,
    seed: int,
    threads: int,
) -> tuple[FloatArray, FloatArray]:
    """Return the highest and lowest deviation over all parts: one row per replicate, one column per group."""
    effective = parts[0][0].effective_size
    highest, lowest = np.zeros((2, replicates, 1 if floor is None else GROUPS))
    for part in parts:
        if any(_covers(other, part) for other in parts):
            continue
        high, low = _extremes_of(*part, replicates, floor, seed, threads)
        np.maximum(highest, high, out=highest)
        np.minimum(lowest, low, out=lowest)
    # From units of the spread to standard errors.
    return highest * math.sqrt(effective), lowest * math.sqrt(effective)


def _extremes_of(
    requests: ScoredRequests, grid: RoutingGrid, replicates: int, floor: float | None, seed: int, threads: int
) -> tuple[FloatArray, FloatArray]:
    """Return the highest and lowest deviation over one part, in units of the spread."""
    levels = _levels_that_matter(grid)
    if math.prod(level.size for level in levels) <= COMBINATIONS:
        return _replicated(requests, _surface_at(requests, grid, levels), replicates, floor, seed, threads)
    fewer = _surface_at(requests, grid, _fewer_levels(grid))
    highest, lowest = _replicated(requests, fewer, replicates, floor, seed, threads)
    # The first replicates once more, on all levels: how much farther the extremes lie there.
    high, low = _replicated(requests, _surface_at(requests, grid, levels), CONTROLS, floor, seed, threads)
    highest += float((high.max(axis=1) - highest[:CONTROLS].max(axis=1)).mean())
    lowest += float((low.min(axis=1) - lowest[:CONTROLS].min(axis=1)).mean())
    return highest, lowest


def _replicated(
    requests: ScoredRequests, surface: _Surface, replicates: int, floor: float | None, seed: int, threads: int
) -> tuple[FloatArray, FloatArray]:
    """Return the highest and lowest deviation over a surface, of the first `replicates` replicates."""
    from cascadia_fast.planning import confidence_kernels as kernels

    source = np.unique(requests.source, return_inverse=True)[1].astype(np.int32)
    group_of = np.zeros(surface.mean.size, np.uint8)
    if floor is not None:
        group_of[:] = _group((surface.mean - floor) / surface.spread * math.sqrt(requests.effective_size))
    highest, lowest = np.empty((2, replicates, 1 if floor is None else GROUPS))

    def work(chunk: NDArray[np.intp]) -> None:
        first, stop = int(chunk[0]), int(chunk[-1]) + 1
        kernels.replicate_extremes(
            seed,
            first,
            kernels.POISSON,
            source,
            requests.weight,
            surface.rows,
            surface.values,
            surface.lengths,
            surface.mean,
            1 / requests.effective_size,
            group_of,
            highest[first:stop],
            lowest[first:stop],
        )

    chunks = np.array_split(np.arange(replicates), min(threads, replicates))
    with ThreadPoolExecutor(len(chunks)) as pool:
        list(pool.map(work, chunks))
    return highest, lowest


def _near_floor(highest: FloatArray, lowest: FloatArray, error: float) -> float:
    """Return the standard errors that a mean must keep from the floor: the maximum over what may miss it and pass.

    Starting from all routings that are not surely below the floor, those that pass are left out, again and again.
    """
    surely_below = error * SURELY_BELOW
    first = int(_group(-_quantile(-lowest.min(axis=1), 1 - surely_below)))
    last = GROUPS - 1
    while True:
        errors = _quantile(highest[:, first : last + 1].max(axis=1), 1 - error + surely_below)
        passed = int(_group(errors))
        if passed >= last:
            return errors
        last = passed


def _group(errors: FloatArray | float) -> NDArray[np.uint8]:
    """Return the group of a distance from the floor in standard errors; the outermost groups are open-ended."""
    group: NDArray[np.uint8] = np.clip(np.floor((errors + WIDEST_ERRORS) * GROUPS_PER_ERROR) + 1, 0, GROUPS - 1).astype(
        np.uint8
    )
    return group


def _quantile(values: FloatArray, level: float) -> float:
    """Return the order statistic that a further value exceeds with probability at most 1 - level."""
    rank = min(math.ceil((values.size + 1) * level - 1e-9), values.size)
    return float(np.partition(values, rank - 1)[rank - 1])


def _covers(larger: Part, smaller: Part) -> bool:
    """Whether every routing of a cascade is one of a larger cascade too.

    Skipping a model is to accept none of its answers, ending before one to accept all of the model's before it.
    """
    (requests, grid), (fewer, own) = larger, smaller
    if not set(fewer.models) < set(requests.models):
        return False
    accepts_all = bool((grid.bins.escalates > 0).all())
    of_model = dict(zip(requests.models, grid.levels, strict=False))
    shared = zip(fewer.models, own.levels, strict=False)
    return accepts_all and all(bool(np.isin(level, of_model[model]).all()) for model, level in shared)
