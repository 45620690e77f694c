"""Why a plan is as it is: what binds, what a little more of everything would buy, and what was not chosen.

Nothing here plans: whoever asks hands in what does, so that an explanation can be had of any plan by any planner.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import orjson

from cascadia_fast.blueprint import OURS, Objective, Plan
from cascadia_fast.errors import NoPlanError, UnsupportedError
from cascadia_fast.explaining.bottleneck import Bottleneck, Constraint, bottleneck_of, constraints_of
from cascadia_fast.plan_json import Record
from cascadia_fast.summary_units import number

if TYPE_CHECKING:
    from cascadia_fast.problem import Problem

SCHEMA_VERSION = 1

# Small enough that the same plan stays near, large enough to matter: what people ask about.
LESS_LOAD = 0.9
LOWER_FLOOR_POINTS = 1.0
LATER_DEADLINE = 1.1
LARGER_BUDGET = 1.1
# Two plans of one problem agree up to what different processors round.
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Outcome(Record):
    """What planning came to; `models` are those that run, small to large, and `stage_gpus` the GPUs of each.

    `gpus` are those of all, a hosted judge's included.
    """

    objective_value: float | None
    latency_s: float | None
    quality: float
    usd_per_hour: float | None
    gpus: int
    models: tuple[str, ...]
    stage_gpus: tuple[int, ...]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """What a plan came to."""
        return cls(
            objective_value=plan.objective_value,
            latency_s=plan.latency_s,
            quality=plan.predicted.quality,
            usd_per_hour=plan.predicted.cost_usd_per_hour,
            gpus=plan.gpus,
            models=tuple(stage.model for stage in plan.stages),
            stage_gpus=tuple(stage.gpus for stage in plan.stages),
        )


@dataclass(frozen=True, slots=True)
class WhatIf(Record):
    """The best plan after one change to the problem; without one, `reason` says why."""

    change: str
    best: Outcome | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Alternative(Record):
    """The best plan of another kind; without one, `reason` says why in a clause.

    Kind ``models``: the cascade runs these models and no others. Kind ``shape``: the engines of one `station` of the
    plan's cascade have another `shape`, such as ``tp4 pp5``.
    """

    kind: Literal["models", "shape"]
    models: tuple[str, ...]
    station: str | None
    shape: str | None
    best: Outcome | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation(Record):
    """Why a plan is as it is.

    `planned_again` is None where planning the problem again gives the plan's own objective, as it should; otherwise it
    is what it gives now, and what the changes are to be compared with.
    """

    plan_id: str
    objective: Objective
    chosen: Outcome
    planned_again: Outcome | None
    bottleneck: Bottleneck
    constraints: tuple[Constraint, ...]
    what_ifs: tuple[WhatIf, ...]
    alternatives: tuple[Alternative, ...]
    certificate: tuple[str, ...]

    @property
    def base(self) -> Outcome:
        """What the changes are compared with."""
        return self.planned_again or self.chosen

    def to_json(self) -> bytes:
        """The explanation as JSON: UTF-8, two-space indent, a final newline."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        document = {"schema_version": SCHEMA_VERSION, **fields}
        return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def explain(
    plan: Plan,
    problem: Problem,
    replan: Callable[[Problem], Plan],
    alternatives: Callable[[Plan], Sequence[Alternative]],
) -> Explanation:
    """Explain a plan.

    Parameters
    ----------
    plan, problem
        The plan, and the problem as it was planned.
    replan
        Plans a problem.
    alternatives
        The best plans of other kinds.

    Raises
    ------
    UnsupportedError
        The plan is another system's.
    """
    from cascadia_fast.explaining.certificate_words import certificate_words

    if plan.system != OURS or plan.routing.kind != "cascade" or plan.routing.signal is not None:
        raise UnsupportedError(
            f"plan {plan.plan_id} is one of {plan.system}, with routing of kind {plan.routing.kind!r}; only cascades "
            "that cascadia-fast plan made can be explained, by planning them again, so compare the systems instead"
        )
    chosen, again = Outcome.of(plan), Outcome.of(replan(problem))
    return Explanation(
        plan_id=plan.plan_id,
        objective=plan.objective,
        chosen=chosen,
        planned_again=None if _same(chosen, again) else again,
        bottleneck=bottleneck_of(plan),
        constraints=constraints_of(plan),
        what_ifs=tuple(_what_if(change, changed, replan) for change, changed in _changes(problem)),
        alternatives=tuple(alternatives(plan)),
        certificate=certificate_words(plan),
    )


def _same(first: Outcome, second: Outcome) -> bool:
    """Whether two plans have the same objective, as far as rounding goes."""
    one, other = first.objective_value, second.objective_value
    if one is None or other is None:
        return one is other
    return abs(one - other) <= _SAME * abs(one)


def _changes(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """The changed problems, each with the change in words; what makes no difference to the goal is left out."""
    goal = problem.goal
    for pool in problem.pools:
        of_pool = f" in {pool.name}" if len(problem.pools) > 1 else ""
        more = [(1, f"one more {pool.spec.name}{of_pool}")]
        if pool.gpus_per_node > 1:
            more.append((pool.gpus_per_node, f"one more node of {pool.gpus_per_node} {pool.spec.name}{of_pool}"))
        for gpus, change in more:
            yield change, problem.replace(pools={pool.name: {"gpus": pool.gpus + gpus}})
    if goal.objective != "max_rate":
        yield "10 % less load", problem.replace(rate_per_s=LESS_LOAD * problem.workload.arrivals.rate_per_s)
    if goal.q_min > 0:
        lower = max(0.0, goal.q_min - LOWER_FLOOR_POINTS)
        yield f"quality floor {number(lower)} instead of {number(goal.q_min)}", problem.replace(q_min=lower)
    if goal.slo_s is not None:
        yield "a 10 % later deadline", problem.replace(slo_s=LATER_DEADLINE * goal.slo_s)
    if goal.budget_usd_per_hour is not None:
        larger = LARGER_BUDGET * goal.budget_usd_per_hour
        yield "a 10 % larger budget", problem.replace(budget_usd_per_hour=larger)
    if goal.survive != "none":
        yield f"no spare for the loss of a {goal.survive}", problem.replace(survive="none")


def _what_if(change: str, problem: Problem, replan: Callable[[Problem], Plan]) -> WhatIf:
    try:
        return WhatIf(change, Outcome.of(replan(problem)))
    except NoPlanError as error:
        return WhatIf(change, None, str(error))
