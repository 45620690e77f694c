"""What the seeds of one system on one case, at one floor and rate, say together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from cascadia_fast.comparison.cells import Cell
from cascadia_fast.comparison.estimates import Mean, as_dict, log_mean_of, mean_of
from cascadia_fast.comparison.trial import Row

Trial = tuple[Cell, Row]


# Mean qualities this near, in points, are one: the same plan on fewer GPUs serves other requests of the same halves.
EQUAL_QUALITY = 0.5


@dataclass(frozen=True, eq=False)
class Group:
    """The trials of a system that differ in their seed only, by seed.

    `status` is the worst of the seeds: one seed without a plan, or in overload, is not averaged away.
    """

    case: str
    system: str
    q_min: float
    rate_per_s: float
    gpus: int
    rows: dict[int, Row]

    @property
    def statuses(self) -> dict[str, int]:
        """How many seeds came to each status."""
        return dict(Counter(row["status"] for row in self.rows.values()))

    @property
    def status(self) -> str:
        """``no_plan``, ``unstable`` or ``served``, the first that any seed came to."""
        return next(status for status in ("no_plan", "unstable", "served") if status in self.statuses)

    @property
    def meets(self) -> str | None:
        """Whether the mean quality reaches the floor: yes, no, or unsure: below it, but the interval holds it."""
        quality = self.quality
        if quality is None:
            return None
        if quality.mean >= self.q_min:
            return "yes"
        return "unsure" if quality.high is not None and quality.high >= self.q_min else "no"

    @property
    def quality(self) -> Mean | None:
        """Mean quality; its interval is no narrower than what the requests behind all test halves can tell.

        S halves hold a share 1 - 2^-S of the requests between them and one holds 1/2, so that the interval of one is
        sqrt(2 (1 - 2^-S)) times that of all.
        """
        known = [row for row in self.measured if row["quality"] is not None]
        found = mean_of([row["quality"] for row in known])
        if found is None:
            return None
        of_one = fmean(max(row["quality_high"] - row["quality"], row["quality"] - row["quality_low"]) for row in known)
        half_width = of_one / math.sqrt(2 * (1 - 0.5 ** len(known)))
        if found.high is not None:
            half_width = max(half_width, found.high - found.mean)
        return Mean(found.mean, max(found.mean - half_width, 0.0), min(found.mean + half_width, 100.0))

    @property
    def shortfall(self) -> float | None:
        """Points by which the mean quality falls short of the floor; 0 where it does not."""
        return None if self.quality is None else max(self.q_min - self.quality.mean, 0.0)

    @property
    def plans(self) -> list[dict[str, Any]]:
        """The plans of the seeds that have one."""
        return [row["plan"] for _, row in sorted(self.rows.items()) if row["plan"] is not None]

    @property
    def measured(self) -> list[dict[str, Any]]:
        """What the seeds measured that have a plan."""
        return [row["measured"] for _, row in sorted(self.rows.items()) if row["measured"] is not None]

    def figure(self, name: str, mean: Callable[[Sequence[float]], Mean | None] = log_mean_of) -> Mean | None:
        """Return the mean of a figure; None where some seed knows none, such as a p95 that too few were served for."""
        values = [row[name] for row in self.measured]
        return None if any(value is None for value in values) else mean(values)

    def as_dict(self, models: Sequence[str]) -> dict[str, Any]:
        """Return the group as it stands in results.json.

        Parameters
        ----------
        models
            Names of the case's models; reach and GPUs are by model.
        """
        figures = {name: self.figure(name) for name in ("scale95", "p95_s", "ttft_p95_s")}
        figures["usd_per_1000"] = self.figure("usd_per_1000", mean_of)
        figures["quality"] = self.quality
        plans = self.plans
        return {
            "case": self.case,
            "system": self.system,
            "q_min": self.q_min,
            "rate_per_s": self.rate_per_s,
            "gpus": self.gpus,
            "seeds": len(self.rows),
            "status": self.status,
            "statuses": self.statuses,
            **{name: as_dict(found) for name, found in figures.items()},
            "lower_bound": self.status == "unstable",
            "meets": self.meets,
            "reach": _mean_rows([row["reach"] for row in self.measured]),
            "gpus_by_model": _mean_rows([_gpus_by_model(plan, models) for plan in plans]),
            "attainment": _mean_rows([row["attainment"] for row in self.measured]),
            "plan_seconds": float(np.median([plan["seconds"] for plan in plans])) if plans else None,
            "why": next((row["why"] for _, row in sorted(self.rows.items()) if row["status"] == self.status), None),
        }


def groups_of(trials: Iterable[Trial]) -> list[Group]:
    """Return the groups of some trials, in the order of their first ones."""
    found: dict[tuple[Any, ...], Group] = {}
    for cell, row in trials:
        name = (cell.case, cell.system, cell.q_min, cell.rate_per_s, cell.gpus)
        found.setdefault(name, Group(*name, rows={})).rows[cell.seed] = row
    return list(found.values())


def _gpus_by_model(plan: dict[str, Any], models: Sequence[str]) -> list[float]:
    gpus = {stage["model"]: stage["gpus"] for stage in plan["stages"]}
    return [gpus.get(model, 0) for model in models]


def _mean_rows(rows: Sequence[Sequence[float]]) -> list[float] | None:
    return [round(float(value), 6) for value in np.mean(rows, axis=0)] if rows else None
