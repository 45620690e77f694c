"""Which stages requests visit under a routing, and whose answers are held back until something has looked at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.routing import route
from cascadia_fast.signals import signal_values

if TYPE_CHECKING:
    from cascadia_fast.blueprint_routing import Routing
    from cascadia_fast.workload import ScoredRequests

PathArray = NDArray[np.uint16]


def paths(routing: Routing, requests: ScoredRequests) -> PathArray:
    """Return the path of each request in each gear, shape (G, n): bit s says that it visits stage s.

    There is one gear unless the routing is of kind ``gears``.

    Parameters
    ----------
    routing
        Where requests go.
    requests
        n requests, with the models of the plan and no others.
    """
    if routing.router is not None and routing.signal is not None:
        taken = np.searchsorted(routing.router.cuts, signal_values(routing.signal, requests), side="right")
        return np.array(routing.router.paths, np.uint16)[None, taken]
    if routing.gears:
        return np.stack([_cascade(requests, gear.stages, gear.thresholds) for gear in routing.gears])
    if routing.signal is not None:
        requests = dataclasses.replace(requests, score=signal_values(routing.signal, requests))
    return _cascade(requests, range(len(requests.models)), routing.thresholds)[None]


def accepting_stages(path: PathArray) -> NDArray[np.intp]:
    """Return the last stage of each path: its answer is the one that counts."""
    # A number is a fraction from 1/2 to 1 times two to the power of how many bits it has.
    return np.asarray(np.frexp(path.astype(np.float64))[1] - 1, dtype=np.intp)


def held_back(routing: Routing, stages: int) -> PathArray:
    """Return, shape (G,), as bits the stages whose answers nobody sees before they are scored or verified.

    In a cascade those are all but the last, which accepts in any case. AutoMix verifies what the first stage writes,
    and a router that decides beforehand holds nothing back.
    """
    if routing.router is not None:
        verified = routing.signal is not None and routing.signal.kind == "verification"
        return np.array([int(verified)], np.uint16)
    if routing.gears:
        return np.array([_bits(gear.stages[:-1]) for gear in routing.gears], np.uint16)
    return np.array([_bits(range(stages - 1))], np.uint16)


def _cascade(requests: ScoredRequests, stages: Sequence[int], thresholds: Sequence[float]) -> PathArray:
    """Paths through some of the stages: up to the first whose score reaches its threshold."""
    chosen = requests if len(stages) == len(requests.models) else requests.of_models(stages)
    so_far = np.array([_bits(stages[: count + 1]) for count in range(len(stages))], np.uint16)
    found: PathArray = so_far[route(chosen, thresholds)]
    return found


def _bits(stages: Sequence[int]) -> int:
    return sum(1 << stage for stage in stages)
