"""Compiled loops over samples × thresholds: score bins, length cells and the sums behind the threshold grid.

Importing this module imports Numba (0.29 s) and loads or compiles every kernel, so `routing` imports it on first use.

Each kernel has one explicit signature, with read-only inputs because Numba accepts a writable array where a read-only
one is declared but not the reverse: whatever the caller holds, there is exactly one version to compile and to cache.
Everything runs on one thread in a fixed order, so the results are the same bits however many threads the caller has.
One suffices: a million requests by three stages take 30 ms, and ``parallel=True`` alone costs 0.8 s on its first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types

OUTPUT_GROUPS = 16
INPUT_GROUPS = 4
SKEW = 1.6  # group k of n ends at the share 1 - (1 - k/n)^SKEW of the weight: the longest group holds 1.2 %, not 6.3 %

# A token count's histogram bucket is made of the exponent and the leading bits of the mantissa of its float64: exact up
# to 2^(bits+1), and within 2^-bits beyond. Outputs are cut finely; inputs only four ways inside a group.
_OUTPUT_BITS = 8
_INPUT_BITS = 6
_OCTAVES = 24  # counts below 1 share the first bucket, counts of 2^24 (16.8 M tokens) and more the last
_OUTPUT_BUCKETS = _OCTAVES << _OUTPUT_BITS
_INPUT_BUCKETS = _OCTAVES << _INPUT_BITS
_EXPONENT_OF_ONE = 1023

_Function = TypeVar("_Function", bound=Callable[..., object])

_reals = types.Array(types.float64, 1, "C", readonly=True)
_integers = types.Array(types.int64, 1, "C", readonly=True)
_indexes = types.Array(types.int32, 1, "C", readonly=True)


def _kernel(signature: Any) -> Callable[[_Function], _Function]:
    """Compile with the one given signature; without a disk cache where neither package nor home can be written."""

    def compile_kernel(function: _Function) -> _Function:
        try:
            compiled = numba.njit(signature, cache=True, nogil=True, error_model="numpy")(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            compiled = numba.njit(signature, nogil=True, error_model="numpy")(function)
        return cast(_Function, compiled)

    return compile_kernel


@_kernel(types.void(_indexes, _reals, _reals, _integers, types.float64, types.float64, types.int32[::1]))
def threshold_rows(
    rows_before: np.ndarray,
    score: np.ndarray,
    levels: np.ndarray,
    levels_before: np.ndarray,
    origin: float,
    buckets_per_score: float,
    rows: np.ndarray,
) -> None:
    """Extend each request's row over the earlier thresholds by its bin in this stage's score.

    The bin is the number of levels at or below the score: the request escalates at level l exactly when l >= bin.
    `levels_before[k]` counts the levels in the buckets before k. A score's bucket is monotone in the score, so its
    bin lies between two neighbouring counts, and comparing with the levels themselves makes it exact.
    """
    last_bucket = levels_before.size - 2.0
    for r in range(score.size):
        s = score[r]
        bucket = int(min(max((s - origin) * buckets_per_score, 0.0), last_bucket))
        low = levels_before[bucket]
        high = levels_before[bucket + 1]
        while low < high:
            middle = (low + high) >> 1
            if levels[middle] <= s:
                low = middle + 1
            else:
                high = middle
        rows[r] = rows_before[r] * levels.size + low


@_kernel(types.void(_indexes, _indexes, _reals, _reals, types.float64[:, ::1], types.float64[::1], types.boolean[::1]))
def scatter_requests(
    rows: np.ndarray,
    cell_of: np.ndarray,
    weight: np.ndarray,
    quality_gain: np.ndarray,
    cell_sums: np.ndarray,
    gain_sums: np.ndarray,
    occupied: np.ndarray,
) -> None:
    """Add each request's weight to its (row, cell) and its weighted gain in quality to its row."""
    for r in range(rows.size):
        row = np.uint32(rows[r])
        cell_sums[row, np.uint32(cell_of[r])] += weight[r]
        gain_sums[row] += weight[r] * quality_gain[r]
        occupied[row] = True


@_kernel(types.void(types.float64[:, ::1], _integers, types.float64))
def accumulate_cells(sums: np.ndarray, lengths: np.ndarray, total: float) -> None:
    """Turn sums per bin into sums over all bins up to each level, along every threshold axis, and divide by `total`.

    One slab (one level of the first threshold) at a time, so that it stays in the cache between the axes; a slab is
    divided only when the next one no longer needs its undivided sums, which keeps counts exact.
    """
    slab = sums.shape[0] // lengths[0]
    cells = sums.shape[1]
    for first in range(lengths[0] + 1):
        start = first * slab
        if first < lengths[0]:
            stride = 1
            for axis in range(lengths.size - 1, 0, -1):
                block = stride * lengths[axis]
                for block_start in range(start, start + slab, block):
                    for row in range(block_start + stride, block_start + block):
                        for k in range(cells):
                            sums[row, k] += sums[row - stride, k]
                stride = block
        if first > 0:
            for row in range(start - slab, start):
                if first < lengths[0]:
                    for k in range(cells):
                        sums[row + slab, k] += sums[row, k]
                for k in range(cells):
                    sums[row, k] /= total


@numba.njit(inline="always")
def _bucket(float_bits: int, mantissa_bits: int) -> int:
    bucket = (float_bits >> (52 - mantissa_bits)) - (_EXPONENT_OF_ONE << mantissa_bits)
    return min(max(bucket, 0), (_OCTAVES << mantissa_bits) - 1)


@numba.njit(inline="always")
def _cut(histogram: np.ndarray, start: int, stop: int, groups: int, first_group: int, group_of: np.ndarray) -> int:
    """Cut `histogram[start:stop]` into at most `groups` groups of positive weight, numbered from `first_group`.

    A bucket goes where the middle of its weight lies. Returns the number after the last group's.
    """
    total = 0.0
    for bucket in range(start, stop):
        total += histogram[bucket]
    below = 0.0
    target = 0
    group = first_group  # an empty bucket joins the group before it, so that no group is without weight
    last_target = -1
    for bucket in range(start, stop):
        if histogram[bucket] > 0.0:
            middle = below + 0.5 * histogram[bucket]
            while target < groups - 1 and middle > total * (1.0 - (1.0 - (target + 1) / groups) ** SKEW):
                target += 1
            if last_target >= 0 and target > last_target:
                group += 1
            last_target = target
            below += histogram[bucket]
        group_of[bucket] = group
    return group + 1


@_kernel(types.int64(_integers, _integers, _reals, types.int32[::1]))
def assign_cells(input_bits: np.ndarray, output_bits: np.ndarray, weight: np.ndarray, cell_of: np.ndarray) -> int:
    """Cut outputs into groups and inputs within each group, by histogram; write requests' cells, count the cells."""
    outputs = np.zeros(_OUTPUT_BUCKETS)
    for r in range(weight.size):
        outputs[_bucket(output_bits[r], _OUTPUT_BITS)] += weight[r]
    group_of = np.empty(_OUTPUT_BUCKETS, np.int32)
    groups = _cut(outputs, 0, _OUTPUT_BUCKETS, OUTPUT_GROUPS, 0, group_of)

    inputs = np.zeros(groups * _INPUT_BUCKETS)
    for r in range(weight.size):
        code = group_of[_bucket(output_bits[r], _OUTPUT_BITS)] * _INPUT_BUCKETS + _bucket(input_bits[r], _INPUT_BITS)
        inputs[code] += weight[r]
        cell_of[r] = code

    # Plain loops: slices and array expressions here took three times as long to compile.
    cell_of_code = np.empty(groups * _INPUT_BUCKETS, np.int32)
    cells = 0
    for group in range(groups):
        start = group * _INPUT_BUCKETS
        cells = _cut(inputs, start, start + _INPUT_BUCKETS, INPUT_GROUPS, cells, cell_of_code)
    for r in range(weight.size):
        cell_of[r] = cell_of_code[cell_of[r]]
    return cells


@_kernel(types.void(_indexes, _reals, _reals, _reals, types.float64[:, ::1]))
def sum_cells(
    cell_of: np.ndarray, input_tokens: np.ndarray, output_tokens: np.ndarray, weight: np.ndarray, sums: np.ndarray
) -> None:
    """Add weight, weighted input and output tokens, and weighted squares of outputs, to each request's cell's row."""
    for r in range(weight.size):
        cell = np.uint32(cell_of[r])
        sums[cell, 0] += weight[r]
        sums[cell, 1] += weight[r] * input_tokens[r]
        sums[cell, 2] += weight[r] * output_tokens[r]
        sums[cell, 3] += weight[r] * output_tokens[r] * output_tokens[r]
