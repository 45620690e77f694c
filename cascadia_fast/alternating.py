"""Algorithm 1 of Cascadia (arXiv 2506.04203): deployment and routing optimised in turn, until neither moves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from cascadia_fast import _core
from cascadia_fast.routing import RoutingGrid, chebyshev

MAX_ROUNDS = 100


@dataclass(frozen=True)
class Round:
    """One round: the routing, the best deployment found for it, and the objective of the two together."""

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
        K: rounds without a better objective before it stops. It stops at once where a round would repeat itself.
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
    search: _core.CascadeSearch, grid: RoutingGrid, gpus: int, q_min: float, settings: Settings
) -> tuple[Round | None, list[Round]]:
    """Return the best round whose routing meets the floor (None: there was none), and all rounds.

    The loop can settle below the floor, or at a routing that no deployment carries: each deployment suits the last
    routing and may overload every better one. It then goes on, once, from the routing that meets the floor on the
    fewest GPUs.

    Parameters
    ----------
    search
        The workload on the fleet.
    grid
        The routings.
    gpus, q_min
        GPUs, and the floor of quality.
    settings
        Start, patience, mu and span.
    """
    rounds = _run(search, grid, gpus, q_min, settings)
    best = _best_met(rounds, grid, q_min)
    if best is not None:
        return best, rounds
    lightest = search.lightest(q_min)
    if lightest >= 0:
        rounds += _run(search, grid, gpus, q_min, dataclasses.replace(settings, start=lightest))
    return _best_met(rounds, grid, q_min), rounds


def _run(search: _core.CascadeSearch, grid: RoutingGrid, gpus: int, q_min: float, settings: Settings) -> list[Round]:
    rounds: list[Round] = []
    routing, stale, best_objective = settings.start, 0, math.inf
    mu_s = settings.mu_s
    while len(rounds) < MAX_ROUNDS and stale < settings.patience:
        deployment = search.deploy(routing, gpus)
        if not deployment:
            break
        latency_s = max(choice.latency_s for choice in deployment)
        mu_s = 10 * latency_s if mu_s is None else mu_s
        objective = float(chebyshev(latency_s, _quality(grid, routing), q_min, mu_s, settings.span))
        rounds.append(Round(routing, tuple(deployment), latency_s, objective))
        stale = 0 if objective < best_objective else stale + 1
        best_objective = min(best_objective, objective)
        following = search.route(deployment, q_min, mu_s, settings.span).routing
        if following == routing:  # a fixed point: every later round would repeat this one
            break
        routing = following
    return rounds


def _best_met(rounds: list[Round], grid: RoutingGrid, q_min: float) -> Round | None:
    met = [step for step in rounds if _quality(grid, step.routing) >= q_min - 1e-9]
    return min(met, key=lambda step: step.latency_s, default=None)


def _quality(grid: RoutingGrid, routing: int) -> float:
    return float(grid.quality[grid.combination(routing)])
