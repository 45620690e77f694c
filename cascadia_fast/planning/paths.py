"""Requests as paths: which levels send each on, and which samples of every station's latency it meets.

A request's lengths correlate across models and are its own here; only waits are drawn, independently at each station,
from the latency model's samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.routing import RoutingGrid
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]

# Small samples are drawn several times with other waits, so that the p95 of 51 requests is not that of one draw.
FEWEST_PATHS = 4096
# Of larger samples so many requests, drawn at random, are paths.
MOST_PATHS = 32_768


@dataclass(frozen=True, eq=False)
class Paths:
    """P paths through a cascade of C models.

    Parameters
    ----------
    escalates
        Shape (P, C - 1): the lowest level of each threshold at which the path moves on.
    sample
        Shape (P, stations): the index, node * cells + cell, of the path's sample at every station.
    judge_sample
        Shape (P, C - 1): the same for the judge call after each model; None without a hosted judge.
    weight
        Shape (P,).
    """

    escalates: IndexArray
    sample: IndexArray
    judge_sample: IndexArray | None
    weight: FloatArray


def paths_of(
    requests: ScoredRequests, grid: RoutingGrid, nodes: Sequence[int], judge_cells: Sequence[int] | None
) -> Paths:
    """Return the paths of scored requests; the same ones for the same requests.

    Parameters
    ----------
    requests, grid
        The requests and their grid.
    nodes
        Samples per length cell of every station.
    judge_cells
        With a hosted judge, which is the station before the last: the first of its cells for every judged model, and
        how many it has.
    """
    chosen = sampled_requests(requests.size)
    draw = np.random.default_rng(0)
    cells = [cells.cell_of[chosen] for cells in grid.cells]
    sizes = [cells.tokens_in.size for cells in grid.cells]
    judge_sample = None
    station_nodes = list(nodes)
    if judge_cells is not None:
        judge_nodes = station_nodes.pop(-2)
        picks = draw.integers(judge_nodes, size=(len(cells) - 1, chosen.size))
        judge_sample = _stacked([p * judge_cells[-1] + judge_cells[i] + cells[i] for i, p in enumerate(picks)])
    columns = [
        draw.integers(count, size=chosen.size) * size + cell
        for count, size, cell in zip(station_nodes, sizes, cells, strict=True)
    ]
    if judge_cells is not None:
        columns.insert(-1, np.zeros(chosen.size, np.int64))
    return Paths(grid.bins.escalates[chosen], _stacked(columns), judge_sample, requests.weight[chosen])


def sampled_requests(size: int) -> NDArray[np.intp]:
    """Return which of so many requests are paths: several times each of few, and not all of very many."""
    if size <= MOST_PATHS:
        return np.tile(np.arange(size), max(1, FEWEST_PATHS // size))
    return np.sort(np.random.default_rng(0).choice(size, MOST_PATHS, replace=False))


def _stacked(columns: Sequence[NDArray[np.int64]]) -> IndexArray:
    return np.ascontiguousarray(np.stack(columns, axis=1), np.int32)
