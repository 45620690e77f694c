"""How wrong the judge may be: plans for judges of one accuracy after the other.

Scores are simulated from the quality that was measured, so that they order two answers rightly with a given probability
(AUC, see `judge.simulated_scores`). A worse judge keeps bad answers and escalates good ones, so that either the floor
breaks, or the cascade gives as little as its best model alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import InputError, NoPlanError, UnsupportedError
from cascadia_fast.problem import Problem
from cascadia_fast.routing import routing_grid
from cascadia_fast.samples import with_simulated_scores
from cascadia_fast.summary_blocks import Block, plain
from cascadia_fast.summary_layout import Table
from cascadia_fast.summary_units import OBJECTIVES, dollars, objective_text, percent

MOST_STEPS = 200
SAME = 1e-9  # relative: objectives closer than this are equal
_WIDTH = 120
_RANGE = re.compile(r"([^:]+?)\.\.([^:]+)(?::(.+))?")

Span = tuple[float, float | None]
"""The AUC at which something no longer holds, and the one above at which it does; None: at none that was tried."""


@dataclass(frozen=True, slots=True)
class JudgeRow:
    """What one judge allows.

    `best_quality` is the highest mean quality that any thresholds reach, `reach` the share of requests that gets to
    each model of the cascade. Without a plan, `reason` says why there is none, and the other fields are None. `pays`
    says that the plan beats the best single model on the objective.
    """

    auc: float
    best_quality: float
    objective_value: float | None
    quality: float | None
    reach: tuple[float, ...] | None
    usd_per_hour: float | None
    pays: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class JudgeSweep:
    """Plans for judges of ascending AUC.

    `single_model` is the best model alone that meets the floor, with `single_value` its objective; None where no model
    alone does. `floor_breaks` and `stops_paying` say between which AUCs a plan ceases to exist, and to beat that model;
    None where that never happens.
    """

    objective: str
    q_min: float
    models: tuple[str, ...]
    seed: int
    single_model: str | None
    single_value: float | None
    rows: tuple[JudgeRow, ...]

    @property
    def floor_breaks(self) -> Span | None:
        """Between which AUCs no plan meets the floor, on these GPUs and under the other constraints, any longer."""
        return _falls(self.rows, [row.reason is None for row in self.rows])

    @property
    def stops_paying(self) -> Span | None:
        """Between which AUCs the best single model becomes as good."""
        return _falls(self.rows, [row.pays for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON has it."""
        verdicts = {"floor_breaks": self.floor_breaks, "stops_paying": self.stops_paying}
        return dataclasses.asdict(self) | verdicts

    def blocks(self) -> list[Block]:
        """Return a table of the plans and the verdicts, to be shown."""
        header = ("AUC", OBJECTIVES[self.objective], "quality", "best quality", "reach", "USD/h", "beats one model")
        rows = tuple(self._cells(row) for row in self.rows)
        return [
            f"Judges simulated from the measured quality (seed {self.seed}), floor {self.q_min:g}. {self._single()}.",
            Table(header, rows, frozenset({"reach", "beats one model"})),
            f"{self._floor()}\n{self._paying()}",
        ]

    def text(self) -> str:
        """Return the same as plain text."""
        return plain(self.blocks(), _WIDTH)

    def _cells(self, row: JudgeRow) -> tuple[str, ...]:
        best = f"{row.best_quality:.2f}"
        if row.quality is None or row.reach is None:
            return (f"{row.auc:g}", "no plan", "–", best, "–", "–", "no")
        return (
            f"{row.auc:g}",
            objective_text(self.objective, row.objective_value),
            f"{row.quality:.2f}",
            best,
            " / ".join(percent(reach) for reach in row.reach),
            dollars(row.usd_per_hour),
            "yes" if row.pays else "no",
        )

    def _single(self) -> str:
        if self.single_model is None:
            return "No model alone meets the floor and the other constraints"
        return f"The best model alone is {self.single_model}: {objective_text(self.objective, self.single_value)}"

    def _floor(self) -> str:
        found = self.floor_breaks
        if found is None:
            return f"A plan meets the floor down to an AUC of {self.rows[0].auc:g}, the lowest tried."
        below, above = found
        reason = next(row.reason for row in self.rows if row.auc == below)
        if above is None:
            return f"No plan meets the floor at any AUC up to {below:g}: {reason}."
        return f"A plan meets the floor down to an AUC of {above:g}; at {below:g}, {reason}."

    def _paying(self) -> str:
        found = self.stops_paying
        if found is None:
            return f"The cascade beats the best single model down to an AUC of {self.rows[0].auc:g}, the lowest tried."
        below, above = found
        if above is None:
            return f"The cascade beats the best single model at no AUC up to {below:g}."
        return f"The cascade beats the best single model down to an AUC of {above:g}, and not at {below:g}."


def parse_range(text: str) -> tuple[float, float, float]:
    """Read ``LO..HI`` or ``LO..HI:STEP`` (0.05 without).

    Raises
    ------
    InputError
        The text is something else, or the AUCs are out of range.
    """
    found = _RANGE.fullmatch(text.strip())
    try:
        low, high, step = (float(number) for number in found.groups("0.05")) if found else (math.nan,) * 3
    except ValueError:
        low = high = step = math.nan
    if math.isnan(low + high + step):
        raise InputError(f"judge-auc is {text!r}; give LO..HI or LO..HI:STEP, such as 0.6..0.95:0.05")
    aucs(low, high, step)
    return low, high, step


def aucs(low: float, high: float, step: float) -> list[float]:
    """Return the AUCs from `low` in steps up to `high`, which is always the last.

    Raises
    ------
    InputError
        They lie outside 0.5 (guessing) to 1 (always right), in the wrong order, or are too many.
    """
    if not 0.5 < low <= high <= 1:
        raise InputError(
            f"the judge's AUC goes from {low:g} to {high:g}; give a range that rises, above 0.5 (guessing) and up to 1 "
            "(always right)"
        )
    if not step > 0:
        raise InputError(f"the step of the judge's AUC is {step:g}; it must be positive")
    count = math.ceil((high - low) / step - 1e-9)
    if count >= MOST_STEPS:
        raise InputError(f"the judge's AUC takes {count + 1:,} values; give a step that makes at most {MOST_STEPS}")
    return [*(round(low + k * step, 10) for k in range(count)), high]


def sweep_judge(
    problem: Problem, low: float, high: float, step: float = 0.05, *, plan: Callable[[Problem], Plan]
) -> JudgeSweep:
    """Plan the problem for simulated judges from one AUC to another.

    Parameters
    ----------
    problem
        The problem; its scores are replaced by simulated ones, with the seed of its judge.
    low, high, step
        The AUCs, above 0.5 and up to 1.
    plan
        What plans a problem, such as `cascadia_fast.plan`.

    Raises
    ------
    InputError
        The AUCs are out of range, or there is nothing to judge: one model only, or equal qualities.
    UnsupportedError
        The problem cannot be planned, whatever the judge.
    """
    values = aucs(low, high, step)
    if len(problem.stages) < 2:
        raise InputError("judge-auc sweeps the judge between models and the cascade has one model; add another")
    single = _attempt(_single_model_problem(problem), plan)
    alone = single if isinstance(single, Plan) else None
    return JudgeSweep(
        objective=problem.goal.objective,
        q_min=problem.goal.q_min,
        models=tuple(stage.name for stage in problem.stages),
        seed=problem.judge.seed,
        single_model=alone.stages[-1].model if alone else None,
        single_value=alone.objective_value if alone else None,
        rows=tuple(_row(problem, auc, alone, plan) for auc in values),
    )


def _row(problem: Problem, auc: float, alone: Plan | None, plan: Callable[[Problem], Plan]) -> JudgeRow:
    workload = problem.workload
    requests = with_simulated_scores(workload.requests, auc, problem.judge.seed)
    best_quality = float(routing_grid(requests).quality.max())
    found = _attempt(problem.replace(workload=workload.replace(requests=requests)), plan)
    if not isinstance(found, Plan):
        return JudgeRow(auc, best_quality, None, None, None, None, False, found)
    reach = {stage.index: stage.reach for stage in found.stages}
    return JudgeRow(
        auc=auc,
        best_quality=best_quality,
        objective_value=found.objective_value,
        quality=found.predicted.quality,
        reach=tuple(reach.get(index, 0.0) for index in range(len(problem.stages))),
        usd_per_hour=found.predicted.cost_usd_per_hour,
        pays=alone is None or _beats(found, alone),
        reason=None,
    )


def _attempt(problem: Problem, plan: Callable[[Problem], Plan]) -> Plan | str:
    """Return the plan, or why there is none."""
    try:
        return plan(problem)
    except UnsupportedError:  # no judge would change that
        raise
    except NoPlanError as error:
        return str(error).rstrip(".")


def _single_model_problem(problem: Problem) -> Problem:
    """Return the problem with a judge that says the same of every answer.

    Every routing then sends all requests to one model, and with models that may be skipped, only that one is run: the
    best plan is the best single model's, on any objective and under any constraint.
    """
    workload = problem.workload
    requests = dataclasses.replace(workload.requests, score=np.full(workload.requests.score.shape, 50.0))
    return problem.replace(
        workload=workload.replace(requests=requests), method="exact", skip_models=True, paper_strict=False
    )


def _beats(cascade: Plan, alone: Plan) -> bool:
    if cascade.objective_value is None or alone.objective_value is None:
        return alone.objective_value is None and cascade.objective_value is not None
    gain = alone.objective_value - cascade.objective_value
    if cascade.objective == "max_rate":
        gain = -gain
    return gain > SAME * abs(alone.objective_value)


def _falls(rows: Sequence[JudgeRow], holds: Sequence[bool]) -> Span | None:
    """Return where, going down from the best judge, something first fails to hold, and where it last held before."""
    above: float | None = None
    for row, held in zip(reversed(rows), reversed(holds), strict=True):
        if not held:
            return row.auc, above
        above = row.auc
    return None
