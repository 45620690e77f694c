"""Algorithm 1 of Cascadia (arXiv 2506.04203): deployment and routing optimised in turn, until neither moves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.errors import InputError
from cascadia_fast.routing import QUALITY_SLACK, RoutingGrid, chebyshev, proportional_start, span_of
from cascadia_fast.workload import ScoredRequests

MAX_ROUNDS = 100


@dataclass(frozen=True)
class Round:
    """One round: the routing, the best deployment found for it, and the objective of the two together."""

    routing: int
    deployment: tuple[_core.Choice, ...]
    latency_s: float
    objective: float


@dataclass(frozen=True)
class Options:
    """What the paper leaves open, for users to set.

    Parameters
    ----------
    start
        Thresholds to begin with, levels of the grid; None: proportional, stage i of C is reached by (C - i)/C.
    patience
        K: rounds without a better objective before it stops. It stops at once where a round would repeat itself.
    mu_s
        Weight of a whole span of missing quality, in seconds; None: ten times the latency of the start.
    """

    start: tuple[float, ...] | None = None
    patience: int = 3
    mu_s: float | None = None

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise InputError(f"patience is {self.patience}; give at least one round")
        if self.mu_s is not None and not 0 <= self.mu_s < math.inf:
            raise InputError(f"mu_s is {self.mu_s:g}; give a finite number of seconds that is not negative")

    def on(self, grid: RoutingGrid, requests: ScoredRequests) -> Settings:
        """Return these options on one grid and its requests.

        Raises
        ------
        InputError
            A threshold to start with is not a level of the grid.
        """
        start = proportional_start(requests, grid.levels) if self.start is None else self.start
        if len(start) != len(grid.levels):
            raise InputError(f"start has {len(start)} thresholds; the cascade has {len(grid.levels)}")
        for threshold, levels in zip(start, grid.levels, strict=True):
            if threshold not in levels:
                raise InputError(f"start has the threshold {threshold:g}, which is no level of the grid")
        routing = grid.routing_of(requests, start) if grid.levels else 0
        return Settings(routing, span_of(requests), self.patience, self.mu_s)


@dataclass(frozen=True)
class Settings:
    """`Options` on one grid: `start` is a routing, `span` the range of quality that counts as a whole."""

    start: int
    span: float
    patience: int = 3
    mu_s: float | None = None


@dataclass(frozen=True)
class Run:
    """What the loop did.

    Parameters
    ----------
    best
        The round with the least latency whose routing meets the floor; None: there was none.
    rounds
        All rounds.
    restarted_after
        Rounds before it began again from the routing that meets the floor on the fewest GPUs; None: it did not.
    """

    best: Round | None
    rounds: tuple[Round, ...]
    restarted_after: int | None


def alternate(search: _core.CascadeSearch, grid: RoutingGrid, gpus: int, q_min: float, settings: Settings) -> Run:
    """Run the loop from its start, and once more where it ends below the floor.

    The loop can settle below the floor, or at a routing that no deployment carries: each deployment suits the last
    routing and may overload every better one. It then goes on, once, from the routing that meets the floor on the
    fewest GPUs; the paper does not.
    """
    rounds = _run(search, grid, gpus, q_min, settings)
    best, first = _best_met(rounds, grid, q_min), len(rounds)
    frugal = search.lightest(candidates=_meeting(grid, q_min)) if best is None else -1
    if frugal < 0:
        return Run(best, tuple(rounds), None)
    rounds += _run(search, grid, gpus, q_min, dataclasses.replace(settings, start=frugal))
    return Run(_best_met(rounds, grid, q_min), tuple(rounds), first)


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
    met = [step for step in rounds if _quality(grid, step.routing) >= q_min - QUALITY_SLACK]
    return min(met, key=lambda step: step.latency_s, default=None)


def _meeting(grid: RoutingGrid, q_min: float) -> NDArray[np.int64]:
    return np.flatnonzero(grid.quality[grid.combinations] >= q_min - QUALITY_SLACK)


def _quality(grid: RoutingGrid, routing: int) -> float:
    return float(grid.quality[grid.combination(routing)])
