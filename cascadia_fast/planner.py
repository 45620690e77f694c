"""The planner: one fleet, many workloads; routing and deployment found together."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from importlib import import_module

import numpy as np

from cascadia_fast import _core
from cascadia_fast.allocation import Allocation, paper_milp, pruned_milp
from cascadia_fast.alternating import Options, Round, alternate
from cascadia_fast.blueprint import Plan
from cascadia_fast.drafting import Draft, draft_plan
from cascadia_fast.errors import CascadiaError, InputError, NoPlanError, UnsupportedError
from cascadia_fast.fleet import build_fleet
from cascadia_fast.infeasible import check_floor, no_allocation
from cascadia_fast.problem import Problem
from cascadia_fast.routing import RoutingGrid, routing_grid
from cascadia_fast.schema import MAX_GPUS
from cascadia_fast.simulated_plan import SimulatedPlan, plan_by_simulation
from cascadia_fast.workload import Workload

METHODS = ("exact", "alternating")
LATENCIES = ("formula", "simulated")
EXACT_STAGES = 3
# Two routes to one optimum: what HiGHS and the search may differ by is its feasibility tolerance.
AGREEMENT = 1e-6
# Up to here HiGHS sees every GPU count, each p95 evaluated without the search: a few milliseconds. Beyond, only the
# counts that the search says can matter.
WHOLE_TABLE_GPUS = 128


@dataclass(frozen=True)
class Task:
    """What one call plans: the problem's goal with the call's overrides."""

    workload: Workload
    gpus: int
    q_min: float
    method: str
    latency: str
    paper_strict: bool
    max_utilization: float
    alternating: Options


@dataclass(frozen=True)
class Answer:
    """What a method found."""

    routing: int
    deployment: tuple[_core.Choice, ...]
    certificate: str
    evaluated: int
    pruned: int
    proved: bool
    rounds: tuple[Round, ...] = ()
    simulated: SimulatedPlan | None = None


class Planner:
    """Plans cascades on one fleet; keeps what depends on models and hardware, and nothing of any workload.

    Parameters
    ----------
    problem
        The problem whose models, GPUs and goal are planned for.
    threads
        Threads for look-up tables and simulations; None: all cores. Results are the same for any number.

    Raises
    ------
    ModelDoesNotFitError
        One of the models fits no number of these GPUs.
    """

    def __init__(self, problem: Problem, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; give at least 1")
        self.problem = problem
        self.threads = threads or os.cpu_count() or 1
        self.fleet = build_fleet(problem)

    def plan(
        self,
        gpus: int | None = None,
        q_min: float | None = None,
        rate_per_s: float | None = None,
        method: str | None = None,
        *,
        workload: Workload | None = None,
        previous: Plan | None = None,
        alternating: Options | None = None,
        latency: str | None = None,
    ) -> Plan:
        """Return the best plan; what is not given is the problem's.

        Parameters
        ----------
        gpus
            Number of GPUs.
        q_min
            Floor of the mean quality, 0 to 100.
        rate_per_s
            Mean rate of the arrivals; `rate_from` and `headroom` make the planned rate of it.
        method
            ``exact``: optimal over the grid of thresholds, up to 3 stages. ``alternating``: the paper's loop.
        workload
            Traffic to plan for.
        previous
            A plan in force: among equally good plans the one nearest to it is chosen.
        alternating
            What method ``alternating`` starts with, how patient it is, and what missing quality weighs.
        latency
            Where p95s come from: ``formula``, or ``simulated``, the paper's way, which sees the trace itself and takes
            a hundred times longer. For method ``exact`` without `paper_strict`.

        Raises
        ------
        InputError
            An argument is out of range.
        NoPlanError
            No plan exists: the subclass and the message name the constraint that binds.
        """
        task = self._task(gpus, q_min, rate_per_s, method, workload, latency)
        if alternating is not None:
            task = replace(task, alternating=alternating)
        for library in ("cascadia_fast.routing_kernels", "highspy"):  # loading them once is no part of solving
            import_module(library)
        started_s = time.perf_counter()
        grid = routing_grid(task.workload.requests)
        check_floor(grid, task.q_min)
        search = self._search(task, grid)
        if task.latency == "simulated":
            answer = self._simulate(task, grid, search, previous)
        elif task.method == "exact":
            answer = self._exact(task, grid, search, previous)
        else:
            answer = self._alternate(task, grid, search)
        proof = self._prove(task, search, answer)
        finished = proof.status == "optimal"
        draft = Draft(
            problem=self.problem,
            fleet=self.fleet,
            workload=task.workload,
            gpus=task.gpus,
            q_min=task.q_min,
            max_utilization=task.max_utilization,
            paper_strict=task.paper_strict,
            method=task.method,
            grid=grid,
            search=search,
            routing=answer.routing,
            deployment=answer.deployment,
            certificate=answer.certificate if finished else "not proved: HiGHS stopped at its time limit",
            evaluated=answer.evaluated,
            pruned=answer.pruned,
            proved=answer.proved and finished,
            rounds=answer.rounds,
            proof=proof,
            simulated=answer.simulated,
        )
        return draft_plan(draft, lambda: time.perf_counter() - started_s)

    def replan(self, workload: Workload, previous: Plan) -> Plan:
        """Return the best plan for new traffic on the previous plan's GPUs and floor; ties are kept close to it."""
        return self.plan(gpus=previous.pool_gpus, q_min=previous.q_min, workload=workload, previous=previous)

    def _task(
        self,
        gpus: int | None,
        q_min: float | None,
        rate_per_s: float | None,
        method: str | None,
        workload: Workload | None,
        latency: str | None,
    ) -> Task:
        goal = self.problem.goal
        workload = self.problem.workload if workload is None else workload
        models = tuple(stage.name_in_requests for stage in self.problem.stages)
        if workload.requests.models != models:
            given = ", ".join(workload.requests.models)
            raise InputError(f"the workload scores the models {given}; the cascade has {', '.join(models)}")
        if rate_per_s is not None:
            if not (0 < rate_per_s < float("inf")):
                raise InputError(f"rate_per_s is {rate_per_s:g}; give a positive number of requests per second")
            arrivals = workload.arrivals.rescaled(rate_per_s)
            workload = Workload.build(workload.requests, arrivals, workload.rate_from, workload.headroom)
        gpus = self.problem.gpus if gpus is None else gpus
        if not 1 <= gpus <= MAX_GPUS:
            raise InputError(f"gpus is {gpus}; give 1 to {MAX_GPUS:,}")
        q_min = goal.q_min if q_min is None else q_min
        if not 0 <= q_min <= 100:
            raise InputError(f"q_min is {q_min:g}; give a mean quality from 0 to 100")
        method = goal.method if method is None else method
        if method not in METHODS:
            raise InputError(f"method is {method!r}; use {' or '.join(METHODS)}")
        if method == "exact" and len(models) > EXACT_STAGES:
            raise InputError(
                f"method exact plans up to {EXACT_STAGES} stages and the cascade has {len(models)}; "
                "use method alternating"
            )
        latency = goal.latency if latency is None else latency
        if latency not in LATENCIES:
            raise InputError(f"latency is {latency!r}; use {' or '.join(LATENCIES)}")
        if latency == "simulated" and (method != "exact" or goal.paper_strict):
            other = f"method {method}" if method != "exact" else "paper_strict"
            raise UnsupportedError(f"{other} plans by the latency formula; drop latency simulated, or {other}")
        return Task(workload, gpus, q_min, method, latency, goal.paper_strict, goal.max_utilization, Options())

    def _search(self, task: Task, grid: RoutingGrid) -> _core.CascadeSearch:
        workload = task.workload
        return _core.CascadeSearch(
            replicas=[list(stage.replicas) for stage in self.fleet],
            cells=[(cells.tokens_in, cells.tokens_out, cells.spread_out) for cells in grid.cells],
            share=list(grid.cell_weight),
            quality=grid.quality,
            levels=[len(levels) for levels in grid.levels],
            routings=grid.routings,
            traffic=_core.Traffic(
                rate_per_s=workload.rate_per_s,
                scv=workload.cv**2,
                max_utilization=task.max_utilization,
                idle_stage_keeps_replica=task.paper_strict,
                dispersion=workload.swings,
            ),
        )

    def _exact(self, task: Task, grid: RoutingGrid, search: _core.CascadeSearch, previous: Plan | None) -> Answer:
        found = search.exact(task.gpus, task.q_min, self._gpus_of(previous))
        if found.routing < 0:
            raise self._no_allocation(task, search)
        pruned = found.pruned_by_load + found.pruned_by_need + found.pruned_by_latency
        largest = max(replica.shape.gpus for stage in self.fleet for replica in stage.replicas)
        certificate = (
            "optimal for this latency model, this grid of thresholds and this sample, with one shape per stage and "
            f"engines of at most {largest} GPUs: {found.meet_floor:,} of {grid.distinct:,} distinct routings meet the "
            "floor"
        )
        return Answer(found.routing, tuple(found.stages), certificate, found.evaluated, pruned, proved=True)

    def _simulate(self, task: Task, grid: RoutingGrid, search: _core.CascadeSearch, previous: Plan | None) -> Answer:
        start = search.exact(task.gpus, task.q_min)
        if start.routing < 0:
            raise self._no_allocation(task, search)
        made = plan_by_simulation(
            search,
            grid,
            task.workload,
            [stage.replicas for stage in self.fleet],
            start,
            gpus=task.gpus,
            quality_floor=task.q_min,
            max_utilization=task.max_utilization,
            previous_gpus=self._gpus_of(previous),
            judge_latency_s=self.problem.judge.latency_s,
            threads=self.threads,
        )
        found = made.found
        pruned = found.meet_floor - found.evaluated
        certificate = (
            f"best by simulation, each stage alone, of {found.evaluated:,} of the {found.meet_floor:,} distinct "
            f"routings that meet the floor; the formula puts the others beyond {found.screen:.3g} times its p95"
        )
        return Answer(
            found.routing, found.deployment, certificate, found.evaluated, pruned, proved=False, simulated=made
        )

    def _alternate(self, task: Task, grid: RoutingGrid, search: _core.CascadeSearch) -> Answer:
        settings = task.alternating.on(grid, task.workload.requests)
        run = alternate(search, grid, task.gpus, task.q_min, settings)
        if run.best is None:
            if search.least_gpus(task.q_min) > task.gpus:
                raise self._no_allocation(task, search)
            raise NoPlanError(
                f"the alternating method met no deployable routing with quality {task.q_min:g} in {len(run.rounds)} "
                "rounds; use method exact, a lower q_min, or more GPUs"
            )
        restart = "" if run.restarted_after is None else f", begun again at the floor after {run.restarted_after}"
        certificate = f"a heuristic whose distance from the optimum is unknown; {len(run.rounds)} rounds{restart}"
        best = run.best
        return Answer(best.routing, best.deployment, certificate, len(run.rounds), 0, proved=False, rounds=run.rounds)

    def _prove(self, task: Task, search: _core.CascadeSearch, answer: Answer) -> Allocation:
        """Let HiGHS solve the allocation of the routing found; disagreement with the search is an error."""
        latency_s = max(choice.latency_s for choice in answer.deployment)
        stages = range(len(answer.deployment))
        if answer.simulated is not None:
            proof = pruned_milp(answer.simulated.found.columns, task.gpus, latency_s * (1 + AGREEMENT))
            return self._agreed(proof, latency_s)
        if task.paper_strict or task.gpus <= WHOLE_TABLE_GPUS:
            tables = [search.table(answer.routing, stage, task.gpus, self.threads)[0] for stage in stages]
        if task.paper_strict:
            proof = paper_milp(tables, task.gpus, exact_sum=True)
        else:
            if task.gpus <= WHOLE_TABLE_GPUS:
                pairs = [(np.arange(task.gpus + 1), table) for table in tables]
            else:
                columns = search.columns(answer.routing, latency_s, task.gpus)
                pairs = [
                    (np.array([c.gpus for c in stage], np.int64), np.array([c.latency_s for c in stage]))
                    for stage in columns
                ]
            proof = pruned_milp(pairs, task.gpus, latency_s * (1 + AGREEMENT))
        return self._agreed(proof, latency_s)

    @staticmethod
    def _agreed(proof: Allocation, latency_s: float) -> Allocation:
        if proof.status == "optimal" and abs(proof.latency_s - latency_s) > AGREEMENT * latency_s:
            raise CascadiaError(
                f"HiGHS allocates for {proof.latency_s:.9g} s and the search for {latency_s:.9g} s; this is a defect, "
                "please report it with the problem file"
            )
        return proof

    def _no_allocation(self, task: Task, search: _core.CascadeSearch) -> NoPlanError:
        models = [stage.name for stage in self.problem.stages]
        return no_allocation(search, task.gpus, task.q_min, task.workload.rate_per_s, models)

    def _gpus_of(self, previous: Plan | None) -> list[int]:
        if previous is None:
            return []
        gpus = [0] * len(self.problem.stages)
        for stage in previous.stages:
            if stage.index < len(gpus):
                gpus[stage.index] = stage.gpus
        return gpus


def plan(problem: Problem, *, threads: int | None = None) -> Plan:
    """Plan a problem once; a `Planner` is cheaper where more plans for the same models and cluster follow.

    Raises
    ------
    NoPlanError
        No plan exists: the subclass and the message name the constraint that binds.
    """
    return Planner(problem, threads).plan()
