"""The planner: one fleet, many workloads; routing and deployment found together."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import InputError, NoPlanError
from cascadia_fast.explaining.explanation import Alternative
from cascadia_fast.fleet import StageFleet, build_fleet, build_judge_fleet
from cascadia_fast.length_cells import LengthCells, all_cells
from cascadia_fast.pareto.front import Front
from cascadia_fast.planning.alternating import Options, Run, alternate
from cascadia_fast.planning.alternatives import other_cascades, other_shapes, shape_alternative
from cascadia_fast.planning.certificate import Certificate, certify, heuristic
from cascadia_fast.planning.drafting import Draft, draft_plan
from cascadia_fast.planning.fronts import front_of
from cascadia_fast.planning.infeasible import check_floor, why_no_plan
from cascadia_fast.planning.proof import prove
from cascadia_fast.planning.qualities import Qualities, qualities_of
from cascadia_fast.planning.searches import Searches, allowed_subsets
from cascadia_fast.planning.simulated_plan import SimulatedPlan, plan_by_simulation
from cascadia_fast.planning.single_models import singles_of
from cascadia_fast.planning.solving import Effort, Found, Solver, found_of
from cascadia_fast.planning.subsets import Subset, subsets_of
from cascadia_fast.planning.surviving import checked_losses, solve_surviving
from cascadia_fast.planning.task import Task, task_of
from cascadia_fast.problem import Problem
from cascadia_fast.routing import Levels
from cascadia_fast.workload import Workload

LIBRARIES = ("cascadia_fast.routing_kernels", "highspy")


@dataclass(frozen=True, eq=False)
class _Case:
    """One task, ready to be solved."""

    searches: Searches
    qualities: Qualities
    previous: Plan | None
    started_s: float

    @property
    def task(self) -> Task:
        return self.searches.task

    def solver(self) -> Solver:
        deadline_s = self.started_s + self.task.goal.time_limit_s
        return Solver(self.searches, self.searches.subsets, self.qualities.floors, self.previous, deadline_s)


class Planner:
    """Plans cascades on one fleet; keeps what depends on models and hardware, and nothing of any workload.

    Parameters
    ----------
    problem
        The problem whose models, GPUs and goal are planned for.
    threads
        Threads for native searches, look-up tables and simulations; None: all cores. Results are the same for any
        number.
    fleet
        Per model the engines that may be used, those of a hosted judge last; None: all that hold it.
    cascades
        Returns the cascades, with the routings of each, that a task may be planned with.

    Raises
    ------
    ModelDoesNotFitError
        One of the models fits no number of these GPUs.
    """

    def __init__(
        self,
        problem: Problem,
        threads: int | None = None,
        *,
        fleet: tuple[StageFleet, ...] | None = None,
        cascades: Callable[[Task, Sequence[LengthCells]], tuple[Subset, ...]] = subsets_of,
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; give at least 1")
        self.problem = problem
        self.threads = threads or os.cpu_count() or 1
        self.fleet = all_engines(problem) if fleet is None else fleet
        self._cascades = cascades

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
        levels: Levels = None,
        **goal: Any,
    ) -> Plan:
        """Return the best plan; what is not given is the problem's.

        Parameters
        ----------
        gpus
            Number of GPUs, for a cluster of one pool.
        q_min
            Floor of the mean quality, 0 to 100.
        rate_per_s
            Mean rate of the arrivals; `rate_from` and `headroom` make the planned rate of it.
        method
            ``exact``: optimal over the grid of thresholds. ``alternating``: the paper's loop.
        workload
            Traffic to plan for.
        previous
            A plan in force: among equally good plans on one pool the one nearest to it is chosen.
        alternating
            What method ``alternating`` starts with, how patient it is, and what missing quality weighs.
        latency
            Where p95s come from: ``formula``, or ``simulated``, the paper's way, which sees the trace itself and takes
            a hundred times longer. For method ``exact``, objective max_stage_p95 and one pool.
        levels
            Threshold levels; see `routing.routing_grid`.
        goal
            Other fields of the problem's goal: objective, slo_s, budget_usd_per_hour and so on.

        Raises
        ------
        InputError
            An argument is out of range.
        NoPlanError
            No plan exists: the subclass and the message name the constraints that bind.
        """
        overrides = {"q_min": q_min, "method": method, "latency": latency, **goal}
        case = self._case(workload, gpus, rate_per_s, levels, alternating, overrides, previous)
        goal_of = case.task.goal
        if goal_of.latency == "simulated":
            draft = self._simulate(case)
        elif goal_of.method == "alternating":
            draft = self._alternate(case)
        else:
            draft = self._exact(case)
        return draft_plan(draft, lambda: time.perf_counter() - case.started_s)

    def replan(self, workload: Workload, previous: Plan) -> Plan:
        """Return the best plan for new traffic on the previous plan's GPUs and floor; ties are kept close to it."""
        gpus = previous.pool_gpus if len(self.problem.pools) == 1 else None
        return self.plan(gpus=gpus, q_min=previous.q_min, workload=workload, previous=previous)

    def front(
        self,
        axes: tuple[str, ...] = ("latency", "quality"),
        *,
        workload: Workload | None = None,
        levels: Levels = None,
    ) -> Front:
        """Return every plan that no other beats on all axes: latency with quality, with cost, or all three.

        The latency is the goal's objective, or what its deadline counts by. Deadline, budget and limits hold on all of
        the front; the floor is the lowest quality on it.

        Raises
        ------
        InputError
            An axis is unknown, or they do not go together.
        NoPlanError
            Not even one plan exists.
        """
        case = self._case(workload, None, None, levels, None, {}, None, whole_front="quality" in axes)
        return front_of(case.searches, case.qualities, axes, case.started_s)

    def alternatives(self, plan: Plan) -> list[Alternative]:
        """Return what was not chosen: the best plans of other cascades, and with other shapes at the binding stage."""
        case = self._case(None, None, None, None, None, {}, None)
        found = list(other_cascades(case.searches, case.qualities, plan, self._solved))
        binding = plan.binding_stage
        shapes = list(dict.fromkeys((r.shape.tp, r.shape.pp) for r in self.fleet[binding.index].replicas))
        running = tuple(stage.index for stage in plan.stages)
        for label, variant in other_shapes(self.problem, plan, shapes):
            found.append(shape_alternative(plan, label, lambda v=variant: Planner(v, self.threads)._cascade(running)))  # type: ignore[misc]
        return found

    def _solved(self, searches: Searches, qualities: Qualities) -> Plan:
        case = _Case(searches, qualities, None, time.perf_counter())
        return draft_plan(self._exact(case), lambda: time.perf_counter() - case.started_s)

    def _cascade(self, indexes: tuple[int, ...]) -> Plan:
        """The best plan of one cascade."""
        case = self._case(None, None, None, None, None, {}, None)
        subset = next(subset for subset in case.searches.subsets if subset.indexes == indexes)
        place = case.searches.subsets.index(subset)
        bounds = None if case.qualities.bounds is None else [case.qualities.bounds[place]]
        alone = dataclasses.replace(case.searches, subsets=(subset,))
        case = _Case(alone, Qualities((subset,), bounds), None, case.started_s)
        return draft_plan(self._exact(case), lambda: time.perf_counter() - case.started_s)

    def _case(
        self,
        workload: Workload | None,
        gpus: int | None,
        rate_per_s: float | None,
        levels: Levels,
        alternating: Options | None,
        goal: dict[str, Any],
        previous: Plan | None,
        whole_front: bool = False,
    ) -> _Case:
        task = task_of(
            self.problem,
            workload=workload,
            gpus=gpus,
            rate_per_s=rate_per_s,
            levels=levels,
            alternating=alternating,
            goal=goal,
        )
        sure = () if task.goal.q_confidence is None else ("cascadia_fast.planning.confidence_kernels",)
        for library in (*LIBRARIES, *sure):  # loading them once is no part of solving
            import_module(library)
        started_s = time.perf_counter()
        cells = all_cells(task.workload.requests)
        subsets = allowed_subsets(self.problem, self._cascades(task, cells))
        searches = Searches(self.problem, task, self.fleet, subsets, cells, self.threads)
        qualities = qualities_of(searches.subsets, task.goal, self.threads, whole_front)
        check_floor(searches.subsets, qualities, task.goal)
        return _Case(searches, qualities, previous, started_s)

    def _exact(self, case: _Case) -> Draft:
        if case.task.goal.survive == "node":
            return self._surviving_nodes(case)
        solver = case.solver()
        found = solver.solve()
        if found is None:
            raise why_no_plan(case.searches, case.qualities, solver.effort)
        proof = prove(case.searches, found)
        losses = checked_losses(case.searches, found) if case.task.goal.survive == "replica" else ()
        return self._draft(case, found, certify(case.searches, solver.effort, proof, losses), proof=proof)

    def _surviving_nodes(self, case: _Case) -> Draft:
        made = solve_surviving(case.searches, lambda searches: dataclasses.replace(case, searches=searches).solver())
        if made.found is None:
            raise why_no_plan(case.searches, case.qualities, made.effort)
        found, case = made.found, dataclasses.replace(case, searches=made.searches)
        certificate = certify(case.searches, made.effort, None, checked_losses(case.searches, found))
        return self._draft(case, found, certificate.against(found.value))

    def _simulate(self, case: _Case) -> Draft:
        searches, task = case.searches, case.task
        subset = searches.subsets[0]
        candidates = subset.candidates(task.goal.q_min)
        solver = case.solver()
        start = solver.best_of(subset, candidates, "latency")
        if start is None or start.choices is None:
            raise why_no_plan(searches, case.qualities, solver.effort)
        made = plan_by_simulation(
            start.search,
            subset.grid,
            task.workload,
            [stage.replicas for stage in self.fleet],
            start.choices,
            start.routing,
            gpus=task.gpus,
            quality_floor=task.goal.q_min,
            max_utilization=task.goal.max_utilization,
            previous_gpus=solver.previous_gpus(subset),
            judge_latency_s=self.problem.judge.latency_s,
            threads=self.threads,
        )
        best = made.found
        effort = Effort(
            candidates=best.meet_floor,
            distinct=subset.grid.distinct,
            evaluated=best.evaluated,
            pruned=best.meet_floor - best.evaluated,
            subsets=1,
        )
        text = (
            f"best by simulation, each stage alone, of {best.evaluated:,} of the {best.meet_floor:,} distinct "
            f"routings that meet the floor; the formula puts the others beyond {best.screen:.3g} times its p95"
        )
        found = found_of(searches, subset, best.routing, best.deployment)
        proof = prove(searches, found, best.columns)
        return self._draft(case, found, heuristic(text, effort), proof=proof, simulated=made)

    def _alternate(self, case: _Case) -> Draft:
        searches, task = case.searches, case.task
        subset = searches.subsets[0]
        settings = task.alternating.on(subset.grid, task.workload.requests)
        run = alternate(searches.of(subset), subset.grid, task.gpus, task.goal.q_min, settings)
        if run.best is None:
            candidates = subset.candidates(task.goal.q_min)
            if searches.of(subset).least_gpus(candidates=candidates) > task.gpus:
                raise why_no_plan(searches, case.qualities, Effort())
            raise NoPlanError(
                f"the alternating method met no deployable routing with quality {task.goal.q_min:g} in "
                f"{len(run.rounds)} rounds; use method exact, a lower q_min, or more GPUs"
            )
        found = found_of(searches, subset, run.best.routing, run.best.deployment)
        effort = Effort(distinct=subset.grid.distinct, evaluated=len(run.rounds), subsets=1)
        proof = prove(searches, found)
        return self._draft(case, found, heuristic(_rounds_text(run), effort), proof=proof, rounds=run.rounds)

    def _draft(self, case: _Case, found: Found, certificate: Certificate, **made: Any) -> Draft:
        simulated: SimulatedPlan | None = made.get("simulated")
        return Draft(
            searches=case.searches,
            found=found,
            certificate=certificate,
            singles=singles_of(case.searches, found.rate_per_s, simulated),
            quality_lower=case.qualities.lower(found),
            warnings=case.qualities.warnings(found),
            **made,
        )


def all_engines(problem: Problem) -> tuple[StageFleet, ...]:
    """Return the candidate engines of every model, those of a hosted judge last; raises as `build_fleet`."""
    judge = build_judge_fleet(problem)
    return build_fleet(problem) + (() if judge is None else (judge,))


def plan(problem: Problem, *, threads: int | None = None) -> Plan:
    """Plan a problem once; a `Planner` is cheaper where more plans for the same models and cluster follow.

    Raises
    ------
    NoPlanError
        No plan exists: the subclass and the message name the constraints that bind.
    """
    return Planner(problem, threads).plan()


def _rounds_text(run: Run) -> str:
    restart = "" if run.restarted_after is None else f", begun again at the floor after {run.restarted_after}"
    return f"a heuristic whose distance from the optimum is unknown; {len(run.rounds)} rounds{restart}"
