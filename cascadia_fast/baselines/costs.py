"""What requests cost at each model, and the choice that all routers make: the cheapest way to meet the floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.length_cells import LengthCells, length_cells
from cascadia_fast.routing import QUALITY_SLACK

if TYPE_CHECKING:
    from cascadia_fast.fleet import StageFleet

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Routed:
    """A way to route the planning half: its mean quality, and its mean cost per request in GPU-seconds."""

    quality: float
    cost: float


Option = TypeVar("Option", bound=Routed)


def gpu_seconds(
    fleet: Sequence[StageFleet], tokens_in: FloatArray, tokens_out: FloatArray, weight: FloatArray
) -> FloatArray:
    """Return, shape (C, n), what each request costs at each model: GPU-seconds of its cheapest engine, kept full.

    The routers' papers minimise what an API charges. On GPUs of one's own a token costs the time that it takes of them,
    and an engine that is always full, of the best shape, charges least. It knows nothing of queues, of how many GPUs
    there are, nor of how they are split.

    Parameters
    ----------
    fleet
        Candidate engines of the C models.
    tokens_in, tokens_out
        Shape (C, n), tokens.
    weight
        Shape (n,), by which lengths are cut into cells.
    """
    cost = np.empty(tokens_in.shape)
    for model, stage in enumerate(fleet[: len(tokens_in)]):
        cells = length_cells(tokens_in[model], tokens_out[model], weight)
        per_cell = [_alone(replica, cells) for replica in stage.replicas]
        cost[model] = np.min(per_cell, axis=0)[cells.cell_of]
    return cost


def _alone(replica: _core.Replica, cells: LengthCells) -> FloatArray:
    """GPU-seconds of one request of each length cell on an engine full of its like; infinite if some do not fit."""
    per_s = _core.capacities(
        replica=replica,
        tokens_in=cells.tokens_in,
        tokens_out=cells.tokens_out,
        share=np.eye(cells.tokens_in.size),
    )
    cost: FloatArray = np.divide(replica.shape.gpus, per_s, out=np.full(per_s.shape, np.inf), where=per_s > 0)
    return cost


def cheapest(options: Sequence[Option], q_min: float) -> Option:
    """Return the cheapest option that meets the floor; where none does, the cheapest of the best quality."""
    floor = min(q_min, max(option.quality for option in options)) - QUALITY_SLACK
    return min((option for option in options if option.quality >= floor), key=lambda option: option.cost)


def cheapest_index(quality: FloatArray, cost: FloatArray, q_min: float) -> int:
    """Return the index of what `cheapest` would return; a quality of -inf marks what is no option."""
    floor = min(q_min, float(quality.max())) - QUALITY_SLACK
    return int(np.argmin(np.where(quality >= floor, cost, np.inf)))


def mean_cost(cost: FloatArray, weight: FloatArray) -> float:
    """Return the mean of one model's costs, shape (n,)."""
    return float(np.average(cost, weights=weight))
