"""How many replicas of each model: CascadeServe's third sub-problem, on arrays.

Its linear program splits each model's work over the replicas that exist so that the most utilised GPU is utilised
least, and replicas are pruned until memory holds them. Language models share no GPU with one another here: a replica is
an engine on whole GPUs. So the program's answer is known (equal replicas, equal parts), and pruning has an optimum that
can be computed: the counts that fit and make the largest utilisation over all models and ranges least.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
CountArray = NDArray[np.int64]

ROUNDING = 1e-9  # relative: work that keeps exactly so many replicas busy needs no further one


def place_replicas(work: FloatArray, gpus: CountArray, total_gpus: int) -> CountArray | None:
    """Return how many replicas of each model run, shape (M,), 0 of what nobody needs; None where one each do not fit.

    GPUs that cannot lower the largest utilisation go to the model that is most utilised among those whose engine fits.

    Parameters
    ----------
    work
        Shape (K, M): replicas of each model that a range keeps busy.
    gpus
        Shape (M,): GPUs of one replica.
    total_gpus
        GPUs there are.
    """
    need = work.max(axis=0)
    least = (need > 0).astype(np.int64)
    if int(least @ gpus) > total_gpus:
        return None

    def counts(level: float) -> CountArray:
        wanted: CountArray = np.maximum(np.ceil(need / level * (1 - ROUNDING)).astype(np.int64), least)
        return wanted

    # The largest utilisation is one model's need over a whole number of its replicas.
    needed = np.flatnonzero(need)
    shared = [need[model] / np.arange(1, total_gpus // gpus[model] + 1) for model in needed]
    levels = np.append(np.unique(np.concatenate([*shared, np.empty(0)])), np.inf)
    low, high = 0, levels.size - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if int(counts(levels[middle]) @ gpus) <= total_gpus else (middle + 1, high)
    return _filled(counts(levels[low]), need, gpus, total_gpus)


def utilization(work: FloatArray, replicas: CountArray) -> FloatArray:
    """Return, shape (K, M), how busy the replicas of every model are in every range."""
    busy: FloatArray = np.where(work > 0, work / np.maximum(replicas, 1), 0.0)
    return busy


def _filled(counts: CountArray, need: FloatArray, gpus: CountArray, total_gpus: int) -> CountArray:
    left = total_gpus - int(counts @ gpus)
    while (fitting := np.flatnonzero((gpus <= left) & (need > 0))).size:
        busiest = fitting[np.argmax(need[fitting] / counts[fitting])]
        counts[busiest] += 1
        left -= int(gpus[busiest])
    return counts
