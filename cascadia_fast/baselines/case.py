"""What every system plans: one problem, its engines, and the scored requests that may be looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.errors import UnsupportedError
from cascadia_fast.fleet import StageFleet
from cascadia_fast.length_cells import LengthCells, all_cells
from cascadia_fast.planner import Planner
from cascadia_fast.routing import QUALITY_SLACK

if TYPE_CHECKING:
    from cascadia_fast.changes import Changes
    from cascadia_fast.problem import Problem
    from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Case:
    """One planning case, the same for every system.

    Its workload is the planning half: rate, floor and GPUs are already those of the case. Build one with `Case.of`,
    which shares the engines of a planner that is kept::

        planner = Planner(problem)                      # once per problem file and process
        problem = problem.replace(workload=planning_half, q_min=80, gpus=32)
        case = Case.of(problem, planner, seed=3)
        plan = system_named("single").plan(case)

    Parameters
    ----------
    problem
        What is planned.
    fleet
        Per model its candidate engines; those of a hosted judge last. A `Choice` names an engine by its place here.
    threads
        Threads of native calls.
    seed
        What a system draws from, where it draws.
    """

    problem: Problem
    fleet: tuple[StageFleet, ...]
    threads: int = 1
    seed: int = 0

    @classmethod
    def of(cls, problem: Problem, planner: Planner | None = None, *, threads: int = 1, seed: int = 0) -> Case:
        """Return the case of a problem; `planner` is one of the same models, cluster and engine, to share its fleet.

        Raises
        ------
        ModelDoesNotFitError
            One of the models fits no number of these GPUs.
        """
        planner = Planner(problem, threads) if planner is None else planner
        return cls(problem, planner.fleet, threads, seed)

    @property
    def requests(self) -> ScoredRequests:
        """The scored requests of the planning half."""
        return self.problem.workload.requests

    @property
    def rate_per_s(self) -> float:
        """The planned rate."""
        return self.problem.workload.rate_per_s

    @property
    def q_min(self) -> float:
        """The floor of the mean quality."""
        return self.problem.goal.q_min

    @property
    def gpus(self) -> int:
        """GPUs that may be used."""
        return self.problem.gpus

    @property
    def models(self) -> int:
        """How many models the cascade has, C."""
        return len(self.problem.stages)

    @cached_property
    def cells(self) -> tuple[LengthCells, ...]:
        """The length cells of every model."""
        return all_cells(self.requests)

    @cached_property
    def engines(self) -> _core.Models:
        """Every model's engines on the lengths of the requests; those of a hosted judge last."""
        return self.engines_on(self.cells)

    def engines_on(self, cells: tuple[LengthCells, ...]) -> _core.Models:
        """Return every model's engines on other lengths."""
        lengths = [(cell.tokens_in, cell.tokens_out, cell.spread_out) for cell in cells]
        if len(self.fleet) > self.models:
            lengths.append(self.problem.judge.cells(cells))
        return _core.Models(
            replicas=[list(stage.replicas) for stage in self.fleet],
            cells=lengths,
            pools=[list(stage.pools) for stage in self.fleet],
        )

    @cached_property
    def mean_quality(self) -> FloatArray:
        """Shape (C,): mean quality of every model, each alone."""
        mean: FloatArray = np.average(self.requests.quality, axis=1, weights=self.requests.weight)
        return mean

    def meets(self, quality: float) -> bool:
        """Return whether a mean quality meets the floor."""
        return quality >= self.q_min - QUALITY_SLACK

    def require_one_pool(self) -> None:
        """Refuse a cluster of several pools, for systems that know one only.

        Raises
        ------
        UnsupportedError
            There are several.
        """
        if len(self.problem.pools) > 1:
            names = ", ".join(pool.name for pool in self.problem.pools)
            raise UnsupportedError(
                f"the cluster has the pools {names}, and systems other than ours are deployed on one pool only; "
                "compare on one pool"
            )

    def planner(self, **options: Any) -> Planner:
        """Return our own planner of the case; `options` are the planner's."""
        return Planner(self.problem, self.threads, fleet=self.fleet, **options)

    def replace(self, **changes: Unpack[Changes]) -> Case:
        """Return the case with fields of its problem changed, as `Problem.replace` does; the engines stay."""
        return dataclasses.replace(self, problem=self.problem.replace(**changes))

    def keeping(self, wanted: Callable[[int, _core.Replica], bool]) -> Case:
        """Return the case with some of the engines only: those that `wanted(model, engine)` holds for.

        Choices made with it belong to it: draw the plan with the same case.
        """
        return dataclasses.replace(
            self, fleet=tuple(_kept(model, stage, wanted) for model, stage in enumerate(self.fleet))
        )


def _kept(model: int, stage: StageFleet, wanted: Callable[[int, _core.Replica], bool]) -> StageFleet:
    kept = [place for place, replica in enumerate(stage.replicas) if wanted(model, replica)]
    return StageFleet(
        tuple(stage.replicas[place] for place in kept),
        tuple(stage.statuses[place] for place in kept),
        tuple(stage.pools[place] for place in kept),
    )
