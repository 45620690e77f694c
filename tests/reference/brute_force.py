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
    """What makes one plan better than another, in this order; smaller is better. Spend is 0 where it does not count."""

    spend_usd: float
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


class Limits(NamedTuple):
    """The arguments of `_core.StageLimits`."""

    least_replicas: int = 0
    most_replicas: int = 1_000_000
    spare_replicas: int = 0
    survive_s: float = math.inf


@dataclass(frozen=True)
class Wanted:
    """Which plan is asked for: the arguments of `_core.CascadeSearch.exact` that say what is best and what is allowed.

    `gpus` and `fixed_usd` are by routing; a single number is for all.
    """

    gpus: int | tuple[int, ...]
    minimise: str = "latency"
    limit_s: float = math.inf
    usd_per_gpu: float = 1.0
    fixed_usd: tuple[float, ...] | None = None
    beat: float = math.inf
    previous: tuple[int, ...] = ()

    def most_gpus(self, routing: int) -> int:
        return self.gpus if isinstance(self.gpus, int) else self.gpus[routing]

    def spend_usd(self, routing: int, gpus: int) -> float:
        return self.usd_per_gpu * gpus + (self.fixed_usd[routing] if self.fixed_usd else 0.0)

    def value(self, key: Key) -> float:
        return key.spend_usd if self.minimise == "spend" else key.worst_first_s[0]

    def arguments(self, candidates: NDArray[np.int64]) -> dict[str, Any]:
        """What `exact` is given for these candidates."""
        gpus = self.gpus if isinstance(self.gpus, int) else np.array(self.gpus, np.int32)[candidates]
        return {
            "candidates": candidates,
            "gpus": gpus,
            "minimise": self.minimise,
            "limit_s": self.limit_s,
            "usd_per_gpu": self.usd_per_gpu,
            "fixed_usd": None if self.fixed_usd is None else np.array(self.fixed_usd)[candidates],
        }


@dataclass(frozen=True)
class Cascade:
    """What `_core.CascadeSearch` is given; `levels`, `share`, `quality` and `routings` are those of a `RoutingGrid`.

    `depth` counts the thresholds before each station; empty: station i has i, a plain cascade. `limits` are those of
    each station; empty: none. Where there are `requests`, the search is given them instead of the last share.
    """

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
    depth: tuple[int, ...] = ()
    limits: tuple[Limits, ...] = ()
    requests: tuple[NDArray[np.int32], NDArray[np.int32], FloatArray] | None = None
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
    def depths(self) -> tuple[int, ...]:
        return self.depth or tuple(range(self.stages))

    @property
    def count(self) -> int:
        return len(self.routings) if self.levels else 1

    def candidates(self, quality_floor: float) -> NDArray[np.int64]:
        """The routings that meet the floor."""
        met = [routing for routing in range(self.count) if self.quality_of(routing) >= quality_floor - 1e-9]
        return np.array(met, np.int64)

    def search(self) -> _core.CascadeSearch:
        return _core.CascadeSearch(
            models=_core.Models(replicas=[list(stage) for stage in self.replicas], cells=list(self.cells)),
            stations=list(range(self.stages)),
            depth=list(self.depths),
            share=[*self.share[:-1], np.empty(0) if self.requests else self.share[-1]],
            quality=self.quality,
            levels=list(self.levels),
            routings=self.routings,
            traffic=_core.Traffic(
                rate_per_s=self.rate_per_s,
                scv=self.scv,
                max_utilization=self.max_utilization,
                idle_stage_keeps_replica=self.idle_stage_keeps_replica,
            ),
            limits=[_core.StageLimits(**limits._asdict()) for limits in self.limits],
            requests=self.requests,
        )

    def prefix(self, routing: int, depth: int) -> int:
        row = 0
        for level, count in zip(self.routings[routing][:depth], self.levels, strict=False) if depth else ():
            row = row * count + int(level)
        return row

    def share_of(self, routing: int, stage: int) -> FloatArray:
        return np.ascontiguousarray(
            self.share[stage].reshape(-1, self.cells[stage][0].size)[self.prefix(routing, self.depths[stage])]
        )

    def quality_of(self, routing: int) -> float:
        return float(self.quality[self.prefix(routing, len(self.levels))])

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
            models=_core.Models(replicas=[[engine]], cells=[self.cells[stage]]),
            stations=[0],
            depth=[0],
            share=[row],
            quality=np.zeros(1),
            levels=[],
            routings=np.zeros((1, 0), np.int32),
            traffic=_core.Traffic(rate_per_s=self.rate_per_s, scv=self.scv, max_utilization=self.max_utilization),
        )
        latency_s = alone.evaluate(0, 0, _core.Choice(0, replicas, 0, 0.0))["p95_s"]
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
        limits = self.limits[stage] if self.limits else Limits()
        if not share.any():
            kept = max(limits.least_replicas, int(self.idle_stage_keeps_replica))
            if not kept:
                return [Option(0, 0.0, -1, 0)]
            fits = [self._holds_longest(stage, shape) for shape in range(len(engines))]
            return [
                Option(kept * engine.shape.gpus, 0.0, shape, kept)
                for shape, engine in enumerate(engines)
                if fits[shape] and kept * engine.shape.gpus <= gpus
            ]
        found = []
        for shape, engine in enumerate(engines):
            if not self._holds_longest(stage, shape):
                continue
            latency_s = {n: self.p95_s(share, stage, shape, n) for n in range(1, gpus // engine.shape.gpus + 1)}
            for replicas in range(
                max(limits.least_replicas, 1), min(limits.most_replicas, max(latency_s, default=0)) + 1
            ):
                left_s = latency_s.get(replicas - limits.spare_replicas, math.inf)
                survive_s = limits.survive_s if limits.spare_replicas else math.inf
                if math.isfinite(latency_s[replicas]) and math.isfinite(left_s) and left_s <= survive_s:
                    found.append(Option(replicas * engine.shape.gpus, latency_s[replicas], shape, replicas))
        return found

    def _holds_longest(self, stage: int, shape: int) -> bool:
        engine = self.replicas[stage][shape]
        return bool((engine.kv_bytes(sum(self.cells[stage])) <= engine.kv_capacity_bytes).all())


def best_allocation(cascade: Cascade, routing: int, wanted: Wanted) -> Key | None:
    """The best of every way to run every stage of one routing; None when there is none."""
    best: Key | None = None
    per_stage = []
    gpus = wanted.most_gpus(routing)
    for stage in range(cascade.stages):
        # Of the ways that take the same number of GPUs only a fastest can be best.
        fastest: dict[int, Option] = {}
        for option in cascade.options(routing, stage, gpus):
            if option.gpus not in fastest or option.latency_s < fastest[option.gpus].latency_s:
                fastest[option.gpus] = option
        per_stage.append([option for option in fastest.values() if option.latency_s <= wanted.limit_s])
    for chosen in itertools.product(*per_stage):
        if sum(option.gpus for option in chosen) <= gpus:
            key = key_of(cascade, routing, chosen, wanted)
            if wanted.value(key) <= wanted.beat and (best is None or key < best):
                best = key
    return best


def key_of(cascade: Cascade, routing: int, chosen: Sequence[Any], wanted: Wanted) -> Key:
    gpus = sum(option.gpus for option in chosen)
    return Key(
        wanted.spend_usd(routing, gpus) if wanted.minimise == "spend" else 0.0,
        tuple(sorted((option.latency_s for option in chosen), reverse=True)),
        -cascade.quality_of(routing),
        gpus,
        sum(abs(option.gpus - before) for option, before in zip(chosen, wanted.previous, strict=False)),
        routing,
    )


def best_plan(cascade: Cascade, candidates: NDArray[np.int64], wanted: Wanted) -> Key | None:
    """The best of every allocation of every candidate; None when there is none."""
    keys = [best_allocation(cascade, int(routing), wanted) for routing in candidates]
    return min((key for key in keys if key is not None), default=None)
