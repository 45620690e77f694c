"""Cascades small enough to try everything: every routing on every allocation of GPUs to replicas of every shape.

Only single p95s come from the native core (``load_model.py`` is their oracle), so answers can be compared bit for bit;
how arrivals are thinned, what the utilisation cap allows and what is best are written here once more.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core, catalog
from cascadia_fast.profile import Profile
from cascadia_fast.routing import RoutingGrid

FloatArray = NDArray[np.float64]
GPU = "h100-sxm-80gb"


class Option(NamedTuple):
    """One way to run a stage."""

    gpus: int
    latency_s: float
    shape: int
    replicas: int


class Key(NamedTuple):
    """What makes one plan better than another, in this order; smaller is better."""

    worst_first_s: tuple[float, ...]
    lost_quality: float
    gpus: int
    moved_gpus: int
    routing: int


def engine(
    model: str, tp: int = 1, pp: int = 1, weights: str = "bf16", gpus_per_node: int = 8, **limits: Any
) -> _core.Replica:
    """One engine of a catalog model on H100s."""
    spec = catalog.gpu(GPU)
    numbers = {name: getattr(spec, name) for name in GPU_FIELDS}
    return _core.Replica(
        architecture=_core.Architecture(**dataclasses.asdict(catalog.model(model).architecture)),
        precision=_core.Precision(weights=weights),
        gpu=_core.Gpu(**numbers),
        efficiency=_core.Efficiency(**Profile.shipped().efficiency(weights, "bf16", "vllm")),
        shape=_core.Shape(tp, pp),
        limits=_core.EngineLimits(gpus_per_node=gpus_per_node, **limits),
    )


GPU_FIELDS = (
    "memory_bytes",
    "bandwidth_bytes_per_s",
    "bf16_flops_per_s",
    "fp8_flops_per_s",
    "int8_ops_per_s",
    "link_bytes_per_s",
    "internode_bytes_per_s",
)


@dataclass(frozen=True)
class Cascade:
    """What `_core.CascadeSearch` is given; `levels`, `share`, `quality` and `routings` are those of a `RoutingGrid`."""

    replicas: tuple[tuple[_core.Replica, ...], ...]
    cells: tuple[tuple[FloatArray, ...], ...]
    levels: tuple[int, ...]
    share: tuple[FloatArray, ...]
    quality: FloatArray
    routings: NDArray[np.int32]
    rate_per_s: float
    scv: float = 1.0
    max_utilization: float = 0.9
    idle_stage_keeps_replica: bool = False
    known: dict[tuple[int, bytes], list[Option]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_grid(cls, grid: RoutingGrid, replicas: Sequence[Sequence[_core.Replica]], **traffic: Any) -> Cascade:
        return cls(
            replicas=tuple(tuple(stage) for stage in replicas),
            cells=tuple((cells.tokens_in, cells.tokens_out, cells.spread_out) for cells in grid.cells),
            levels=tuple(len(levels) for levels in grid.levels),
            share=tuple(grid.cell_weight),
            quality=grid.quality,
            routings=grid.routings,
            **traffic,
        )

    @property
    def stages(self) -> int:
        return len(self.replicas)

    @property
    def count(self) -> int:
        return len(self.routings) if self.levels else 1

    def search(self) -> _core.CascadeSearch:
        return _core.CascadeSearch(
            replicas=[list(stage) for stage in self.replicas],
            cells=list(self.cells),
            share=list(self.share),
            quality=self.quality,
            levels=list(self.levels),
            routings=self.routings,
            traffic=_core.Traffic(
                rate_per_s=self.rate_per_s,
                scv=self.scv,
                max_utilization=self.max_utilization,
                idle_stage_keeps_replica=self.idle_stage_keeps_replica,
            ),
        )

    def prefix(self, routing: int, stage: int) -> int:
        row = 0
        for level, count in zip(self.routings[routing][:stage], self.levels, strict=False) if stage else ():
            row = row * count + int(level)
        return row

    def share_of(self, routing: int, stage: int) -> FloatArray:
        return np.ascontiguousarray(
            self.share[stage].reshape(-1, self.cells[stage][0].size)[self.prefix(routing, stage)]
        )

    def quality_of(self, routing: int) -> float:
        return float(self.quality[self.prefix(routing, self.stages - 1)])

    def p95_s(self, share: FloatArray, stage: int, shape: int, replicas: int) -> float:
        """p95 of a stage whose requests are split at random over its replicas; +inf above the utilisation cap."""
        tokens_in, tokens_out, *spread = self.cells[stage]
        engine, row = self.replicas[stage][shape], share[None]
        reach = float(share.sum())
        rate_per_s = self.rate_per_s * reach / replicas
        (capacity_per_s,) = _core.capacities(replica=engine, tokens_in=tokens_in, tokens_out=tokens_out, share=row)
        if rate_per_s > self.max_utilization * capacity_per_s:
            return math.inf
        (expected_s,) = _core.latency_quantiles(
            replica=engine,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            share=row,
            rate_per_s=np.array([rate_per_s]),
            arrival_scv=1 + (self.scv - 1) * reach,
            replicas=replicas,
            spread_out=spread[0] if spread else None,
        )
        # The same from one evaluation by a search of nothing else, which adds up shares in the core's own order.
        alone = _core.CascadeSearch(
            replicas=[[engine]],
            cells=[self.cells[stage]],
            share=[row],
            quality=np.zeros(1),
            levels=[],
            routings=np.zeros((1, 0), np.int32),
            traffic=_core.Traffic(rate_per_s=self.rate_per_s, scv=self.scv, max_utilization=self.max_utilization),
        )
        latency_s = alone.evaluate(0, 0, 0, replicas)["p95_s"]
        assert math.isclose(latency_s, expected_s, rel_tol=1e-6)
        return latency_s

    def options(self, routing: int, stage: int, gpus: int) -> list[Option]:
        """Everything a stage can run on at most `gpus` GPUs and stay below the utilisation cap."""
        share = self.share_of(routing, stage)
        key = (stage * 1000 + gpus, share.tobytes())
        if key not in self.known:
            self.known[key] = list(self._options(share, stage, gpus))
        return self.known[key]

    def _options(self, share: FloatArray, stage: int, gpus: int) -> list[Option]:
        engines = self.replicas[stage]
        if not share.any():
            if not self.idle_stage_keeps_replica:
                return [Option(0, 0.0, -1, 0)]
            fits = [self._holds_longest(stage, shape) for shape in range(len(engines))]
            return [
                Option(engine.shape.gpus, 0.0, shape, 1)
                for shape, engine in enumerate(engines)
                if fits[shape] and engine.shape.gpus <= gpus
            ]
        found = []
        for shape, engine in enumerate(engines):
            if not self._holds_longest(stage, shape):
                continue
            for replicas in range(1, gpus // engine.shape.gpus + 1):
                latency_s = self.p95_s(share, stage, shape, replicas)
                if math.isfinite(latency_s):
                    found.append(Option(replicas * engine.shape.gpus, latency_s, shape, replicas))
        return found

    def _holds_longest(self, stage: int, shape: int) -> bool:
        engine = self.replicas[stage][shape]
        return bool((engine.kv_bytes(sum(self.cells[stage])) <= engine.kv_capacity_bytes).all())


def best_allocation(cascade: Cascade, routing: int, gpus: int, previous: Sequence[int] = ()) -> Key | None:
    """The best of every way to run every stage of one routing; None when the GPUs do not suffice."""
    best: Key | None = None
    per_stage = []
    for stage in range(cascade.stages):
        # Of the ways that take the same number of GPUs only a fastest can be best.
        fastest: dict[int, Option] = {}
        for option in cascade.options(routing, stage, gpus):
            if option.gpus not in fastest or option.latency_s < fastest[option.gpus].latency_s:
                fastest[option.gpus] = option
        per_stage.append(list(fastest.values()))
    for chosen in itertools.product(*per_stage):
        if sum(option.gpus for option in chosen) <= gpus:
            key = key_of(cascade, routing, chosen, previous)
            if best is None or key < best:
                best = key
    return best


def key_of(cascade: Cascade, routing: int, chosen: Sequence[Any], previous: Sequence[int] = ()) -> Key:
    return Key(
        tuple(sorted((option.latency_s for option in chosen), reverse=True)),
        -cascade.quality_of(routing),
        sum(option.gpus for option in chosen),
        sum(abs(option.gpus - before) for option, before in zip(chosen, previous, strict=False)),
        routing,
    )


def best_plan(cascade: Cascade, gpus: int, quality_floor: float, previous: Sequence[int] = ()) -> Key | None:
    """The best of every allocation of every routing that meets the floor; None when there is none."""
    keys = [
        best_allocation(cascade, routing, gpus, previous)
        for routing in range(cascade.count)
        if cascade.quality_of(routing) >= quality_floor - 1e-9
    ]
    return min((key for key in keys if key is not None), default=None)
