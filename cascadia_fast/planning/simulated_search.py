"""Routing and deployment together on simulated tables: what the formula's search does, with p95s from simulation.

Simulation takes milliseconds where the formula takes microseconds, so the formula says where to look: no simulated p95
is believed to lie below the formula's divided by a screening factor. Under that one assumption the search is exact. It
takes the routings in the order of the formula's optimum, stops where none can beat the best plan found, and asks for
each only whether it can: every stage needs its smallest number of GPUs with a simulated p95 within the limit (`need`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.planning.simulated_stages import Replay, StageTraffic
from cascadia_fast.routing import QUALITY_SLACK, RoutingGrid, route

# How far the formula may overstate a p95. Measured on both benchmark cases, 3,594 engines under the trace, Poisson and
# gamma arrivals of CV 2, at 70 to 100 % of the rate: the lowest simulated p95 is 0.845 of the formula's. On samples of
# 51 requests whose p95 lies between two of very different lengths it was 0.71 once. Bursts with long silence between
# make the formula overstate every p95, up to twice: what it overstates at its own optimum multiplies this factor.
SCREEN = 1.5
# Routings that are searched side by side, against the best plan before them: so many for any number of threads, so that
# the number of threads changes nothing.
WAVE = 8

Deployment = tuple[_core.Choice, ...]
Columns = tuple[NDArray[np.int64], NDArray[np.float64]]
# What plans are compared by: p95s, worst first; lack of quality; GPUs; GPUs moved; routing.
Key = tuple[tuple[float, ...], float, int, int, int]


@dataclass(frozen=True)
class Found:
    """The best plan by simulation, and how it was found.

    Parameters
    ----------
    routing, deployment
        The plan; its latencies are those of stages simulated alone.
    columns
        Per stage, the GPU counts and p95s that were simulated under the plan's routing.
    meet_floor, evaluated
        Routings that meet the floor, and those of them that the formula did not rule out.
    screen
        The screening factor.
    simulations
        Simulated runs of a stage.
    """

    routing: int
    deployment: Deployment
    columns: tuple[Columns, ...]
    meet_floor: int
    evaluated: int
    screen: float
    simulations: int


@dataclass(frozen=True)
class Limit:
    """What a p95 must not exceed, or must stay below, and how far the formula may overstate it."""

    p95_s: float
    screen: float
    strictly: bool = False

    @property
    def formula_s(self) -> float:
        """Beyond this p95 by formula, simulation is not worth its time."""
        return self.p95_s * self.screen

    def admits(self, p95_s: float) -> bool:
        """Whether a simulated p95 is within the limit."""
        return p95_s < self.p95_s or (p95_s == self.p95_s and not self.strictly)


@dataclass(frozen=True)
class Candidate:
    """Engines that a stage may run on, within the utilisation cap, and the formula's p95."""

    gpus: int
    shape: int
    replicas: int
    formula_s: float


class StageTable:
    """l(f) of one stage under one routing, simulated where it is asked for.

    Parameters
    ----------
    candidates
        What it may run on.
    costs
        By shape, what the steps of an engine take.
    traffic
        Simulates the requests that reach the stage.
    """

    def __init__(
        self, candidates: Sequence[Candidate], costs: Sequence[_core.StepCosts], traffic: StageTraffic
    ) -> None:
        by_gpus = sorted(candidates, key=lambda candidate: (candidate.gpus, candidate.shape))
        self._rows = [(gpus, list(row)) for gpus, row in groupby(by_gpus, key=lambda candidate: candidate.gpus)]
        self._costs = costs
        self._traffic = traffic

    def need(self, limit: Limit, gpus: int) -> _core.Choice | None:
        """Return the fewest GPUs, at most `gpus`, with a simulated p95 within the limit."""
        for count, row in self._rows:
            if count > gpus:
                break
            found = [
                self._deployed(candidate.shape, candidate.replicas, count)
                for candidate in row
                if candidate.formula_s <= limit.formula_s
            ]
            best = min(found, key=lambda choice: choice.latency_s, default=None)
            if best is not None and limit.admits(best.latency_s):
                return best
        return None

    def simulated(self, choice: _core.Choice) -> _core.Choice:
        """Return a deployment with its simulated p95 in the place of the formula's."""
        return self._deployed(choice.shape, choice.replicas, choice.gpus)

    def _deployed(self, shape: int, replicas: int, gpus: int) -> _core.Choice:
        p95_s = self._traffic.p95_s(shape, self._costs[shape], replicas)
        return _core.Choice(shape=shape, replicas=replicas, gpus=gpus, latency_s=p95_s)

    def columns(self) -> Columns:
        """Return GPU counts and p95s of everything simulated so far."""
        known = [
            (candidate.gpus, self._traffic.known[candidate.shape, candidate.replicas])
            for _, row in self._rows
            for candidate in row
            if (candidate.shape, candidate.replicas) in self._traffic.known
        ]
        return np.array([gpus for gpus, _ in known], np.int64), np.array([p95_s for _, p95_s in known])

    @property
    def simulations(self) -> int:
        """Number of simulations so far."""
        return len(self._traffic.known)


class IdleTable:
    """l(f) of a stage that nobody reaches: nothing runs and nobody waits."""

    simulations = 0

    def need(self, limit: Limit, gpus: int) -> _core.Choice | None:
        """Return no GPUs."""
        return _core.Choice(shape=-1, replicas=0, gpus=0, latency_s=0.0)

    def simulated(self, choice: _core.Choice) -> _core.Choice:
        """Return the deployment: none."""
        return choice

    def columns(self) -> Columns:
        """Return no GPUs."""
        return np.zeros(1, np.int64), np.zeros(1)


class SimulatedSearch:
    """One workload on one fleet, by simulation.

    Parameters
    ----------
    search, grid
        The formula on the same workload, and where thresholds send its requests.
    replay
        The traffic of the simulations.
    fleet
        Per stage the candidate engines.
    max_utilization
        Cap of the utilisation, by the formula's capacity.
    threads
        Threads for simulations; results are the same for any number.
    """

    def __init__(
        self,
        search: _core.CascadeSearch,
        grid: RoutingGrid,
        replay: Replay,
        fleet: Sequence[Sequence[_core.Replica]],
        max_utilization: float,
        threads: int,
    ) -> None:
        self._search = search
        self._grid = grid
        self._replay = replay
        self._fleet = fleet
        self.costs = [[_core.StepCosts(replica) for replica in replicas] for replicas in fleet]
        self._max_utilization = max_utilization
        self._threads = threads
        self._tables: dict[tuple[int, bytes], StageTable | IdleTable] = {}

    def exact(
        self, gpus: int, quality_floor: float, start: Deployment, start_routing: int, previous_gpus: Sequence[int] = ()
    ) -> Found | None:
        """Return the best plan; None where no allocation that the formula allows keeps up in simulation.

        Plans are compared as in the formula's search: the p95 of the slowest stage, then those of the others, worst
        first, then quality, fewer GPUs, and fewer of them moved.

        Parameters
        ----------
        gpus, quality_floor
            GPUs of the cluster, and the least mean quality.
        start, start_routing
            A plan to begin with: the formula's optimum.
        previous_gpus
            GPUs of each stage before; empty: none.
        """
        quality = self._grid.quality[self._grid.combinations]
        met = np.flatnonzero(quality >= quality_floor - QUALITY_SLACK).tolist()
        ranked = sorted((formula_s, routing) for routing in met if (formula_s := self._formula_s(routing, gpus)))

        def ranking(routing: int, made: Deployment) -> tuple[Key, Deployment]:
            moved = sum(abs(choice.gpus - had) for choice, had in zip(made, previous_gpus, strict=False))
            total = sum(choice.gpus for choice in made)
            return (worst_first(made), -float(quality[routing]), total, moved, routing), made

        evaluated = 0
        with worker_pool(self._threads) as pool:
            tables = self.tables(start_routing, gpus)
            begun = tuple(pool.map(lambda table, choice: table.simulated(choice), tables, start))
            screen = SCREEN * max(1.0, *map(_overstated, start, begun))
            best = ranking(start_routing, begun)
            for wave in _waves(ranked):
                limits = [Limit(p95_s, screen) for p95_s in best[0][0]]
                routings = [routing for formula_s, routing in wave if formula_s <= limits[0].formula_s]
                tables_of = [self.tables(routing, gpus) for routing in routings]
                found = zip(routings, pool.map(partial(allocate, gpus=gpus, limits=limits), tables_of), strict=True)
                evaluated += len(routings)
                plans = [ranking(routing, made) for routing, made in found if made is not None]
                best = min([best, *plans], key=lambda plan: plan[0])
        (worst_s, *_, routing), deployment = best
        if worst_s[0] == math.inf:
            return None
        return Found(
            routing=routing,
            deployment=deployment,
            columns=tuple(table.columns() for table in self.tables(routing, gpus)),
            meet_floor=len(met),
            evaluated=evaluated,
            screen=screen,
            simulations=sum(table.simulations for table in self._tables.values()),
        )

    def tables(self, routing: int, gpus: int) -> list[StageTable | IdleTable]:
        """Return the simulated tables of a routing's stages; routings that send a stage the same requests share its."""
        accepted_by = route(self._replay.requests, self._grid.thresholds(routing))
        found = []
        for stage in range(len(self._fleet)):
            reaches = (accepted_by >= stage) & (self._replay.requests.weight > 0)
            key = (stage, np.packbits(reaches).tobytes())
            if key not in self._tables:
                self._tables[key] = self._table(routing, stage, reaches, gpus)
            found.append(self._tables[key])
        return found

    def _table(self, routing: int, stage: int, reaches: NDArray[np.bool_], gpus: int) -> StageTable | IdleTable:
        if not reaches.any():
            return IdleTable()
        cells = self._grid.cells[stage]
        candidates = []
        for shape, replica in enumerate(self._fleet[stage]):
            longest_bytes = np.max(replica.kv_bytes(cells.tokens_in + cells.tokens_out))
            if longest_bytes > replica.kv_capacity_bytes or replica.shape.gpus > gpus:
                continue
            load = self._formula(routing, stage, shape, 1)["utilization"] / self._max_utilization
            for replicas in range(max(1, math.ceil(load)), gpus // replica.shape.gpus + 1):
                formula_s = self._formula(routing, stage, shape, replicas)["p95_s"]
                candidates.append(Candidate(replicas * replica.shape.gpus, shape, replicas, formula_s))
        return StageTable(candidates, self.costs[stage], StageTraffic(self._replay, stage, reaches))

    def _formula(self, routing: int, stage: int, shape: int, replicas: int) -> _core.StageDetail:
        gpus = replicas * self._fleet[stage][shape].shape.gpus
        return self._search.evaluate(
            routing, stage, _core.Choice(shape=shape, replicas=replicas, gpus=gpus, latency_s=0.0)
        )

    def _formula_s(self, routing: int, gpus: int) -> float | None:
        """The formula's optimum of a routing; None where the GPUs do not carry it."""
        deployment = self._search.deploy(routing, gpus)
        return max(choice.latency_s for choice in deployment) if deployment else None


def worst_first(deployment: Deployment) -> tuple[float, ...]:
    """Return the stages' p95s in descending order."""
    return tuple(sorted((choice.latency_s for choice in deployment), reverse=True))


def _overstated(formula: _core.Choice, simulated: _core.Choice) -> float:
    """How many times the simulated p95 the formula's is."""
    return formula.latency_s / simulated.latency_s if simulated.latency_s > 0 else 1.0


def allocate(tables: Sequence[StageTable | IdleTable], gpus: int, limits: Sequence[Limit]) -> Deployment | None:
    """Return the best deployment of one routing, lexicographic min-max of the p95s; None where it exceeds the limits.

    Parameters
    ----------
    tables
        l(f) of each stage.
    gpus
        GPUs to share out.
    limits
        The p95s of the best plan so far, worst first: a deployment that compares worse is not of interest.
    """
    active = list(range(len(tables)))
    chosen: dict[int, _core.Choice] = {}
    tied, reached_s = True, math.inf
    for limit in limits:
        spare = gpus - sum(choice.gpus for choice in chosen.values())
        within_s = min(limit.p95_s, reached_s) if tied else reached_s
        found = _min_max(tables, active, spare, Limit(within_s, limit.screen))
        if found is None:
            return None
        slowest = max(active, key=lambda stage: found[stage].latency_s)
        if found[slowest].latency_s == math.inf:
            return None
        # The slowest stage keeps its GPUs and the others go on with the rest, so spare GPUs go where they help.
        chosen[slowest] = found[slowest]
        active.remove(slowest)
        reached_s = found[slowest].latency_s
        tied = tied and reached_s == limit.p95_s
    return tuple(chosen[stage] for stage in range(len(tables)))


def _min_max(
    tables: Sequence[StageTable | IdleTable], active: Sequence[int], gpus: int, limit: Limit
) -> dict[int, _core.Choice] | None:
    """The least latency of the slowest active stage within the limit: step down over the latencies attained."""
    best = None
    while (found := _needs(tables, active, gpus, limit)) is not None:
        best = found
        limit = Limit(max(choice.latency_s for choice in found.values()), limit.screen, strictly=True)
        if limit.p95_s == 0:  # only stages that nobody reaches
            break
    return best


def _needs(
    tables: Sequence[StageTable | IdleTable], active: Sequence[int], gpus: int, limit: Limit
) -> dict[int, _core.Choice] | None:
    """The smallest engines of each stage within the limit; None where they take more than the GPUs."""
    found = {}
    for stage in active:
        choice = tables[stage].need(limit, gpus)
        if choice is None:
            return None
        found[stage] = choice
        gpus -= choice.gpus
    return found


def _waves(ranked: Sequence[tuple[float, int]]) -> Iterator[Sequence[tuple[float, int]]]:
    """So many routings at a time."""
    for start in range(0, len(ranked), WAVE):
        yield ranked[start : start + WAVE]


@contextmanager
def worker_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; an error or Ctrl-C leaves what has not begun undone."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
