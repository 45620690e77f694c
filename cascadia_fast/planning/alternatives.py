"""The plans not chosen: the best of every other cascade, and the best with another shape at the binding stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError
from cascadia_fast.explaining.explanation import Alternative, Outcome
from cascadia_fast.planning.qualities import Qualities
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.subsets import Subset
from cascadia_fast.problem import Problem


def other_cascades(
    searches: Searches, qualities: Qualities, plan: Plan, solve: Callable[[Searches, Qualities], Plan]
) -> Iterator[Alternative]:
    """Yield the best plan of every cascade that the plan does not run.

    Parameters
    ----------
    searches, qualities
        The task.
    plan
        The plan chosen.
    solve
        Returns the best plan of the subsets of the searches it is given; raises `NoPlanError` where there is none.
    """
    running = tuple(stage.index for stage in plan.stages)
    for subset, floor in zip(searches.subsets, qualities.floors, strict=True):
        if subset.indexes == running:
            continue
        names = tuple(searches.problem.stages[index].name for index in subset.indexes)
        made: Plan | None = None
        reason: str | None = None
        if not subset.candidates(searches.task.goal.q_min, floor).size:
            reason = f"reaches quality {floor[subset.candidates(-1.0, floor)].max():.2f} at most"
        else:
            alone = dataclasses.replace(searches, subsets=(subset,))
            try:
                made = solve(alone, _of(qualities, subset))
            except NoPlanError as error:
                reason = str(error)
        yield Alternative("models", names, None, None, None if made is None else Outcome.of(made), reason)


def other_shapes(problem: Problem, plan: Plan, shapes: list[tuple[int, int]]) -> Iterator[tuple[str, Problem]]:
    """Yield the plan's cascade with its binding stage in every other shape (tp, pp), as problems."""
    binding = plan.binding_stage
    used = {(group.tp, group.pp) for group in binding.replicas}
    for tp, pp in shapes:
        if (tp, pp) not in used:
            label = f"tp{tp}" + (f" pp{pp}" if pp > 1 else "")
            yield label, problem.replace(models={binding.model: {"tp": tp, "pp": pp}})


def _of(qualities: Qualities, subset: Subset) -> Qualities:
    place = list(qualities.subsets).index(subset)
    bounds = None if qualities.bounds is None else [qualities.bounds[place]]
    return Qualities((subset,), bounds)


def shape_alternative(plan: Plan, label: str, plan_of: Callable[[], Plan]) -> Alternative:
    """Return the best plan with another shape at the binding stage."""
    models = tuple(stage.model for stage in plan.stages)
    try:
        made = plan_of()
    except NoPlanError as error:
        return Alternative("shape", models, plan.binding_stage.model, label, None, str(error))
    return Alternative("shape", models, plan.binding_stage.model, label, Outcome.of(made), None)
