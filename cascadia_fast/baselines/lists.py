"""FrugalGPT's optimisation: which models, in which order, and which thresholds (arXiv 2305.05176, the LLM cascade).

A list of models is asked one after another until a learned score accepts. What a combination of thresholds costs, and
how good its answers are, is a sum over stages of what each request adds when it gets there; binned once by score, all
combinations are cumulative sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.baselines.costs import Routed, cheapest, cheapest_index
from cascadia_fast.length_cells import LengthCells
from cascadia_fast.routing import BinnedRequests, bin_requests
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ModelList(Routed):
    """Models asked in turn, as indexes, and the scores at which all but the last accept."""

    models: tuple[int, ...]
    thresholds: tuple[float, ...]


def best_list(
    requests: ScoredRequests,
    cost: FloatArray,
    cells: tuple[LengthCells, ...],
    q_min: float,
    lists: Sequence[tuple[int, ...]],
) -> ModelList:
    """Return the list and thresholds that meet the floor at the least mean cost; else those of the best quality.

    Parameters
    ----------
    requests
        Requests with all C models, small to large, and what the learned scorer says of each answer as their scores.
    cost
        Shape (C, n), of each request at each model.
    cells
        The requests' length cells.
    q_min
        Floor of the mean quality.
    lists
        The lists of models, ascending indexes, among them one of a single model.
    """
    found = [_best_thresholds(requests.of_models(models), models, cost, cells, q_min) for models in lists]
    return cheapest([option for option in found if option is not None], q_min)


def _best_thresholds(
    requests: ScoredRequests,
    models: tuple[int, ...],
    cost: FloatArray,
    cells: tuple[LengthCells, ...],
    q_min: float,
) -> ModelList | None:
    """The best thresholds of one list that somebody asks to its end, None where there are none."""
    bins = bin_requests(requests, None, tuple(cells[model] for model in models))
    weight = requests.weight / requests.weight.sum()
    quality = requests.quality
    better = np.concatenate([quality[:1], np.diff(quality, axis=0)])
    total_quality = _of_thresholds(bins, better * weight)
    total_cost = _of_thresholds(bins, cost[list(models)] * weight)
    asked_to_the_end = _of_thresholds(bins, [*np.zeros((len(models) - 1, weight.size)), weight]) > 0
    total_quality[~asked_to_the_end] = -np.inf
    best = cheapest_index(total_quality, total_cost, q_min)
    if math.isinf(total_quality[best]):
        return None
    levels = np.unravel_index(best, [level.size for level in bins.levels]) if bins.levels else ()
    return ModelList(
        quality=float(total_quality[best]),
        cost=float(total_cost[best]),
        models=models,
        thresholds=tuple(float(level[at]) for level, at in zip(bins.levels, levels, strict=True)),
    )


def _of_thresholds(bins: BinnedRequests, added: FloatArray | list[FloatArray]) -> FloatArray:
    """Total under every combination of thresholds, flat in C order; stage i adds ``added[i]`` for each that it gets."""
    lengths = tuple(level.size for level in bins.levels)
    total = np.zeros(lengths)
    for stage, (rows, amount) in enumerate(zip(bins.rows, added, strict=True)):
        axes = lengths[:stage]
        sums = np.bincount(rows, amount, math.prod(axes)).reshape(axes)
        for axis in range(stage):
            sums = sums.cumsum(axis)
        total += sums.reshape(axes + (1,) * (len(lengths) - stage))
    return np.asarray(total.ravel())
