"""The split of the GPUs over models that makes the p95 of whole paths least, for a routing that is given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.baselines.drawing import weighted_quantile
from cascadia_fast.planning.paths import sampled_requests

if TYPE_CHECKING:
    from cascadia_fast import _core
    from cascadia_fast.baselines.case import Case
    from cascadia_fast.baselines.loads import StationLoads

FloatArray = NDArray[np.float64]


def deploy_for_paths(case: Case, loads: StationLoads) -> dict[int, _core.Choice]:
    """Return the deployment whose end-to-end p95 is least by the latency model, on all of the case's GPUs.

    Every split of the GPUs is looked at, each model in the replicas and the shape of least p95 on its part. Where no
    split carries the load, it is the deployment that carries most.

    Parameters
    ----------
    case
        The case.
    loads
        Visits of models that are 0 or 1, and no judge.

    Raises
    ------
    PoolTooSmallError
        The smallest engines do not fit together.
    """
    fallback = loads.deploy()
    if len(fallback) == 1 or any(math.isinf(choice.latency_s) for choice in fallback.values()):
        return fallback
    options = [loads.distinct(model) for model in loads.models]
    weight, times_s = _times_s(case, loads, options)
    splits = {
        places: weighted_quantile(_total(times_s, places), weight, 0.95) for places in _splits(options, case.gpus)
    }
    if not splits:
        return fallback
    best = min(splits, key=splits.__getitem__)
    return {model: options[at][place] for at, (model, place) in enumerate(zip(loads.models, best, strict=True))}


def _total(times_s: list[list[FloatArray]], places: tuple[int, ...]) -> FloatArray:
    total: FloatArray = np.sum([own[place] for own, place in zip(times_s, places, strict=True)], axis=0)
    return total


def _splits(options: list[list[_core.Choice]], gpus: int) -> Iterator[tuple[int, ...]]:
    """Places among the options, GPUs ascending; the last model takes the most that the others leave."""
    *others, last = options
    for places in itertools.product(*(range(len(own)) for own in others)):
        left = gpus - sum(own[place].gpus for own, place in zip(others, places, strict=True))
        fitting = [place for place, choice in enumerate(last) if choice.gpus <= left]
        if fitting:
            yield (*places, fitting[-1])


def _times_s(
    case: Case, loads: StationLoads, options: list[list[_core.Choice]]
) -> tuple[FloatArray, list[list[FloatArray]]]:
    """Weights of sampled requests, and per model and option the time that each of them spends there."""
    chosen, draw = sampled_requests(case.requests.size), np.random.default_rng(0)
    times_s = []
    for model, own in zip(loads.models, options, strict=True):
        cell, visits = loads.cells[model].cell_of[chosen], loads.visits[model][chosen] > 0
        samples = [loads.evaluate(model, choice)["latency_s"] for choice in own]
        # The same waits for all options, in rank: what differs between two splits is not the luck of the draw.
        rank = draw.random(chosen.size)
        times_s.append([np.where(visits, each[(rank * len(each)).astype(np.intp), cell], 0.0) for each in samples])
    return case.requests.weight[chosen], times_s
