"""Which constraints contradict one another: the smallest set of them that no plan satisfies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import combinations


def smallest_conflict(constraints: Collection[str], feasible: Callable[[frozenset[str]], bool]) -> tuple[str, ...]:
    """Return the fewest constraints that together leave no plan, in the order given.

    Dropping one constraint after the other, and taking back those without which there is a plan, leaves a set of which
    every part matters (a deletion filter: one question per constraint). A smaller one elsewhere is then looked for
    among the sets of fewer constraints, except those within a set already found to have a plan.

    Parameters
    ----------
    constraints
        Names of the constraints that together leave no plan; which of equally small sets is named depends on their
        order: the first are dropped first.
    feasible
        Whether there is a plan under these constraints alone. More constraints never make a plan.

    Returns
    -------
    Empty when there is no plan even without any of the constraints: then something else binds.
    """
    known: list[frozenset[str]] = []  # with a plan

    def has_plan(names: frozenset[str]) -> bool:
        if any(names <= larger for larger in known):
            return True
        found = feasible(names)
        if found:
            known.append(names)
        return found

    conflict = frozenset(constraints)
    for name in constraints:
        if not has_plan(conflict - {name}):
            conflict -= {name}
    for size in range(1, len(conflict)):
        for names in combinations(constraints, size):
            if not has_plan(frozenset(names)):
                return names
    return tuple(name for name in constraints if name in conflict)


def conflict_text(conflict: Collection[str], constraints: Mapping[str, str]) -> str:
    """Return the clause that names a conflict, such as ``q_min 80 and slo_s 2 contradict each other``.

    Parameters
    ----------
    conflict
        Names of the constraints, as `smallest_conflict` returns them.
    constraints
        For each name the constraint with its value.
    """
    said = [constraints[name] for name in conflict]
    if len(said) == 1:
        return f"{said[0]} cannot be met"
    each = "each other" if len(said) == 2 else "one another"
    return f"{', '.join(said[:-1])} and {said[-1]} contradict {each}"
