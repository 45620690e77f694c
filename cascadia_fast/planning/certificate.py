"""What is proved of a plan: of which deployments, against what bound, and how much work that was."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cascadia_fast.planning.allocation import Allocation
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.solving import RATE_GAP, Effort
from cascadia_fast.planning.survival import Loss
from cascadia_fast.planning.surviving import deadline_metric, losses_text

Family = Literal["homogeneous", "mixed", "pooled"]

# Below this, relatively, a bound is the plan's own value: sums round.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Certificate:
    """The proof of one plan.

    Parameters
    ----------
    text
        One clause for people.
    family
        The deployments that were searched.
    effort
        What the search did; its bound is in units of the objective.
    proved
        Whether no better plan of the family exists, within the tolerance that the text names.
    heuristic
        Whether nothing is known of better plans.
    """

    text: str
    family: Family
    effort: Effort
    proved: bool
    heuristic: bool = False

    def against(self, value: float) -> Certificate:
        """Return the certificate of a plan that may be worse than the bound: it is optimal only where it is not."""
        if abs(value - self.effort.bound) <= ROUNDING * abs(value) or not self.proved:
            return self
        text = re.sub(r"^optimal( within \S+ %)?", "the best found", self.text)
        return replace(self, text=text, proved=False)

    def bound(self, value: float | None) -> float | None:
        """Return what no plan of the family is better than; None where nothing is known."""
        bound = self.effort.bound
        if self.heuristic or value is None or not math.isfinite(bound) or (bound <= 0 and bound < value):
            return None
        # Free GPUs count a little in the search, so that fewer are better: zero is then not quite.
        return value if value == 0 or abs(bound - value) <= ROUNDING * abs(value) else bound

    def gap(self, value: float | None) -> float | None:
        """Return how far the plan may be from the best, relative to the plan."""
        bound = self.bound(value)
        if bound is None or not value:
            return None if bound is None else 0.0
        return abs(value - bound) / abs(value)


def heuristic(text: str, effort: Effort) -> Certificate:
    """Return the certificate of a method that proves nothing."""
    return Certificate(text, "homogeneous", effort, proved=False, heuristic=True)


def certify(searches: Searches, effort: Effort, proof: Allocation | None, losses: Sequence[Loss] = ()) -> Certificate:
    """Return the certificate of an exact search.

    Parameters
    ----------
    searches, effort
        What was searched, and what that took.
    proof
        What HiGHS says of the allocation, where it was asked.
    losses
        The losses that the plan was checked to survive.
    """
    family = family_of(searches)
    largest = max(replica.shape.gpus for stage in searches.fleet for replica in stage.replicas)
    cascades = "" if effort.subsets == 1 else f" of all {effort.subsets} cascades"
    scope = (
        f"for this latency model, this grid of thresholds and this sample, with {FAMILY_WORDS[family]} and engines of "
        f"at most {largest} GPUs: {effort.candidates:,} of {effort.distinct:,} distinct routings{cascades} meet the "
        "floor"
    )
    if searches.task.by_path:
        scope += "; more replicas of a shape are taken never to slow a request down"
    if losses:
        scope += f"; {losses_text(losses, deadline_metric(searches))}"
    if not effort.complete:
        text = f"the best found in {searches.task.goal.time_limit_s:g} s, {scope}"
        return Certificate(text, family, effort, proved=False)
    if proof is not None and proof.status != "optimal":
        return Certificate("not proved: HiGHS stopped at its time limit", family, effort, proved=False, heuristic=True)
    within = f" within {RATE_GAP:.2%}".replace("%", " %") if searches.task.goal.objective == "max_rate" else ""
    within = f" within {effort.tolerance:.2%}".replace("%", " %") if effort.tolerance else within
    return Certificate(f"optimal{within} {scope}", family, effort, proved=True)


def family_of(searches: Searches) -> Family:
    """Return the deployments that an exact search of the task goes through."""
    task = searches.task
    if len(task.pools) > 1 and not task.by_path:
        return "pooled"
    return "mixed" if task.mixed and not task.by_path else "homogeneous"


FAMILY_WORDS: dict[Family, str] = {
    "homogeneous": "one shape per stage",
    "mixed": "up to two shapes per stage",
    "pooled": "replicas of any shape on any pool",
}
