"""Plain NumPy oracle of the threshold grid: one combination at a time, every request looked at again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Combination:
    """What one threshold combination does to the requests."""

    stage_of: NDArray[np.intp]  # (n,) the stage that serves the request
    cell_weight: list[FloatArray]  # per stage (K,): share of all requests that reaches the stage and lies in the cell
    quality: float


def evaluate(
    thresholds: Sequence[float],
    score: FloatArray,
    quality: FloatArray,
    weight: FloatArray,
    cell_of: Sequence[NDArray[np.int32]],
    cells: Sequence[int],
) -> Combination:
    """Route every request by `thresholds` and sum up what each stage sees."""
    stages = len(score)
    reaches = np.ones(weight.size, bool)
    stage_of = np.zeros(weight.size, np.intp)
    cell_weight = []
    for stage in range(stages):
        stage_of[reaches] = stage
        in_cell = np.bincount(cell_of[stage][reaches], weights=weight[reaches], minlength=cells[stage])
        cell_weight.append(in_cell / weight.sum())
        if stage < stages - 1:
            reaches = reaches & (score[stage] < thresholds[stage])
    served = quality[stage_of, np.arange(weight.size)]
    return Combination(stage_of, cell_weight, float((weight * served).sum() / weight.sum()))


def distinct_routings(levels: Sequence[FloatArray], score: FloatArray) -> list[tuple[int, ...]]:
    """Return, in C order, the first level indexes of every different assignment of requests to stages."""
    stages, size = score.shape
    seen: set[bytes] = set()
    first: list[tuple[int, ...]] = []
    for indexes in itertools.product(*(range(level.size) for level in levels)):
        stage_of = np.full(size, stages - 1)
        for stage in reversed(range(stages - 1)):
            stage_of[score[stage] >= levels[stage][indexes[stage]]] = stage
        if stage_of.tobytes() not in seen:
            seen.add(stage_of.tobytes())
            first.append(indexes)
    return first
