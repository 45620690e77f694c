"""Every deployment of every routing of a small cascade, with its latencies over whole paths added up one by one.

Only single samples come from the native core, from `CascadeSearch.evaluate`; who visits what, how latencies add up,
quantiles, what a plan must keep to and what makes one better than another are written here once more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.routing import RoutingGrid
from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
METRICS = ("max_stage_p95", "end_to_end_p95", "ttft_p95")
NO_LIMITS = (math.inf, math.inf, math.inf)
INSTRUCTION_TOKENS, VERDICT_TOKENS = 50.0, 4.0


class Limits(NamedTuple):
    """What a station must keep to; those of `_core.StageLimits`."""

    least_replicas: int = 0
    most_replicas: int = 1_000_000
    spare_replicas: int = 0
    survive_s: float = math.inf


class Way(NamedTuple):
    """One way to run a station."""

    choice: _core.Choice
    pool: int
    p95_s: float
    latency_s: FloatArray
    first_token_s: FloatArray


class Deployed(NamedTuple):
    """One deployment of one routing; `short` are its latencies with one station short of its spare replicas."""

    routing: int
    choices: tuple[_core.Choice, ...]
    gpus: tuple[int, ...]
    latencies_s: tuple[float, float, float]
    short: tuple[tuple[float, float, float], ...]


class Key(NamedTuple):
    """What makes one plan better than another, in this order; smaller is better."""

    value: float
    worst_s: float
    lost_quality: float
    gpus: int
    moved_gpus: int
    routing: int


@dataclass(frozen=True)
class Query:
    """What is asked of `PathSearch.exact`."""

    gpus: tuple[int, ...]
    metric: str = "end_to_end_p95"
    minimise: str = "latency"
    limits_s: tuple[float, float, float] = NO_LIMITS
    usd_per_gpu: tuple[float, ...] = (1.0,)
    fixed_usd: tuple[float, ...] | None = None
    budget_usd: float = math.inf
    previous_gpus: tuple[int, ...] = ()
    beat: float = math.inf


@dataclass(frozen=True)
class PathCase:
    """A cascade with sampled paths; `judge` are the engines of a hosted judge, with pools of their own."""

    requests: ScoredRequests
    grid: RoutingGrid
    replicas: tuple[tuple[_core.Replica, ...], ...]
    pools: tuple[tuple[int, ...], ...]
    rate_per_s: float
    judge: tuple[_core.Replica, ...] = ()
    judge_pools: tuple[int, ...] = ()
    judge_delay_s: float = 0.0
    idle_stage_keeps_replica: bool = False
    draws: int = 3
    limits: tuple[Limits, ...] = ()
    known: dict[tuple[int, int], list[Way]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def models(self) -> int:
        return len(self.replicas)

    @property
    def stations(self) -> int:
        return self.models + bool(self.judge)

    @property
    def pool_count(self) -> int:
        return 1 + max(itertools.chain(*self.pools, self.judge_pools))

    @property
    def judge_station(self) -> int:
        return self.models - 1

    def station_of(self, model: int) -> int:
        return model if model + 1 < self.models else self.stations - 1

    @cached_property
    def judge_cells(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        judged = self.grid.cells[:-1]
        tokens_in = np.concatenate([INSTRUCTION_TOKENS + c.tokens_in + c.tokens_out for c in judged])
        return tokens_in, np.full(tokens_in.size, VERDICT_TOKENS), np.zeros(tokens_in.size)

    @cached_property
    def judge_share(self) -> FloatArray:
        """Rows of the deepest judged model; what a shallower one is sent depends on fewer thresholds."""
        shares = [
            weight.reshape(*(len(levels) for levels in self.grid.levels[:model]), -1)
            for model, weight in enumerate(self.grid.cell_weight[:-1])
        ]
        axes = tuple(len(levels) for levels in self.grid.levels[: self.models - 2])
        spread = [
            np.broadcast_to(
                share.reshape(share.shape[:-1] + (1,) * (len(axes) - share.ndim + 1) + share.shape[-1:]),
                (*axes, share.shape[-1]),
            )
            for share in shares
        ]
        return np.ascontiguousarray(np.concatenate(spread, axis=-1).reshape(math.prod(axes), -1))

    @cached_property
    def search(self) -> _core.CascadeSearch:
        replicas = [list(engines) for engines in self.replicas]
        cells = [(c.tokens_in, c.tokens_out, c.spread_out) for c in self.grid.cells]
        pools = [list(pools) for pools in self.pools]
        stations, depth = list(range(self.models)), list(range(self.models))
        share = list(self.grid.cell_weight)
        if self.judge:
            replicas.append(list(self.judge))
            cells.append(self.judge_cells)
            pools.append(list(self.judge_pools))
            stations.insert(self.judge_station, self.models)
            depth.insert(self.judge_station, self.models - 2)
            share.insert(self.judge_station, self.judge_share)
        return _core.CascadeSearch(
            models=_core.Models(replicas=replicas, cells=cells, pools=pools),
            stations=stations,
            depth=depth,
            share=share,
            quality=self.grid.quality,
            levels=[len(levels) for levels in self.grid.levels],
            routings=self.grid.routings,
            traffic=_core.Traffic(rate_per_s=self.rate_per_s, idle_stage_keeps_replica=self.idle_stage_keeps_replica),
            limits=[_core.StageLimits(**limits._asdict()) for limits in self.limits],
        )

    @cached_property
    def escalates(self) -> NDArray[np.int32]:
        pairs = zip(self.grid.levels, self.requests.score, strict=False)
        columns = [np.searchsorted(levels, score, side="right") for levels, score in pairs]
        one = np.array(columns, np.int32).reshape(self.models - 1, self.requests.size).T
        return np.ascontiguousarray(np.tile(one, (self.draws, 1)))

    @cached_property
    def weight(self) -> FloatArray:
        return np.tile(self.requests.weight, self.draws)

    def _nodes(self, station: int) -> int:
        return self.search.evaluate(0, station, _core.Choice(0, 1, 0, 0.0))["latency_s"].shape[0]

    @cached_property
    def sample(self) -> NDArray[np.int32]:
        rng = np.random.default_rng(1)
        sample = np.zeros((self.draws * self.requests.size, self.stations), np.int32)
        for model, cells in enumerate(self.grid.cells):
            station = self.station_of(model)
            node = rng.integers(self._nodes(station), size=len(sample))
            sample[:, station] = node * cells.tokens_in.size + np.tile(cells.cell_of, self.draws)
        return sample

    @cached_property
    def judge_sample(self) -> NDArray[np.int32] | None:
        if not self.judge:
            return None
        rng = np.random.default_rng(2)
        sample = np.zeros((self.draws * self.requests.size, self.models - 1), np.int32)
        before = 0
        for model, cells in enumerate(self.grid.cells[:-1]):
            node = rng.integers(self._nodes(self.judge_station), size=len(sample))
            sample[:, model] = node * self.judge_cells[0].size + before + np.tile(cells.cell_of, self.draws)
            before += cells.tokens_in.size
        return sample

    def paths(self) -> _core.PathSearch:
        return _core.PathSearch(
            search=self.search,
            escalates=self.escalates,
            sample=self.sample,
            judge_sample=self.judge_sample,
            weight=self.weight,
            judge_delay_s=self.judge_delay_s,
            pools=self.pool_count,
        )

    def quality_of(self, routing: int) -> float:
        return float(self.grid.quality[self.grid.combination(routing)])

    def engines(self, station: int) -> tuple[tuple[_core.Replica, ...], tuple[int, ...]]:
        if self.judge and station == self.judge_station:
            return self.judge, self.judge_pools
        model = station if station < self.models - 1 else self.models - 1
        return self.replicas[model], self.pools[model]

    def way(self, routing: int, station: int, shape: int, replicas: int) -> Way | None:
        """None where it does not carry the load."""
        engines, pools = self.engines(station)
        gpus = engines[shape].shape.gpus * replicas
        detail = self.search.evaluate(routing, station, _core.Choice(shape, replicas, gpus, 0.0))
        if detail["utilization"] > 0.9 * (1 + 1e-9) or not math.isfinite(detail["p95_s"]):
            return None
        choice = _core.Choice(shape, replicas, gpus, detail["p95_s"])
        return Way(choice, pools[shape], detail["p95_s"], detail["latency_s"].ravel(), detail["first_token_s"].ravel())

    def ways(self, routing: int, station: int, most_gpus: int) -> list[Way]:
        """Every way to run a station on so many GPUs that carries its load."""
        if (routing, station) not in self.known:
            self.known[routing, station] = list(self._ways(routing, station, most_gpus))
        return self.known[routing, station]

    def _ways(self, routing: int, station: int, most_gpus: int) -> Iterator[Way]:
        engines, pools = self.engines(station)
        limits = self.limits_of(station)
        size = self._nodes(station) * (self.judge_cells[0] if self.judge else self.grid.cells[0].tokens_in).size
        if not self.search.share(routing, station).any():
            nothing = np.zeros(max(size, 4096))
            kept = max(limits.least_replicas, int(self.idle_stage_keeps_replica))
            if not kept:
                yield Way(_core.Choice(-1, 0, 0, 0.0), 0, 0.0, nothing, nothing)
                return
            for shape, engine in enumerate(engines):
                yield Way(_core.Choice(shape, kept, kept * engine.shape.gpus, 0.0), pools[shape], 0.0, nothing, nothing)
            return
        for shape, engine in enumerate(engines):
            most = min(most_gpus // engine.shape.gpus, limits.most_replicas)
            for replicas in range(max(1, limits.least_replicas), most + 1):
                way = self.way(routing, station, shape, replicas)
                short = way and self.short(routing, station, way)
                if way is not None and short is not None and (short is way or short.p95_s <= limits.survive_s):
                    yield way

    def short(self, routing: int, station: int, way: Way) -> Way | None:
        """The station without its spare replicas; None where the others do not carry the load."""
        spare = self.limits_of(station).spare_replicas
        if not spare or way.choice.shape < 0 or not self.search.share(routing, station).any():
            return way
        left = way.choice.replicas - spare
        return self.way(routing, station, way.choice.shape, left) if left > 0 else None

    def limits_of(self, station: int) -> Limits:
        return self.limits[station] if self.limits else Limits()

    def accepted_by(self, routing: int) -> NDArray[np.intp]:
        accepted = np.full(self.weight.size, self.models - 1, np.intp)
        for model in reversed(range(self.models - 1)):
            accepted[self.escalates[:, model] > self.grid.routings[routing][model]] = model
        return accepted

    def latencies_s(self, routing: int, ways: Sequence[Way], q: float = 0.95) -> tuple[float, float, float]:
        """The three metrics of one deployment."""
        accepted = self.accepted_by(routing)
        last = int(accepted.max())
        total_s = np.zeros(accepted.size)
        first_s = np.zeros(accepted.size)
        for path, model in enumerate(accepted.tolist()):
            judged = model + (model < last)
            spent_s = 0.0 if self.judge else judged * self.judge_delay_s
            shown_s = spent_s
            for m in range(model + 1):
                station = self.station_of(m)
                shown_s = spent_s
                sample = self.sample[path, station]
                spent_s += ways[station].latency_s[sample]
                shown_s += ways[station].first_token_s[sample]
                if self.judge and m < judged:
                    assert self.judge_sample is not None
                    spent_s += ways[self.judge_station].latency_s[self.judge_sample[path, m]]
            total_s[path] = spent_s
            first_s[path] = shown_s if model == last else spent_s
        worst_s = max(way.p95_s for way in ways)
        return worst_s, quantile(total_s, self.weight, q), quantile(first_s, self.weight, q)

    def everything(self, gpus: Sequence[int]) -> Iterator[Deployed]:
        """Every deployment of every routing on at most so many GPUs of each pool."""
        for routing in range(self.grid.distinct):
            per_station = [self.ways(routing, station, sum(gpus)) for station in range(self.stations)]
            for ways in itertools.product(*per_station):
                used = [sum(way.choice.gpus for way in ways if way.pool == pool) for pool in range(self.pool_count)]
                if any(taken > there for taken, there in zip(used, gpus, strict=True)):
                    continue
                latencies_s = self.latencies_s(routing, ways)
                choices = tuple(way.choice for way in ways)
                yield Deployed(routing, choices, tuple(used), latencies_s, tuple(self._all_short(routing, ways)))

    def _all_short(self, routing: int, ways: Sequence[Way]) -> Iterator[tuple[float, float, float]]:
        for station, way in enumerate(ways):
            short = self.short(routing, station, way)
            if short is not None and short is not way:
                yield self.latencies_s(routing, [*ways[:station], short, *ways[station + 1 :]])

    def key(self, plan: Deployed, query: Query) -> Key | None:
        """None where the plan breaks the query's constraints."""
        usd = 0.0 if query.fixed_usd is None else query.fixed_usd[plan.routing]
        for price, used in zip(query.usd_per_gpu, plan.gpus, strict=True):
            usd += price * used
        held = [zip(plan.latencies_s, query.limits_s, strict=True)]
        held += [zip(short[1:], query.limits_s[1:], strict=True) for short in plan.short]
        if usd > query.budget_usd or any(latency_s > limit_s for pairs in held for latency_s, limit_s in pairs):
            return None
        if any(taken > there for taken, there in zip(plan.gpus, query.gpus, strict=True)):
            return None
        value = plan.latencies_s[METRICS.index(query.metric)]
        if query.minimise != "latency":
            value = usd if query.minimise == "spend" else 0.0
        if value > query.beat:
            return None
        return Key(
            value,
            plan.latencies_s[0],
            -self.quality_of(plan.routing),
            sum(plan.gpus),
            sum(abs(c.gpus - before) for c, before in zip(plan.choices, query.previous_gpus, strict=False)),
            plan.routing,
        )


def quantile(values: FloatArray, weight: FloatArray, q: float) -> float:
    """The least value with at least q of the weight up to it."""
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(mass, (q - 1e-12) * mass[-1])]])
