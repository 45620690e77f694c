"""Traffic that changes twice: the traces of one cascade, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper_cases import case
from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.comparison.splitting import rotated, split
from cascadia_fast.comparison.trial import reference_s
from cascadia_fast.engine_parts import native_architecture
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests
from cascadia_fast.workload import ScoredRequests, Workload

FloatArray = NDArray[np.float64]

MINUTES = (8, 16, 10)  # of the three phases, as in the paper
# Engines start empty, so the first phase's traffic begins so much earlier.
LEAD_IN_S = 600.0
# Models load at this pace after so long a start. It makes 2 s of 7B, 9 s of 70B and 19 s of 671B in int4; the paper
# measured 2 to 20 s.
LOAD_BYTES_PER_S = 20e9
START_S = 1.5


@dataclass(frozen=True, eq=False)
class Phase:
    """One phase of the traffic.

    Parameters
    ----------
    case
        What systems plan for: the planning half of the trace's requests.
    served
        The problem with what comes: the test half.
    reference_s
        Shape (n,): the latency that an SLO scale of 1 stands for, of every request of that half.
    arrival_s, drawn
        When requests come, and which of that half each is.
    """

    case: Case
    served: Problem
    reference_s: FloatArray
    arrival_s: FloatArray
    drawn: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Traffic:
    """The phases one after another, and when each but the first begins."""

    phases: tuple[Phase, ...]
    boundaries_s: tuple[float, ...]

    def until(self, phases: int) -> Traffic:
        """Return the first phases of it."""
        return Traffic(self.phases[:phases], self.boundaries_s[: phases - 1])

    @cached_property
    def arrival_s(self) -> FloatArray:
        """Shape (N,): all arrivals."""
        return np.concatenate([phase.arrival_s for phase in self.phases])

    @cached_property
    def phase(self) -> NDArray[np.intp]:
        """Shape (N,): which phase each request belongs to."""
        return np.repeat(np.arange(len(self.phases)), [phase.arrival_s.size for phase in self.phases])

    @cached_property
    def drawn(self) -> NDArray[np.int32]:
        """Shape (N,): the place of each request in its phase's test half."""
        return np.concatenate([phase.drawn for phase in self.phases])

    @cached_property
    def reference_s(self) -> FloatArray:
        """Shape (N,)."""
        return np.concatenate([phase.reference_s[phase.drawn] for phase in self.phases])


class Cases:
    """The traces of one cascade; engines are built once."""

    def __init__(self, names: Sequence[str]) -> None:
        self.problems = tuple(case(name) for name in names)
        self.planner = Planner(self.problems[0], threads=1)

    def traffic(self, q_min: Sequence[float], seed: int, load: float = 1.0, rehearsal: bool = False) -> Traffic:
        """Return the traffic of a seed at so many times the traces' rates, under one floor for each phase.

        What comes is the test half, and the traces begin where the seed says. In a rehearsal it is the planning half,
        and traces begin where they begin.
        """
        base = self.problems[0]
        halves = split(base.workload.requests, seed)
        ends_s = LEAD_IN_S + 60.0 * np.cumsum(MINUTES)
        starts_s = [0.0, *ends_s[:-1]]
        phases = []
        for place, (problem, floor) in enumerate(zip(self.problems, q_min, strict=True)):
            whole = problem.workload
            arrivals = whole.arrivals.rescaled(load * whole.rate_per_s)
            # A request is in the same half in every phase, so that no plan has seen what it serves.
            planning, test = (_those_of(whole.requests, half) for half in (halves.planning, halves.test))
            planned = Workload.build(planning, arrivals)
            served = planned if rehearsal else Workload.build(test, rotated(arrivals, seed))
            arrival_s = _arrivals(served, ends_s[place] - starts_s[place], seed) + starts_s[place]
            drawn = drawn_requests(served.requests, arrival_s.size, len(self.problems) * seed + place)
            phases.append(
                Phase(
                    Case.of(base.replace(workload=planned, q_min=floor), self.planner, seed=seed),
                    base.replace(workload=served, q_min=floor),
                    reference_s(base, self.planner.fleet, served.requests),
                    arrival_s,
                    drawn,
                )
            )
        return Traffic(tuple(phases), tuple(ends_s[:-1].tolist()))

    def reload_s(self) -> dict[int, float]:
        """Return how long a replica of each model loads."""
        found = {}
        for index, stage in enumerate(self.problems[0].stages):
            precision = _core.Precision(weights=stage.weights, kv=stage.kv_dtype)
            weight_bytes = native_architecture(stage.model.architecture).weight_bytes(precision)
            found[index] = START_S + weight_bytes / LOAD_BYTES_PER_S
        return found


def _those_of(requests: ScoredRequests, half: ScoredRequests) -> ScoredRequests:
    return requests.select(np.isin(requests.request_ids, half.request_ids))


def _arrivals(workload: Workload, length_s: float, seed: int) -> FloatArray:
    """Arrivals of the trace within a time; its rate swings, so more are asked for until they are enough."""
    count = int(2 * workload.rate_per_s * length_s) + 1
    times_s = arrival_times(workload, "trace", workload.rate_per_s, count, seed)
    while times_s[-1] < length_s:
        count *= 2
        times_s = arrival_times(workload, "trace", workload.rate_per_s, count, seed)
    return times_s[times_s < length_s]
