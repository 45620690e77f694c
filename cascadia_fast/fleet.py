"""The engines a cascade may run on: for every model, one native replica per shape that holds it.

Everything here depends on models and hardware only, so a planner builds it once and keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cascadia_fast import _core
from cascadia_fast.engine_parts import EngineParts
from cascadia_fast.errors import ModelDoesNotFitError

if TYPE_CHECKING:
    from cascadia_fast.problem import Problem, Stage
    from cascadia_fast.profile import Status

# Engines up to this many times the smallest that holds the model. Measured on both benchmark cases at 20 to 256 GPUs,
# 160 problems: the optimum is the same for 2, 2.5, 4 and 8; with the smallest engines' size alone, some have no plan.
LARGEST_OVER_SMALLEST = 2.5


@dataclass(frozen=True)
class StageFleet:
    """The candidate engines of one stage, smallest first.

    Parameters
    ----------
    replicas
        One native engine model per shape.
    statuses
        How far the times of each can be trusted.
    """

    replicas: tuple[_core.Replica, ...]
    statuses: tuple[Status, ...]

    @property
    def least_gpus(self) -> int:
        """GPUs of the smallest engine."""
        return self.replicas[0].shape.gpus


def build_fleet(problem: Problem) -> tuple[StageFleet, ...]:
    """Return the candidate engines of every stage.

    Raises
    ------
    ModelDoesNotFitError
        No number of these GPUs holds one of the models.
    """
    return tuple(_stage_fleet(problem, stage) for stage in problem.stages)


def _stage_fleet(problem: Problem, stage: Stage) -> StageFleet:
    parts = EngineParts.of(problem, stage)
    every = parts.shapes(problem.gpus_per_node * stage.model.architecture.layers)
    if not every:
        raise ModelDoesNotFitError(
            f"{stage.name} in {stage.weights} fits no number of {problem.gpu.name} GPUs with tensor parallelism inside "
            f"nodes of {problem.gpus_per_node}; use smaller weights or GPUs with more memory"
        )
    most = max(problem.gpus_per_node, LARGEST_OVER_SMALLEST * every[0].gpus)
    replicas = tuple(parts.replica(shape) for shape in every if shape.gpus <= most)
    statuses = tuple(
        problem.profile.status(
            problem.gpu.name,
            problem.engine,
            stage.weights,
            stage.model.architecture,
            replica.shape,
            model=stage.model.name,
        )
        for replica in replicas
    )
    return StageFleet(replicas, statuses)
