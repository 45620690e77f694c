"""One cell tried: a system plans on one half of a case's requests, and its plan serves the other half in simulation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.comparison.assumptions import assumption_of
from cascadia_fast.comparison.cells import Cell
from cascadia_fast.comparison.measuring import measured
from cascadia_fast.comparison.setup import planned_for
from cascadia_fast.comparison.splitting import Halves, planning_seed, rotated, split
from cascadia_fast.errors import InputError, NoPlanError
from cascadia_fast.fleet import StageFleet
from cascadia_fast.planner import LIBRARIES, Planner
from cascadia_fast.simulation import simulate
from cascadia_fast.simulation.overload import overloads
from cascadia_fast.simulation.traffic import whole_tokens
from cascadia_fast.summary import replicas_text
from cascadia_fast.summary_routing import routing_text
from cascadia_fast.summary_units import digits
from cascadia_fast.workload import Arrivals, ScoredRequests, Workload

if TYPE_CHECKING:
    from cascadia_fast.baselines.systems import System
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.problem import Problem
    from cascadia_fast.simulation import Simulation

Row = dict[str, Any]
"""What a cell came to: status, why, plan, measured and seconds, as in results.json."""

FloatArray = NDArray[np.float64]


class Trials:
    """Tries the cells of one case, and keeps what neighbours have in common: engines, halves, traffic.

    Parameters
    ----------
    problem
        The case.
    systems
        By name.
    requests
        How many each trial serves.
    """

    def __init__(self, problem: Problem, systems: Mapping[str, System], requests: int) -> None:
        self.problem = problem
        self.systems = systems
        self.requests = requests
        self._halves: tuple[int, Halves] | None = None
        self._reference: tuple[int, FloatArray] | None = None
        self._arrivals: dict[float, Arrivals] = {}
        self._served: tuple[tuple[int, float], Problem] | None = None
        self._case: tuple[tuple[int, float, float, int], Case] | None = None

    @cached_property
    def planner(self) -> Planner:
        """Holds the candidate engines, which take longer to build than a plan."""
        for library in LIBRARIES:  # loading them once is no part of planning
            import_module(library)
        return Planner(self.problem, threads=1)

    def row(self, cell: Cell) -> Row:
        """Return what a cell came to.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C stopped it half way.
        """
        row: Row = {"status": "no_plan", "why": None, "plan": None, "measured": None}
        self._halves_of(cell.seed)  # what cannot be split is no failure of a system
        started_s = time.perf_counter()
        try:
            case = self._case_of(cell)
            planning_s = time.perf_counter()
            plan = self.systems[cell.system].plan(case)
        except (NoPlanError, InputError) as error:
            row["why"] = " ".join(str(error).split())
        else:
            planned_s = time.perf_counter() - planning_s
            run = simulate(plan, self._served_by(cell), requests=self.requests, seed=cell.seed)
            if run.interrupted:
                raise KeyboardInterrupt
            row["plan"] = _planned(plan, planned_s)
            row["measured"] = measured(run, self._reference_of(cell.seed))
            row["why"] = _overloaded(run)
            row["status"] = "served" if row["why"] is None else "unstable"
        row["seconds"] = round(time.perf_counter() - started_s, 6)
        return row

    def _halves_of(self, seed: int) -> Halves:
        if self._halves is None or self._halves[0] != seed:
            self._halves = seed, split(self.problem.workload.requests, seed)
        return self._halves[1]

    def _reference_of(self, seed: int) -> FloatArray:
        if self._reference is None or self._reference[0] != seed:
            self._reference = seed, reference_s(self.problem, self.planner.fleet, self._halves_of(seed).test)
        return self._reference[1]

    def _served_by(self, cell: Cell) -> Problem:
        """The test half at the cell's rate; the trace starts where the seed says."""
        asked = (cell.seed, cell.rate_per_s)
        if self._served is None or self._served[0] != asked:
            whole = self.problem.workload
            arrivals = rotated(self._arrivals_at(cell.rate_per_s), cell.seed)
            self._served = asked, self._with(whole, self._halves_of(cell.seed).test, arrivals)
        return self._served[1]

    def _case_of(self, cell: Cell) -> Case:
        """What systems plan for: the planning half at the cell's rate, floor and number of GPUs."""
        asked = (cell.seed, cell.rate_per_s, cell.q_min, cell.gpus)
        if self._case is None or self._case[0] != asked:
            whole = self.problem.workload
            arrivals = self._arrivals_at(cell.rate_per_s)
            changes: dict[str, Any] = {"q_min": cell.q_min, **planned_for(self.problem.goal)}
            if cell.gpus != self.problem.gpus:
                changes["gpus"] = cell.gpus
            problem = self._with(whole, self._halves_of(cell.seed).planning, arrivals, **changes)
            self._case = asked, Case.of(problem, self.planner, seed=planning_seed(cell.seed))
        return self._case[1]

    def _arrivals_at(self, rate_per_s: float) -> Arrivals:
        """The case's arrivals at another rate; measuring a trace takes as long as a tenth of a cell."""
        if rate_per_s not in self._arrivals:
            self._arrivals[rate_per_s] = self.problem.workload.arrivals.rescaled(rate_per_s)
        return self._arrivals[rate_per_s]

    def _with(self, whole: Workload, requests: ScoredRequests, arrivals: Arrivals, **changes: Any) -> Problem:
        workload = Workload.build(requests, arrivals, whole.rate_from, whole.headroom)
        return self.problem.replace(workload=workload, **changes)


def reference_s(problem: Problem, fleet: tuple[StageFleet, ...], requests: ScoredRequests) -> FloatArray:
    """Return, shape (n,), what an SLO scale of 1 is for every request, whatever system serves it.

    It is the request's latency alone on the largest model, on that one's fastest engine that the cluster holds.
    """
    largest = len(problem.stages) - 1
    tokens = (
        whole_tokens(requests.input_tokens[largest], "input"),
        whole_tokens(requests.output_tokens[largest], "output"),
    )
    engines = [
        replica
        for replica, pool in zip(fleet[largest].replicas, fleet[largest].pools, strict=True)
        if replica.shape.gpus <= problem.pools[pool].gpus
    ]
    alone = [_core.StepCosts(replica).alone_s(*tokens)[1] for replica in engines or fleet[largest].replicas]
    fastest: FloatArray = np.minimum.reduce(alone)
    return fastest


def _overloaded(run: Simulation) -> str | None:
    """Why latencies would grow with the length of the run; None where they would not."""
    found = next(overloads(run), None)
    if found is None:
        return None
    stage = run.plan.stages[found.station].model if found.station < len(run.plan.stages) else "the judge"
    return (
        f"{stage} is overloaded: {digits(found.arrived_per_s)} requests/s arrive and {digits(found.finished_per_s)} "
        f"are finished meanwhile"
    )


def _planned(plan: Plan, seconds: float) -> dict[str, Any]:
    pooled = len(plan.pools) > 1
    return {
        "plan_id": plan.plan_id,
        "seconds": round(seconds, 6),
        "status": plan.status,
        "routing": routing_text(plan),
        "assumes": assumption_of(plan),
        "batching": plan.batching,
        "gpus": plan.gpus,
        "predicted_quality": _finite(plan.predicted.quality),
        "predicted_p95_s": plan.predicted.end_to_end_p95_s,
        "stages": [
            {
                "model": stage.model,
                "gpus": stage.gpus,
                "replicas": replicas_text(stage.replicas, pooled),
                "planned_reach": stage.reach,
            }
            for stage in plan.stages
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
