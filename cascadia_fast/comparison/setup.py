"""What is compared: cases with their quality floors and rates, systems, seeds, and requests per trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cascadia_fast.errors import InputError
from cascadia_fast.simulation.settings import require_number, require_whole
from cascadia_fast.simulation.traffic import MAX_REQUESTS
from cascadia_fast.workload import MAX_RATE_PER_S, MIN_RATE_PER_S

if TYPE_CHECKING:
    from cascadia_fast.baselines.systems import System
    from cascadia_fast.problem import Problem
    from cascadia_fast.schema import Goal

DEFAULT_SEEDS = 5
DEFAULT_REQUESTS = 20_000
DEFAULT_RATE_FACTORS = (0.5, 1.0, 1.5)
MAX_SEEDS = 1000
# A 95th percentile needs requests beyond it.
LEAST_REQUESTS = 200


# What is measured, so that it is what ours and what is planned like it make least.
OBJECTIVE = "end_to_end_p95"
# How a goal looks that asks for least latency on all GPUs and nothing else; other systems could not keep to more.
_PLAIN: dict[str, Any] = {
    "objective": OBJECTIVE,
    "slo_s": None,
    "budget_usd_per_hour": None,
    "survive": "none",
    "mixed_shapes": False,
    "paper_strict": False,
    "method": "exact",
    "latency": "formula",
}


def planned_for(goal: Goal) -> dict[str, Any]:
    """Return what of a goal is changed in a comparison, which is of latency on equal GPUs."""
    return {field: value for field, value in _PLAIN.items() if getattr(goal, field) != value}


def left_out(goal: Goal) -> list[str]:
    """Return the fields of a goal that a comparison leaves out, as they stand in a file.

    The slowest stage's p95 is not told: it is the objective of files that name none.
    """
    return [
        f"{field}: {str(value).lower() if isinstance(value, bool) else value}"
        for field in planned_for(goal)
        if (value := getattr(goal, field)) != "max_stage_p95"
    ]


def ours_alone(problem: Problem) -> list[str]:
    """Return what a problem asks for that only ours, and what is planned like it, keeps to."""
    goal = problem.goal
    found = [] if goal.q_confidence is None else [f"q_confidence: {goal.q_confidence:g}"]
    found += [] if goal.skip_models else ["skip_models: false"]
    limits = ("min_replicas", "max_replicas", "tp", "pp", "pools")
    for entry in problem.fields.cascade:
        found += [f"{field} of {entry.model}" for field in limits if field in entry.model_fields_set]
    return found


@dataclass(frozen=True, eq=False)
class CaseSetup:
    """One case: a problem, and the quality floors and mean rates at which it is tried.

    `name` is what tables call it; `file` what it was read from.
    """

    name: str
    problem: Problem
    floors: tuple[float, ...]
    rates_per_s: tuple[float, ...]
    file: str = "a problem in memory"

    def __post_init__(self) -> None:
        for what, values, least, most in (
            ("q", self.floors, 0, 100),
            ("rate", self.rates_per_s, MIN_RATE_PER_S, MAX_RATE_PER_S),
        ):
            if not values:
                raise InputError(f"case {self.name!r} has no {what}; give at least one")
            for value in values:
                require_number(f"{what} of case {self.name!r}", value, least, most)
            if len(set(values)) < len(values):
                raise InputError(f"a {what} of case {self.name!r} is given twice; keep one")

    @classmethod
    def of(
        cls,
        name: str,
        problem: Problem,
        floors: Sequence[float] | None = None,
        rates_per_s: Sequence[float] | None = None,
        file: str = "a problem in memory",
    ) -> CaseSetup:
        """Return a case; without floors or rates it has the problem's own, and half and one and a half of its rate."""
        own_per_s = problem.workload.arrivals.rate_per_s
        return cls(
            name,
            problem,
            (problem.goal.q_min,) if floors is None else tuple(floors),
            tuple(own_per_s * factor for factor in DEFAULT_RATE_FACTORS) if rates_per_s is None else tuple(rates_per_s),
            file,
        )

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return self.problem.gpus

    @property
    def middle_rate_per_s(self) -> float:
        """The median of the rates; of an even number the lower of the two in the middle."""
        return sorted(self.rates_per_s)[(len(self.rates_per_s) - 1) // 2]


@dataclass(frozen=True, eq=False)
class Setup:
    """A whole comparison; systems are tried on every case, floor, rate and seed."""

    cases: tuple[CaseSetup, ...]
    systems: tuple[System, ...]
    seeds: tuple[int, ...] = tuple(range(DEFAULT_SEEDS))
    requests: int = DEFAULT_REQUESTS

    def __post_init__(self) -> None:
        require_whole("seeds", len(self.seeds), 1, MAX_SEEDS)
        require_whole("requests", self.requests, LEAST_REQUESTS, MAX_REQUESTS)
        for what, names in (
            ("case", [case.name for case in self.cases]),
            ("system", [system.name for system in self.systems]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None or not names:
                problem = f"{what} {twice!r} is there twice; keep one" if names else f"there is no {what}; give one"
                raise InputError(problem)
