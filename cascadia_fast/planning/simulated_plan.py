"""A plan by simulation: the best routing and deployment, and one run of the whole cascade with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast import _core
from cascadia_fast.errors import NoPlanError
from cascadia_fast.planning.simulated_search import Found, SimulatedSearch, worker_pool
from cascadia_fast.planning.simulated_stages import CascadeRun, Replay, StageTraffic, run_cascade
from cascadia_fast.routing import RoutingGrid, route

if TYPE_CHECKING:
    from cascadia_fast.workload import Workload

Fleet = Sequence[Sequence[_core.Replica]]


@dataclass(frozen=True)
class SimulatedPlan:
    """What simulation says of the plan and of its alternatives.

    Parameters
    ----------
    found
        The plan, by stages simulated alone.
    run
        The whole cascade with it.
    singles
        The formula's best deployment of each model that answers every request alone, with the simulated p95.
    requests, seed
        Of every simulation.
    """

    found: Found
    run: CascadeRun
    singles: tuple[_core.Choice, ...]
    requests: int
    seed: int


def plan_by_simulation(
    search: _core.CascadeSearch,
    grid: RoutingGrid,
    workload: Workload,
    fleet: Fleet,
    start: Sequence[_core.Choice],
    start_routing: int,
    *,
    gpus: int,
    quality_floor: float,
    max_utilization: float,
    previous_gpus: Sequence[int],
    judge_latency_s: float,
    threads: int,
) -> SimulatedPlan:
    """Plan by simulation.

    Parameters
    ----------
    search, grid, workload
        The formula on the workload, and where thresholds send its requests.
    fleet
        Per stage the candidate engines.
    start, start_routing
        The formula's optimum.
    gpus, quality_floor, max_utilization, previous_gpus
        What plans must keep to and are compared by.
    judge_latency_s
        Latency of one judge call.
    threads
        Threads for simulations.

    Raises
    ------
    NoPlanError
        No allocation that the formula allows keeps up in simulation.
    """
    replay = Replay.of(workload, max(choice.latency_s for choice in start))
    simulated = SimulatedSearch(search, grid, replay, fleet, max_utilization, threads)
    found = simulated.exact(gpus, quality_floor, tuple(start), start_routing, previous_gpus)
    if found is None:
        raise NoPlanError(
            f"no allocation of {gpus:,} GPUs keeps up with {workload.rate_per_s:,.3g} requests/s in simulation, though "
            "the latency formula says so; add GPUs, or lower the rate or max_utilization"
        )
    engines = {
        stage: (simulated.costs[stage][choice.shape], choice.replicas)
        for stage, choice in enumerate(found.deployment)
        if choice.replicas > 0
    }
    with worker_pool(threads) as pool:
        singles = [
            pool.submit(_single, replay, stage, simulated.costs[stage], search.single(stage, gpus))
            for stage in range(len(fleet))
        ]
        run = run_cascade(replay, route(workload.requests, grid.thresholds(found.routing)), engines, judge_latency_s)
        return SimulatedPlan(found, run, tuple(single.result() for single in singles), replay.count, replay.seed)


def _single(replay: Replay, stage: int, costs: Sequence[_core.StepCosts], choice: _core.Choice) -> _core.Choice:
    """A model that answers every request, with its simulated p95; one that does not carry the rate as it is."""
    if choice.replicas == 0 or not np.isfinite(choice.latency_s):
        return choice
    everyone = StageTraffic(replay, stage, np.ones(replay.requests.size, bool))
    p95_s = everyone.p95_s(choice.shape, costs[choice.shape], choice.replicas)
    return _core.Choice(shape=choice.shape, replicas=choice.replicas, gpus=choice.gpus, latency_s=p95_s)
