"""Length cells: the requests' lengths at each model, cut into few cells that stay while routing moves their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]

OWN_CELL_REQUESTS = 512  # up to here a sample is so small that binning its lengths would lose more than it saves
ROUNDING = 1e-9  # relative, of a variance made of sums


@dataclass(frozen=True, eq=False, slots=True)
class LengthCells:
    """A stage's lengths, cut into K cells; routing changes how much each cell weighs, never the cells.

    Parameters
    ----------
    tokens_in, tokens_out
        Shape (K,): the cells' mean lengths in tokens.
    cell_of
        Shape (n,): the cell of each request.
    spread_out
        Shape (K,): standard deviation of the answers' lengths within each cell. The tail of the answers is sparse, so
        that a p95 taken from cell means alone can be 14 % off.
    """

    tokens_in: FloatArray
    tokens_out: FloatArray
    cell_of: IndexArray
    spread_out: FloatArray


def length_cells(input_tokens: FloatArray, output_tokens: FloatArray, weight: FloatArray) -> LengthCells:
    """Cut requests into 16 groups by output length, each into 4 by input length, finer towards the long ones.

    Requests of (nearly) the same lengths share a cell, so there can be fewer than 64. Up to 512 requests are a cell
    each. Takes O(n): cuts are read off histograms whose buckets are 0.4 % (outputs) and 1.6 % (inputs) wide.

    Parameters
    ----------
    input_tokens, output_tokens
        Shape (n,), tokens, positive.
    weight
        Shape (n,), not negative and not all zero.
    """
    tokens_in, tokens_out, share = (np.ascontiguousarray(a, np.float64) for a in (input_tokens, output_tokens, weight))
    cell_of = np.arange(share.size, dtype=np.int32)
    if share.size <= OWN_CELL_REQUESTS:
        alone = sealed(np.zeros(share.size))
        return LengthCells(sealed(tokens_in.copy()), sealed(tokens_out.copy()), sealed(cell_of), alone)
    from cascadia_fast import routing_kernels as kernels

    cells = kernels.assign_cells(tokens_in.view(np.int64), tokens_out.view(np.int64), share, cell_of)
    sums = np.zeros((cells, 4))
    kernels.sum_cells(cell_of, tokens_in, tokens_out, share, sums)
    means = np.ascontiguousarray((sums[:, 1:] / sums[:, :1]).T)
    # Rounding leaves a little where all answers are equally long.
    variance = means[2] - means[1] ** 2
    spread = np.sqrt(np.where(variance > ROUNDING * means[2], variance, 0.0))
    return LengthCells(sealed(means[0]), sealed(means[1]), sealed(cell_of), sealed(spread))


def all_cells(requests: ScoredRequests) -> tuple[LengthCells, ...]:
    """Return the length cells of every model of the requests."""
    return tuple(
        length_cells(tokens_in, tokens_out, requests.weight)
        for tokens_in, tokens_out in zip(requests.input_tokens, requests.output_tokens, strict=True)
    )


def sealed(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
