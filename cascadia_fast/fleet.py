"""The engines a cascade may run on: for every model, one native replica per pool and shape that holds it.

Everything here depends on models and hardware only, so a planner builds it once and keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cascadia_fast import _core
from cascadia_fast.engine_parts import EngineParts
from cascadia_fast.errors import ModelDoesNotFitError

if TYPE_CHECKING:
    from cascadia_fast.pools import GpuPool
    from cascadia_fast.problem import Problem, Stage
    from cascadia_fast.profile import Status

# Engines up to this many times the smallest that holds the model. Measured on both benchmark cases at 20 to 256 GPUs,
# 160 problems: the optimum is the same for 2, 2.5, 4 and 8; with the smallest engines' size alone, some have no plan.
LARGEST_OVER_SMALLEST = 2.5


@dataclass(frozen=True)
class StageFleet:
    """The candidate engines of one stage: pool by pool, smallest first.

    Parameters
    ----------
    replicas
        One native engine model per pool and shape.
    statuses
        How far the times of each can be trusted.
    pools
        The index of each one's pool.
    """

    replicas: tuple[_core.Replica, ...]
    statuses: tuple[Status, ...]
    pools: tuple[int, ...]

    @property
    def least_gpus(self) -> int:
        """GPUs of the smallest engine."""
        return min(replica.shape.gpus for replica in self.replicas)

    @property
    def largest(self) -> int:
        """GPUs of the largest engine."""
        return max(replica.shape.gpus for replica in self.replicas)


def build_fleet(problem: Problem) -> tuple[StageFleet, ...]:
    """Return the candidate engines of every model of the cascade.

    Raises
    ------
    ModelDoesNotFitError
        No number of the GPUs of any pool that it may run on holds one of the models.
    """
    return tuple(_stage_fleet(problem, stage) for stage in problem.stages)


def build_judge_fleet(problem: Problem) -> StageFleet | None:
    """Return the candidate engines of the judge, None where it is not hosted; raises as `build_fleet`."""
    hosted = problem.judge.hosted
    return None if hosted is None else _stage_fleet(problem, hosted)


def _stage_fleet(problem: Problem, stage: Stage) -> StageFleet:
    allowed = problem.pools_for(stage)
    options = [(pool, replica) for pool in allowed for replica in _replicas(problem, stage, problem.pools[pool])]
    if not options:
        raise _does_not_fit(stage, [problem.pools[pool] for pool in allowed])
    statuses = tuple(
        problem.profile.status(
            problem.pools[pool].spec.name,
            problem.engine,
            stage.weights,
            stage.model.architecture,
            replica.shape,
            model=stage.model.name,
        )
        for pool, replica in options
    )
    return StageFleet(tuple(replica for _, replica in options), statuses, tuple(pool for pool, _ in options))


def _replicas(problem: Problem, stage: Stage, pool: GpuPool) -> Iterator[_core.Replica]:
    """The engines of one pool; none where it cannot hold the model."""
    parts = EngineParts.of(problem, stage, pool)
    shapes = [
        shape
        for shape in parts.shapes(pool.gpus_per_node * stage.model.architecture.layers)
        if stage.tp in (None, shape.tp) and stage.pp in (None, shape.pp)
    ]
    if shapes:
        most = max(pool.gpus_per_node, LARGEST_OVER_SMALLEST * shapes[0].gpus)
        yield from (parts.replica(shape) for shape in shapes if shape.gpus <= most)


def _does_not_fit(stage: Stage, pools: Sequence[GpuPool]) -> ModelDoesNotFitError:
    pinned = " ".join(f"{name} {size}" for name, size in (("tp", stage.tp), ("pp", stage.pp)) if size is not None)
    hardware = ", nor of ".join(
        f"{pool.spec.name} GPUs with tensor parallelism inside nodes of {pool.gpus_per_node}"
        + (f" (pool {pool.name})" if len(pools) > 1 else "")
        for pool in pools
    )
    return ModelDoesNotFitError(
        f"{stage.name} in {stage.weights} fits no number of {hardware}{f', as {pinned}' if pinned else ''}; use "
        f"smaller weights or GPUs with more memory{', or drop what is pinned' if pinned else ''}"
    )
