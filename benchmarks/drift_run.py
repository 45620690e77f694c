"""Plans that serve traffic that changes: one throughout, or one for each phase, with transitions between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_traffic import Traffic
from benchmarks.drift_transition import History, Kind, Replica, Schedule, Seen, schedule
from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.simulation.system import SimulatedSystem, build_system
from cascadia_fast.simulation.traffic import judge_delays, whole_tokens

FloatArray = NDArray[np.float64]

MOST_PASSES = 60
FINISHED, ARRIVED = 3, 0


@dataclass(frozen=True, eq=False)
class Served:
    """What became of N requests, and when replicas opened and closed.

    Parameters
    ----------
    latency_s, quality
        Shape (N,); a latency is infinite where the request was not served.
    history, schedule
        All replicas, and when they took requests.
    visits_s
        Of every replica that ever did, when requests came to it and when they left it.
    passes
        How often the traffic was simulated.
    """

    latency_s: FloatArray
    quality: FloatArray
    history: History
    schedule: Schedule
    visits_s: Mapping[int, tuple[FloatArray, FloatArray]]
    passes: int


class Deployment:
    """Plans on their way to the native simulator: one for all phases, or one for each.

    Parameters
    ----------
    plans
        One, or as many as there are phases.
    traffic
        What is served.
    reload_s
        How long a replica of each model loads.
    lanes
        How many new replicas may wait for GPUs, or load, at a time.
    """

    def __init__(self, plans: Sequence[Plan], traffic: Traffic, reload_s: Mapping[int, float], lanes: int) -> None:
        self.plans, self.traffic, self.reload_s, self.lanes = tuple(plans), traffic, reload_s, lanes
        self.models = sorted({stage.index for plan in plans for stage in plan.stages})
        # By phase and plan: where a plan sends the requests of a phase.
        self.systems = [[build_system(plan, phase.served) for plan in plans] for phase in traffic.phases]
        self.history = self._history()

    def _history(self) -> History:
        pool = self.plans[0].pools[0]
        history = History(pool.gpus, pool.gpus_per_node, placed(self.plans[0]))
        for boundary_s, plan in zip(self.traffic.boundaries_s, self.plans[1:], strict=False):
            history.change(boundary_s, Counter(replica.kind for replica in placed(plan)))
        return history

    def run(self, seed: int) -> Served:
        """Serve the traffic, again and again until replicas are done when they were taken to be."""
        seen, found = Seen(), None
        for passes in range(1, MOST_PASSES + 1):
            plan_of_time = schedule(self.history, self.reload_s, self.lanes, seen)
            if found is not None and plan_of_time == found[0]:
                return self._served(*found, passes)
            routed_by = np.searchsorted(plan_of_time.routes_from_s, self.traffic.arrival_s, side="right")
            found = plan_of_time, routed_by, self._simulate(plan_of_time, routed_by, seed)
            seen = self._seen(plan_of_time, routed_by, found[2])
        raise AssertionError(f"replicas open and close otherwise after every one of {MOST_PASSES} simulations")

    def _simulate(self, plan_of_time: Schedule, routed_by: NDArray[np.intp], seed: int) -> _core.Simulated:
        system = self.systems[0][0]
        scheduler = _core.Scheduler(batching=self.plans[0].batching)
        asks = any(plan.routing.asks_judge for plan in self.plans)
        tables = [phase.served.workload.requests for phase in self.traffic.phases]
        # The table holds every phase's requests once for each plan, with the path on which that one sends them.
        tokens_in, tokens_out = (
            np.concatenate([np.tile(part[self.models], len(self.plans)) for part in parts], axis=1)
            for parts in ([one.input_tokens for one in tables], [one.output_tokens for one in tables])
        )
        return _core.simulate(
            [self._station(model, plan_of_time, scheduler) for model in self.models],
            tokens_in=whole_tokens(tokens_in, "input"),
            tokens_out=whole_tokens(tokens_out, "output"),
            path=np.concatenate(
                [
                    self._by_model(plan, one.path)
                    for row in self.systems
                    for plan, one in zip(self.plans, row, strict=True)
                ],
                axis=1,
            ),
            gears=system.gears,
            # One mask for all plans: what one of them has judged is judged under the others, too, if they go past it.
            judged=np.bitwise_or.reduce(
                [self._by_model(p, s.held_back) for p, s in zip(self.plans, self.systems[0], strict=True)]
            ),
            judge_delay_s=judge_delays(self.traffic.phases[0].served.judge.latency_s if asks else 0.0, 0.0),
            drawn=self._row(routed_by),
            arrival_s=self.traffic.arrival_s,
            seed=seed,
        )

    def _row(self, routed_by: NDArray[np.intp]) -> NDArray[np.int32]:
        """Where in the table a request stands."""
        size = np.array([phase.reference_s.size for phase in self.traffic.phases])
        start = np.concatenate([[0], np.cumsum(size * len(self.plans))])[:-1]
        phase = self.traffic.phase
        return (start[phase] + routed_by * size[phase] + self.traffic.drawn).astype(np.int32)

    def _by_model(self, plan: Plan, bits: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """Bits by stage of a plan as bits by model."""
        found = np.zeros_like(bits)
        for place, stage in enumerate(plan.stages):
            found |= (bits >> place & 1) << self.models.index(stage.index)
        return found

    def _numbers(self, model: int, plan_of_time: Schedule) -> list[int]:
        """The replicas of a model that ever open, in the order in which its station has them."""
        replicas = enumerate(self.history.replicas)
        return [number for number, one in replicas if one.model == model and plan_of_time.windows[number].ever]

    def _station(self, model: int, plan_of_time: Schedule, scheduler: _core.Scheduler) -> _core.Station:
        numbers = self._numbers(model, plan_of_time)
        # The simulator wants a replica that lasts. Of a model that is given up, the last is one that nobody comes to.
        last = max(numbers, key=lambda number: plan_of_time.windows[number].closes_s)
        engines = [
            (
                self._costs[self.history.replicas[number].kind],
                1,
                float(self.history.replicas[number].kind.gpus),
                plan_of_time.windows[number].opens_s,
                math.inf if number == last else plan_of_time.windows[number].closes_s,
            )
            for number in numbers
        ]
        return _core.Station(engines, scheduler=scheduler)

    @cached_property
    def _costs(self) -> dict[Kind, _core.StepCosts]:
        pairs = zip(self.plans, self.systems[0], strict=True)
        return {kind: costs for plan, system in pairs for kind, costs in costs_of(plan, system).items()}

    def _visits_s(
        self, plan_of_time: Schedule, native: _core.Simulated, chosen: NDArray[np.bool_]
    ) -> dict[int, tuple[FloatArray, FloatArray]]:
        """Of every replica that ever opens, when some of the requests came to it and when they left it."""
        assert native.times_s is not None
        assert native.replica is not None
        found = {}
        for row, model in enumerate(self.models):
            for place, number in enumerate(self._numbers(model, plan_of_time)):
                times_s = native.times_s[row][chosen & (native.replica[row] == place)]
                found[number] = times_s[:, ARRIVED], times_s[:, FINISHED]
        return found

    def _seen(self, plan_of_time: Schedule, routed_by: NDArray[np.intp], native: _core.Simulated) -> Seen:
        everyone = self._visits_s(plan_of_time, native, np.ones(routed_by.size, bool))
        ended_s = {number: float(left_s.max(initial=0.0)) for number, (_, left_s) in everyone.items()}
        arrived_s: dict[tuple[int, int], float] = {}
        for index, change in enumerate(self.history.transitions):
            if change.given_up:
                earlier = self._visits_s(plan_of_time, native, routed_by <= index)
                for model in change.given_up:
                    arrived_s[index, model] = max(
                        float(earlier[number][0].max(initial=0.0)) for number in self._numbers(model, plan_of_time)
                    )
        return Seen(ended_s, arrived_s)

    def _served(
        self, plan_of_time: Schedule, routed_by: NDArray[np.intp], native: _core.Simulated, passes: int
    ) -> Served:
        quality = np.empty(native.status.size)
        for place, row in enumerate(self.systems):
            for number, system in enumerate(row):
                here = (self.traffic.phase == place) & (routed_by == number)
                drawn, gear = self.traffic.drawn[here], native.gear[here]
                quality[here] = system.requests.quality[system.accepted_by[gear, drawn], drawn]
        return Served(
            latency_s=np.where(native.status == 0, native.finished_s - native.arrived_s, np.inf),
            quality=quality,
            history=self.history,
            schedule=plan_of_time,
            visits_s=self._visits_s(plan_of_time, native, np.ones(quality.size, bool)),
            passes=passes,
        )


def placed(plan: Plan) -> list[Replica]:
    """Return a plan's replicas where it puts them."""
    node = plan.pools[0].gpus_per_node
    return [
        Replica(
            Kind(stage.index, group.tp, group.pp),
            frozenset(number * node + gpu for number, first, gpus in pieces for gpu in range(first, first + gpus)),
        )
        for stage in plan.stages
        for group in stage.replicas
        for pieces in group.nodes
    ]


def costs_of(plan: Plan, system: SimulatedSystem) -> dict[Kind, _core.StepCosts]:
    """Return what a step costs on each kind of replica of a plan."""
    return {
        Kind(stage.index, group.tp, group.pp): costs
        for stage, kinds in zip(plan.stages, system.engines, strict=True)
        for group, (costs, _, _) in zip(stage.replicas, kinds, strict=True)
    }
