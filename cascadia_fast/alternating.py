"""Algorithm 1 of Cascadia (arXiv 2506.04203): deployment and routing optimised in turn, until neither moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cascadia_fast import _core
from cascadia_fast.routing import RoutingGrid, chebyshev

MAX_ROUNDS = 100


@dataclass(frozen=True)
class Round:
    """One round: the routing, the best deployment found for it, and the objective of the two together.

    `latency_s` and `objective` are infinite where the deployment cannot carry the routing.
    """

    routing: int
    deployment: tuple[_core.Choice, ...]
    latency_s: float
    objective: float


@dataclass(frozen=True)
class Settings:
    """What the paper leaves open.

    Parameters
    ----------
    start
        Routing to begin with.
    patience
        K: rounds without a better objective before it stops.
    mu_s
        Weight of a whole span of missing quality, in seconds; None: ten times the latency of the start.
    span
        Range of quality that counts as a whole.
    """

    start: int
    span: float
    patience: int = 3
    mu_s: float | None = None


def alternate(
    search: _core.CascadeSearch,
    lighter: Callable[[float], _core.CascadeSearch],
    grid: RoutingGrid,
    gpus: int,
    q_min: float,
    settings: Settings,
) -> tuple[Round | None, list[Round]]:
    """Return the best round whose routing meets the floor (None: there was none), and all rounds.

    Parameters
    ----------
    search
        The workload on the fleet.
    lighter
        The same with the rate scaled by a factor below 1: a routing whose load does not fit is deployed for the
        largest halving of the rate that does, so that the loop can route its way out.
    grid
        The routings.
    gpus, q_min
        GPUs, and the floor of quality.
    settings
        Start, patience, mu and span.
    """
    mu_s = settings.mu_s
    rounds: list[Round] = []
    routing, stale, best_objective = settings.start, 0, math.inf
    while len(rounds) < MAX_ROUNDS and stale < settings.patience:
        deployment, latency_s = _deploy(search, lighter, routing, gpus)
        if not deployment:
            break
        if mu_s is None and math.isfinite(latency_s):
            mu_s = 10 * latency_s
        objective = float(chebyshev(latency_s, _quality(grid, routing), q_min, mu_s or 0.0, settings.span))
        rounds.append(Round(routing, tuple(deployment), latency_s, objective))
        stale = 0 if objective < best_objective else stale + 1
        best_objective = min(best_objective, objective)
        # Without a finite latency yet, any positive weight orders routings by quality first, then by latency.
        routing = search.route(deployment, q_min, mu_s or 1e6, settings.span).routing
    met = [r for r in rounds if math.isfinite(r.latency_s) and _quality(grid, r.routing) >= q_min - 1e-9]
    return min(met, key=lambda r: r.latency_s, default=None), rounds


def _deploy(
    search: _core.CascadeSearch, lighter: Callable[[float], _core.CascadeSearch], routing: int, gpus: int
) -> tuple[Sequence[_core.Choice], float]:
    deployment = search.deploy(routing, gpus)
    if deployment:
        return deployment, max(choice.latency_s for choice in deployment)
    factor = 1.0
    while factor > 1e-6:
        factor /= 2
        deployment = lighter(factor).deploy(routing, gpus)
        if deployment:
            return deployment, math.inf
    return (), math.inf


def _quality(grid: RoutingGrid, routing: int) -> float:
    return float(grid.quality[grid.combination(routing)])
