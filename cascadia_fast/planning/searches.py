"""The native searches of one task: the models' engines on its lengths, and for every subset its loads and its paths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.fleet import StageFleet
from cascadia_fast.length_cells import LengthCells
from cascadia_fast.planning.paths import Paths, paths_of
from cascadia_fast.planning.subsets import Subset
from cascadia_fast.planning.task import Task
from cascadia_fast.problem import Problem
from cascadia_fast.schema import MAX_GPUS

if TYPE_CHECKING:
    from cascadia_fast.planning.heterogeneous import PooledStation
    from cascadia_fast.planning.solving import Group

FloatArray = NDArray[np.float64]

LAST_STATION = -1


@dataclass(eq=False)
class Searches:
    """Native searches of one task, made when first asked for.

    Parameters
    ----------
    problem, task
        What is planned.
    fleet
        Per model its candidate engines; those of a hosted judge last.
    subsets
        The cascades that may be planned.
    cells
        The length cells of all models.
    threads
        Threads of native calls.
    spare_replicas
        By station, how many replicas it must be able to lose; one where nothing else is known.
    free_replicas
        Whether the problem's numbers of replicas are set aside.
    """

    problem: Problem
    task: Task
    fleet: tuple[StageFleet, ...]
    subsets: tuple[Subset, ...]
    cells: tuple[LengthCells, ...]
    threads: int
    spare_replicas: Mapping[int, int] = field(default_factory=dict)
    free_replicas: bool = False
    _models: _core.Models | None = None
    _made: dict[tuple[int, ...], _core.CascadeSearch] = field(default_factory=dict)
    _paths: dict[tuple[int, ...], Paths] = field(default_factory=dict)
    _by_path: dict[tuple[int, ...], tuple[_core.CascadeSearch, _core.PathSearch]] = field(default_factory=dict)

    @property
    def hosted_judge(self) -> bool:
        """Whether the judge runs on GPUs of this fleet."""
        return len(self.fleet) > len(self.problem.stages)

    @property
    def models(self) -> _core.Models:
        """Every model's engines on the lengths of the workload."""
        if self._models is None:
            cells = [(cell.tokens_in, cell.tokens_out, cell.spread_out) for cell in self.cells]
            if self.hosted_judge:
                cells.append(self.problem.judge.cells(self.cells))
            self._models = _core.Models(
                replicas=[list(stage.replicas) for stage in self.fleet],
                cells=cells,
                pools=[list(stage.pools) for stage in self.fleet],
            )
        return self._models

    def stations(self, subset: Subset) -> tuple[int, ...]:
        """Return what runs for a subset, as indexes into the fleet: its models, a hosted judge before the last."""
        if not self.hosted_judge or len(subset.indexes) < 2:
            return subset.indexes
        return (*subset.indexes[:-1], len(self.problem.stages), subset.indexes[-1])

    def at(self, subset: Subset, rate_per_s: float) -> _core.CascadeSearch:
        """Return the search of a subset at some rate."""
        planned = rate_per_s == self.task.workload.rate_per_s
        return self.of(subset) if planned else self._search(subset, rate_per_s)

    def of(self, subset: Subset) -> _core.CascadeSearch:
        """Return the search of a subset at the planned rate."""
        if subset.indexes not in self._made:
            self._made[subset.indexes] = self._search(subset, self.task.workload.rate_per_s)
        return self._made[subset.indexes]

    def paths(self, subset: Subset, search: _core.CascadeSearch) -> _core.PathSearch:
        """Return the search of a subset over whole paths."""
        known = self._by_path.get(subset.indexes)
        if known is None or known[0] is not search:
            known = search, self._path_search(subset, search)
            self._by_path[subset.indexes] = known
        return known[1]

    def fixed_usd_per_hour(self, subset: Subset, candidates: NDArray[np.int64], rate_per_s: float) -> FloatArray:
        """Return what the judge's calls cost under each candidate."""
        fixed: FloatArray = subset.calls[candidates] * (rate_per_s * 3600 * self.problem.judge.usd_per_call)
        return fixed

    def pooled_stations(self, subset: Subset, candidates: NDArray[np.int64], rate_per_s: float) -> list[PooledStation]:
        """Return the stations of a subset as the program over several pools takes them."""
        from cascadia_fast.planning.heterogeneous import PooledStation

        grid, found = subset.grid, []
        depths = self._depths(subset)
        for place, model in enumerate(self.stations(subset)):
            judge = model >= len(self.problem.stages)
            visits = subset.calls if judge else subset.reach[subset.indexes.index(model)]
            fleet, limits = self.fleet[model], self._replica_limits(model)
            found.append(
                PooledStation(
                    pool=np.array(fleet.pools, np.int64),
                    gpus=np.array([replica.shape.gpus for replica in fleet.replicas], np.int64),
                    prefix=grid.rows(depths[place])[candidates],
                    rate_per_s=visits[candidates] * rate_per_s,
                    **limits,
                )
            )
        return found

    def gpus_of(self, subset: Subset, stations: Sequence[Sequence[Group]]) -> NDArray[np.int64]:
        """Return, shape (stations, pools), the GPUs of groups."""
        gpus = np.zeros((len(stations), len(self.task.pools)), np.int64)
        for place, (model, groups) in enumerate(zip(self.stations(subset), stations, strict=True)):
            fleet = self.fleet[model]
            for group in groups:
                gpus[place, fleet.pools[group.option]] += group.replicas * fleet.replicas[group.option].shape.gpus
        return gpus

    def row(self, subset: Subset, place: int, routing: int) -> int:
        """Return the row of a station's shares under a routing."""
        return int(subset.grid.rows(self._depths(subset)[place])[routing])

    def _depths(self, subset: Subset) -> list[int]:
        """How many thresholds decide what reaches each station."""
        depths = list(range(len(subset.indexes)))
        if self._judges(subset):
            depths.insert(LAST_STATION, len(subset.indexes) - 2)
        return depths

    def _path_search(self, subset: Subset, search: _core.CascadeSearch) -> _core.PathSearch:
        if subset.indexes not in self._paths:
            nodes = [self.models.nodes(model) for model in self.stations(subset)]
            judge_cells = self._judge_offsets(subset) if self._judges(subset) else None
            self._paths[subset.indexes] = paths_of(subset.requests, subset.grid, nodes, judge_cells)
        paths = self._paths[subset.indexes]
        return _core.PathSearch(
            search=search,
            escalates=paths.escalates,
            sample=paths.sample,
            judge_sample=paths.judge_sample,
            weight=paths.weight,
            judge_delay_s=self.problem.judge.latency_s,
            pools=len(self.task.pools),
        )

    def _judges(self, subset: Subset) -> bool:
        return len(self.stations(subset)) > len(subset.indexes)

    def _judge_offsets(self, subset: Subset) -> tuple[int, ...]:
        """First cell of each judged model among the judge's, and how many there are."""
        sizes = [cells.tokens_in.size for cells in self.cells]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        return (*(int(starts[index]) for index in subset.indexes[:-1]), int(starts[-1]))

    def _search(self, subset: Subset, rate_per_s: float) -> _core.CascadeSearch:
        grid, workload = subset.grid, self.task.workload
        stations = self.stations(subset)
        share = list(grid.cell_weight)
        if self._judges(subset):
            share.insert(LAST_STATION, self._judge_share(subset))
        goal = self.task.goal
        return _core.CascadeSearch(
            models=self.models,
            stations=stations,
            depth=self._depths(subset),
            share=share,
            quality=grid.quality,
            levels=[len(levels) for levels in grid.levels],
            routings=grid.routings,
            traffic=_core.Traffic(
                rate_per_s=rate_per_s,
                scv=workload.cv**2,
                max_utilization=goal.max_utilization,
                idle_stage_keeps_replica=goal.paper_strict,
                dispersion=workload.swings,
                mixed=self.task.mixed,
            ),
            limits=[self._limits(model) for model in stations],
            requests=self._requests(subset),
        )

    def _requests(self, subset: Subset) -> tuple[NDArray[np.int32], NDArray[np.int32], FloatArray] | None:
        """What rows of the last model's shares are summed from, where there is no table of them."""
        grid = subset.grid
        if grid.cell_weight[-1].size:
            return None
        return grid.bins.escalates, grid.cells[-1].cell_of, subset.requests.weight

    def _judge_share(self, subset: Subset) -> FloatArray:
        """A row per combination of the thresholds before the last judged model; columns are all models' cells."""
        grid = subset.grid
        rows = max(1, math.prod(len(levels) for levels in grid.levels[:-1]))
        share = [np.zeros((rows, cells.tokens_in.size)) for cells in self.cells]
        for stage, index in enumerate(subset.indexes[:-1]):
            own = grid.cell_weight[stage]
            share[index] = np.repeat(own, rows // len(own), axis=0)
        whole: FloatArray = np.ascontiguousarray(np.concatenate(share, axis=1))
        return whole

    def _limits(self, model: int) -> _core.StageLimits:
        return _core.StageLimits(**self._replica_limits(model))

    def _replica_limits(self, model: int) -> dict[str, Any]:
        """What a station must keep to: spare replicas, and the problem's numbers of replicas."""
        spare = 0 if self.task.goal.survive == "none" else self.spare_replicas.get(model, 1)
        limits = {"spare_replicas": spare, "survive_s": self.task.ceiling_s("max_stage_p95")}
        if model < len(self.problem.stages) and not self.free_replicas:
            stage = self.problem.stages[model]
            limits["least_replicas"] = stage.min_replicas
            limits["most_replicas"] = stage.max_replicas or MAX_GPUS
        return limits


def allowed_subsets(problem: Problem, subsets: Sequence[Subset]) -> tuple[Subset, ...]:
    """Return the subsets that hold every model of which the problem wants at least one replica."""
    wanted = {index for index, stage in enumerate(problem.stages) if stage.min_replicas}
    return tuple(subset for subset in subsets if wanted <= set(subset.indexes))
