"""From a routing over some of the models to who visits whom, and to deployments that other systems choose."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.costs import Routed
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.proportions import split_gpus
from cascadia_fast.blueprint import Routing
from cascadia_fast.signals import charged_tokens
from cascadia_fast.simulation.paths import accepting_stages, paths

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class RoutingOption(Routed):
    """A routing over some of the models, as ascending indexes, with its quality and cost on the planning half."""

    models: tuple[int, ...]
    routing: Routing


ONE_MODEL = Routing("cascade", (), ())
"""Everything goes to the one stage there is."""


def groups_that_fit(case: Case) -> list[tuple[int, ...]]:
    """Return the sets of models, as ascending indexes, whose smallest engines fit together; small sets first.

    Raises
    ------
    NoPlanError
        Not even one model fits.
    """
    least = [case.engines.smallest_engine(model) for model in range(case.models)]
    fitting = [model for model, gpus in enumerate(least) if 0 < gpus <= case.gpus]
    if not fitting:
        StationLoads(case, np.ones(case.requests.quality.shape)).best(0, case.gpus)
    return [
        models
        for size in range(1, len(fitting) + 1)
        for models in itertools.combinations(fitting, size)
        if sum(least[model] for model in models) <= case.gpus
    ]


def loads_of(case: Case, models: Sequence[int], routing: Routing) -> tuple[StationLoads, FloatArray]:
    """Return what a routing over some of the models asks of each, and the quality of the answer each request gets."""
    requests = case.requests.of_models(models)
    (path,) = paths(routing, requests)
    chosen = list(models)
    visits = np.zeros(case.requests.quality.shape)
    visits[chosen] = (path >> np.arange(len(chosen), dtype=np.uint16)[:, None]) & 1
    served = requests.quality[accepting_stages(path), np.arange(requests.size)]
    tokens = charged_tokens(routing.signal, requests)
    if tokens[0] is requests.input_tokens:
        return StationLoads(case, visits), served
    tokens_in, tokens_out = case.requests.input_tokens.copy(), case.requests.output_tokens.copy()
    tokens_in[chosen], tokens_out[chosen] = tokens
    return StationLoads(case, visits, tokens_in=tokens_in, tokens_out=tokens_out), served


def shared_out(case: Case, loads: StationLoads, share: Sequence[float]) -> dict[int, _core.Choice]:
    """Return the deployment of models whose GPUs are split by fixed shares, one for each of ``loads.models``.

    Each model runs in the replicas and the shape of least p95 on its GPUs.

    Raises
    ------
    PoolTooSmallError
        The smallest engines do not fit together.
    """
    split = split_gpus(share, [_sizes(case, loads, model) for model in loads.models], case.gpus)
    if split is None:
        return loads.deploy()
    return {model: loads.best(model, gpus) for model, gpus in zip(loads.models, split, strict=True)}


def _sizes(case: Case, loads: StationLoads, model: int) -> list[int]:
    """Numbers of GPUs that a model is given: any of its engine that carries the most per GPU, or one smaller engine."""
    gpus = np.array([replica.shape.gpus for replica in case.fleet[model].replicas])
    carried = loads.capacity_per_s(model)
    each = gpus[np.argmax(carried / gpus)]
    smaller = gpus[(carried > 0) & (gpus < each)]
    return sorted({*smaller.tolist(), *range(int(each), case.gpus + 1, int(each))})
