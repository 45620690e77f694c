"""The cascades that the models can form: every ordered subset, what each routing of it sends where, and what it costs.

A request that skips a model is never judged by it, so a cascade without a model is another cascade, with thresholds of
its own. Each routing of a subset's grid reaches all of its models: what does not is a routing of a smaller subset.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.length_cells import LengthCells
from cascadia_fast.routing import QUALITY_SLACK, Levels, RoutingGrid, coarse_levels, routing_grid
from cascadia_fast.workload import ScoredRequests

if TYPE_CHECKING:
    from cascadia_fast.planning.task import Task

FloatArray = NDArray[np.float64]

# Relative: a budget of exactly so many GPUs pays for them.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Subset:
    """A cascade of some of the models.

    Parameters
    ----------
    indexes
        Its models, as indexes into the problem's.
    requests
        The scored requests with these models only.
    grid
        Its threshold combinations.
    skipping
        Whether its routings are those that reach all of its models, or all.
    """

    indexes: tuple[int, ...]
    requests: ScoredRequests
    grid: RoutingGrid
    skipping: bool

    @cached_property
    def quality(self) -> FloatArray:
        """Shape (R,): mean quality of every distinct routing."""
        quality: FloatArray = self.grid.quality[self.grid.combinations]
        return quality

    @cached_property
    def reach(self) -> FloatArray:
        """Shape (models, R): share of the requests that reaches each model under every distinct routing."""
        return np.stack([reach[self.grid.rows(stage)] for stage, reach in enumerate(self.grid.reach)])

    @cached_property
    def calls(self) -> FloatArray:
        """Shape (R,): judge calls per request; the last model that runs is not judged."""
        running = self.reach > 0
        last = len(running) - 1 - np.argmax(running[::-1], axis=0)
        judged = np.arange(len(running))[:, None] < last
        calls: FloatArray = np.where(judged, self.reach, 0.0).sum(axis=0)
        return calls

    def candidates(self, q_min: float, quality: FloatArray | None = None) -> NDArray[np.int64]:
        """Return the routings whose quality (by default the mean) is at least `q_min`, of those that count here."""
        enough = (self.quality if quality is None else quality) >= q_min - QUALITY_SLACK
        if self.skipping:
            enough &= (self.reach > 0).all(axis=0)
        return np.flatnonzero(enough)


def subsets_of(task: Task, cells: Sequence[LengthCells]) -> tuple[Subset, ...]:
    """Return the cascades that a task may plan: all subsets of the models, or the full one where none may be skipped.

    The full cascade comes first. `cells` are the length cells of all models.
    """
    requests, goal = task.workload.requests, task.goal
    models = range(len(requests.models))
    skipping = goal.skip_models and goal.method == "exact" and not goal.paper_strict and goal.latency == "formula"
    sizes = range(len(models), 0, -1) if skipping else (len(models),)
    levels = task.levels
    if levels is None and goal.method == "alternating" and len(models) > 1:
        levels = _levels_of_the_loop(len(models) - 1)
    return tuple(
        _subset(requests, chosen, cells, levels, skipping)
        for size in sizes
        for chosen in itertools.combinations(models, size)
    )


def single_subset(
    subsets: Sequence[Subset], requests: ScoredRequests, cells: Sequence[LengthCells], index: int
) -> Subset:
    """Return the cascade of one model alone, one of the given ones if it is among them."""
    known = next((subset for subset in subsets if subset.indexes == (index,)), None)
    if known is not None:
        return known
    return _subset(requests, (index,), cells, None, skipping=True)


def _levels_of_the_loop(thresholds: int) -> Levels:
    """Each round of the alternating method looks at every combination: four models get a coarse grid."""
    fine = 3
    return None if thresholds < fine else (coarse_levels(thresholds),) * thresholds


def _subset(
    requests: ScoredRequests, indexes: tuple[int, ...], cells: Sequence[LengthCells], levels: Levels, skipping: bool
) -> Subset:
    whole = len(indexes) == len(requests.models)
    part = requests if whole else requests.of_models(indexes)
    own: Any = levels
    if levels is not None and not isinstance(levels, str):
        own = [levels[index] for index in indexes[:-1]]
    grid = routing_grid(part, own, tuple(cells[index] for index in indexes))
    return Subset(indexes, part, grid, skipping)


def budget_gpus(budget_usd_per_hour: float, price: float, fixed_usd: FloatArray, most: int) -> NDArray[np.int32]:
    """Return, shape (R,), the GPUs of one price that each routing can pay beside its judge calls, at most `most`."""
    if math.isinf(budget_usd_per_hour):
        return np.full(fixed_usd.shape, most, np.int32)
    left = budget_usd_per_hour - fixed_usd
    paid = np.floor(left / price * (1 + ROUNDING)) if price > 0 else np.where(left >= 0, float(most), 0.0)
    return np.clip(paid, 0, most).astype(np.int32)
