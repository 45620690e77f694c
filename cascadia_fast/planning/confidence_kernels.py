"""Compiled loops of the bootstrap over a grid of routings: one replicate costs O(requests + grid).

Imported on first use, like `routing_kernels`. A replicate's weights depend on the seed and its number alone, so any
split of the replicates over threads gives the same bits.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types

from cascadia_fast.routing_kernels import _indexes, _integers, _kernel, _reals

_DRAW_BITS = 16
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1342543DE82EF95)  # odd, so that every replicate begins elsewhere
_TINY = 1e-30  # keeps 0 / 0 at 0 where nobody's answers are worth anything


def _poisson_table() -> np.ndarray:
    """Return the Poisson (mean 1) number of each of 2^16 equally likely draws."""
    share = np.exp(-1.0) / np.array([math.factorial(k) for k in range(12)], np.float64)
    edges = np.rint(share.cumsum() * (1 << _DRAW_BITS))
    return np.searchsorted(edges, np.arange(1 << _DRAW_BITS), side="right").astype(np.float64)


POISSON = _poisson_table()

_steps = types.Array(types.int32, 2, "C", readonly=True)
_values = types.Array(types.float64, 3, "C", readonly=True)
_groups = types.Array(types.uint8, 1, "C", readonly=True)
_sums = types.Array(types.float64, 1, "C")


@_kernel(types.void(_sums, _sums, types.int64))
def _add_earlier_slabs(mean: np.ndarray, square: np.ndarray, slab: int) -> None:
    for k in range(slab, mean.size):
        mean[k] += mean[k - slab]
        square[k] += square[k - slab]


@_kernel(types.float64(_reals, _steps, _values, _integers, _sums, _sums))
def grid_moments(
    weight: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
) -> float:
    """Leave mean and mean square of the quality served in the last entries, one for each combination of levels.

    As in `routing.grid_of_bins`: a combination's sums are those of the first model plus, for every later one, what
    moving on to it changes, added up over the requests that reach it. `rows` has shape (C, n) and says from which
    combination of the thresholds before a model on a request reaches it; `values` has shape (C, n, 2): quality and its
    square, less the model's before. `mean` and `square` hold one entry for the first model and then one for every
    combination of the thresholds before each later one. Returns the total weight, which leaves them undefined if zero.
    """
    total = 0.0
    for r in range(weight.size):
        total += weight[r]
    if total <= 0.0:
        return total
    per_weight = 1.0 / total
    mean[0] = square[0] = 0.0
    for r in range(weight.size):
        share = weight[r] * per_weight
        mean[0] += share * values[0, r, 0]
        square[0] += share * values[0, r, 1]
    before, start = 0, 1
    for stage in range(1, values.shape[0]):
        stop = start + (start - before) * lengths[stage - 1]
        means, squares = mean[start:stop], square[start:stop]
        means[:] = 0.0
        squares[:] = 0.0
        for r in range(weight.size):
            row = np.uint32(rows[stage, r])
            share = weight[r] * per_weight
            means[row] += share * values[stage, r, 0]
            squares[row] += share * values[stage, r, 1]
        slab = 1
        for axis in range(stage - 1, -1, -1):
            block = slab * lengths[axis]
            for first in range(0, stop - start, block):
                _add_earlier_slabs(means[first : first + block], squares[first : first + block], slab)
            slab = block
        k = 0
        for parent in range(before, start):
            for _ in range(lengths[stage - 1]):
                means[k] += mean[parent]
                squares[k] += square[parent]
                k += 1
        before, start = start, stop
    return total


@_kernel(types.void(types.uint64, types.int64, _reals, types.float64[::1]))
def poisson_weights(seed: int, replicate: int, poisson: np.ndarray, drawn: np.ndarray) -> None:
    """Draw a replicate's weights: SplitMix64 (Steele, Lea, Flood 2014), four draws of 16 bits from each number."""
    mask = np.uint64((1 << _DRAW_BITS) - 1)
    state = seed + (np.uint64(replicate) + np.uint64(1)) * _STREAM
    bits = np.uint64(0)
    for s in range(drawn.size):
        if s % 4 == 0:
            state += _GOLDEN
            bits = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            bits ^= bits >> np.uint64(31)
        drawn[s] = poisson[bits & mask]
        bits >>= np.uint64(_DRAW_BITS)


@_kernel(
    types.void(
        types.uint64,
        types.int64,
        _reals,
        _indexes,
        _reals,
        _steps,
        _values,
        _integers,
        _reals,
        types.float64,
        _groups,
        types.float64[:, ::1],
        types.float64[:, ::1],
    )
)
def replicate_extremes(
    seed: int,
    first: int,
    poisson: np.ndarray,
    source: np.ndarray,
    weight: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    quality: np.ndarray,
    per_request: float,
    group_of: np.ndarray,
    highest: np.ndarray,
    lowest: np.ndarray,
) -> None:
    """Write, for the replicates from number `first` on, the highest and lowest deviation of each group of routings.

    A deviation is a replicate's mean less the sample's, `quality`, over the replicate's own spread: the square root of
    its variance plus `per_request` times its mean squared. `highest` and `lowest` have shape (replicates, groups) and
    are not below and not above 0.
    """
    sources = 0
    for r in range(source.size):
        sources = max(sources, source[r] + 1)
    entries, last = 1, 1
    for axis in range(lengths.size):
        last *= lengths[axis]
        entries += last
    drawn = np.empty(sources)
    replicate_weight = np.empty(source.size)
    mean, square, deviation = np.empty(entries), np.empty(entries), np.empty(last)
    for b in range(highest.shape[0]):
        highest[b, :] = 0.0
        lowest[b, :] = 0.0
        poisson_weights(seed, first + b, poisson, drawn)
        for r in range(source.size):
            replicate_weight[r] = drawn[source[r]] * weight[r]
        if grid_moments(replicate_weight, rows, values, lengths, mean, square) <= 0.0:
            continue
        means, squares = mean[entries - last :], square[entries - last :]
        for k in range(last):
            squared = means[k] * means[k]
            variance = max(squares[k] - squared, 0.0) + squared * per_request
            deviation[k] = (means[k] - quality[k]) / math.sqrt(variance + _TINY)
        for k in range(last):
            group = group_of[k]
            highest[b, group] = max(highest[b, group], deviation[k])
            lowest[b, group] = min(lowest[b, group], deviation[k])
