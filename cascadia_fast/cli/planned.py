"""The problem of a plan as it was planned: what options of ``cascadia-fast plan`` may have changed is put back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.problem import Problem

# Two rates this near, relatively, are one.
_ROUNDING = 1e-9


def read_problem(plan: Plan, path: Path, given: str | None) -> Problem:
    """Read the problem of a plan as it was planned: the file `given`, or the one that its provenance names.

    A file that is given and is another than the plan was made from is taken as it stands.

    Raises
    ------
    InputError
        There is no such file, or it is no problem.
    """
    from cascadia_fast.problem import Problem

    if given is None:
        from cascadia_fast.provenance import find_problem

        return as_planned(Problem.read(find_problem(plan, path)), plan)
    problem = Problem.read(given)
    name = Path(given).name
    same_file = plan.provenance.inputs.get(name) == problem.input_hashes()[name]
    return as_planned(problem, plan) if same_file else problem


def as_planned(problem: Problem, plan: Plan) -> Problem:
    """The plan's own problem with the goal, the GPUs and the rate that it was planned for."""
    goal = {
        "q_min": plan.q_min,
        "q_confidence": plan.q_confidence,
        "objective": plan.objective,
        "slo_s": plan.slo_s,
        "slo_metric": plan.slo_metric,
        "budget_usd_per_hour": plan.budget_usd_per_hour,
        "survive": plan.survive,
        "max_utilization": plan.max_utilization,
        "paper_strict": plan.paper_strict,
        "latency": "formula" if plan.solver.simulated is None else "simulated",
    }
    if plan.solver.method != "baseline":  # no way of planning that a problem could ask for
        goal["method"] = plan.solver.method
    changes: dict[str, Any] = {name: value for name, value in goal.items() if getattr(problem.goal, name) != value}
    changes |= _searched(problem, plan)
    if len(plan.pools) == 1 and problem.gpus != plan.pool_gpus:
        changes["gpus"] = plan.pool_gpus
    # Percentiles of a stretched trace follow no simple rule, so such rates stay the file's.
    mean_per_s = plan.workload.rate_per_s / plan.workload.headroom
    file_per_s = problem.workload.arrivals.rate_per_s
    if plan.workload.rate_from == "mean" and abs(file_per_s / mean_per_s - 1) > _ROUNDING:
        changes["rate_per_s"] = mean_per_s
    return problem.replace(**changes) if changes else problem


def _searched(problem: Problem, plan: Plan) -> dict[str, Any]:
    """What the plan was looked for among, where that differs from the problem."""
    solver, goal = plan.solver, problem.goal
    changes: dict[str, Any] = {}
    if solver.method == "exact" and len(problem.stages) > 1 and goal.skip_models != (solver.subsets > 1):
        changes["skip_models"] = solver.subsets > 1
    if solver.family != "pooled" and goal.mixed_shapes != (solver.family == "mixed"):
        changes["mixed_shapes"] = solver.family == "mixed"
    if solver.time_limit_s is not None and goal.time_limit_s != solver.time_limit_s:
        changes["time_limit_s"] = solver.time_limit_s
    return changes
