"""One station of a cascade under one load, for `planning_oracle.py`: everything it can run on, and how fast that is.

Single p95s, largest rates and samples of latencies come from the native core; the rest is written here once more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core

FloatArray = NDArray[np.float64]
Groups = tuple[tuple[int, int], ...]
"""(engine, replicas) of every group at a station; empty: nothing runs."""

KNOTS = 24  # rates at which the p95 of an engine in a mixed station is first tabulated
AGREED = 1e-7  # relative difference of the p95s of the groups of a mixed station


class Engine(NamedTuple):
    """One engine a station can run, and where."""

    replica: _core.Replica
    pool: int = 0

    @property
    def gpus(self) -> int:
        return int(self.replica.shape.gpus)


class Traffic(NamedTuple):
    """Independent gaps: rate and squared coefficient of variation of what enters the cascade."""

    rate_per_s: float
    scv: float = 1.0
    max_utilization: float = 0.9


class Lengths(NamedTuple):
    """Length cells: tokens of question and answer, and the answers' standard deviation, each of shape (K,)."""

    tokens_in: FloatArray
    tokens_out: FloatArray
    spread_out: FloatArray

    @property
    def size(self) -> int:
        return int(self.tokens_in.size)


class Sight(NamedTuple):
    """Samples of what requests of every cell see, shape (nodes, K)."""

    latency_s: FloatArray
    first_token_s: FloatArray


class Station:
    """Engines that may serve the requests in some length cells, each cell with its share of all requests.

    `known` remembers p95s and samples across the stations of an instance.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        lengths: Lengths,
        share: FloatArray,
        traffic: Traffic,
        known: dict[tuple[object, ...], object],
        least: int = 0,
        most: int = 1_000_000,
    ) -> None:
        self.engines, self.lengths, self.share, self.traffic = tuple(engines), lengths, share, traffic
        self.least, self.most = least, most
        self._known = known
        self._name = (lengths.tokens_in.tobytes(), lengths.tokens_out.tobytes(), share.tobytes(), traffic)
        self.rate_per_s = traffic.rate_per_s * float(share.sum())

    @property
    def reached(self) -> bool:
        return bool(self.share.any())

    def options(self, family: str, free: Sequence[int]) -> list[Groups]:
        """Everything that is stable on the free GPUs of the pools, within the limits on replicas."""
        if not self.reached:
            if self.least == 0:
                return [()]
            return [((engine, self.least),) for engine in self._usable() if self._within(engine, self.least, free)]
        return [groups for groups in self._combinations(family, free) if math.isfinite(self.p95_s(groups))]

    def _combinations(self, family: str, free: Sequence[int]) -> Iterator[Groups]:
        usable = self._usable()
        at_once = {"homogeneous": 1, "mixed": 2, "pooled": len(usable)}[family]
        for size in range(1, min(at_once, len(usable)) + 1):
            for engines in itertools.combinations(usable, size):
                most = [min(free[self.engines[e].pool] // self.engines[e].gpus, self.most) for e in engines]
                for counts in itertools.product(*(range(1, count + 1) for count in most)):
                    if not self.least <= sum(counts) <= self.most:
                        continue
                    groups = tuple(zip(engines, counts, strict=True))
                    if all(taken <= room for taken, room in zip(self._taken(groups, len(free)), free, strict=True)):
                        yield groups

    def _taken(self, groups: Groups, pools: int) -> list[int]:
        taken = [0] * pools
        for engine, count in groups:
            taken[self.engines[engine].pool] += count * self.engines[engine].gpus
        return taken

    def _within(self, engine: int, count: int, free: Sequence[int]) -> bool:
        return count <= self.most and count * self.engines[engine].gpus <= free[self.engines[engine].pool]

    def _usable(self) -> list[int]:
        """Engines whose KV cache holds the longest request."""
        tokens_in, tokens_out, spread_out = self.lengths
        return [
            number
            for number, engine in enumerate(self.engines)
            if (engine.replica.kv_bytes(tokens_in + tokens_out + spread_out) <= engine.replica.kv_capacity_bytes).all()
        ]

    def p95_s(self, groups: Groups) -> float:
        """p95 of the station; infinite where a replica is beyond the utilisation cap."""
        if not self.reached:
            return 0.0
        if len(groups) == 0:
            return math.inf
        if len(groups) == 1:
            ((engine, count),) = groups
            return self.engine_p95_s(engine, self.rate_per_s / count, count)
        key = ("mix", *self._name, tuple((id(self.engines[engine].replica), count) for engine, count in groups))
        if key not in self._known:
            self._known[key] = self._mixed_s(groups)
        found = self._known[key]
        assert isinstance(found, float)
        return found

    def engine_p95_s(self, engine: int, rate_per_s: float, replicas: float) -> float:
        """p95 of a replica at a rate that is the 1 / `replicas` part of the station's."""
        replica = self.engines[engine].replica
        key = ("p95", *self._name, id(replica), rate_per_s, replicas)
        if key not in self._known:
            if rate_per_s > self.most_rate_per_s(engine):
                self._known[key] = math.inf
            else:
                tokens_in, tokens_out, spread_out = self.lengths
                (p95_s,) = _core.latency_quantiles(
                    replica=replica,
                    tokens_in=tokens_in,
                    tokens_out=tokens_out,
                    share=self.share[None],
                    rate_per_s=np.array([rate_per_s]),
                    arrival_scv=1 + (self.traffic.scv - 1) * float(self.share.sum()),
                    replicas=replicas,
                    spread_out=spread_out,
                )
                self._known[key] = float(p95_s)
        found = self._known[key]
        assert isinstance(found, float)
        return found

    def most_rate_per_s(self, engine: int) -> float:
        """Largest rate of a replica, at the utilisation cap."""
        replica = self.engines[engine].replica
        key = ("cap", *self._name, id(replica))
        if key not in self._known:
            (capacity_per_s,) = _core.capacities(
                replica=replica,
                tokens_in=self.lengths.tokens_in,
                tokens_out=self.lengths.tokens_out,
                share=self.share[None],
            )
            self._known[key] = float(capacity_per_s) * self.traffic.max_utilization
        found = self._known[key]
        assert isinstance(found, float)
        return found

    def _mixed_s(self, groups: Groups) -> float:
        """Least L with sum(count * c(L)) >= rate; c(L): the largest rate of a replica with p95 <= L.

        c is read off a table between whose knots the p95 is a straight line; knots are added where the answer lies
        until all groups that take requests really are equally fast. A group whose idle p95 is above L takes none, and
        only stands by.
        """
        if sum(count * self.most_rate_per_s(engine) for engine, count in groups) < self.rate_per_s:
            return math.inf
        curves = [self._curve(engine) for engine, _ in groups]
        found_s = math.inf
        for _ in range(100):
            guess_s = _least_covering(curves, [count for _, count in groups], self.rate_per_s)
            rates = [float(np.interp(guess_s, curve[1], curve[0], left=0.0)) for curve in curves]
            reached_s = [
                self.engine_p95_s(engine, rate, self.rate_per_s / rate) if rate > 0 else 0.0
                for (engine, _), rate in zip(groups, rates, strict=True)
            ]
            busy_s = [p95_s for p95_s in reached_s if p95_s > 0]
            found_s = min(found_s, max(busy_s))
            if max(busy_s) - min(busy_s) <= AGREED * found_s and guess_s <= found_s * (1 + AGREED):
                break
            for curve, rate, p95_s in zip(curves, rates, reached_s, strict=True):
                if rate > 0:
                    _add_knot(curve, rate, p95_s)
        return found_s

    def _curve(self, engine: int) -> list[FloatArray]:
        key = ("curve", *self._name, id(self.engines[engine].replica))
        if key not in self._known:
            most = min(self.most_rate_per_s(engine), self.rate_per_s)
            rates = most * np.linspace(1e-6, 1, KNOTS)
            p95s_s = [self.engine_p95_s(engine, rate, self.rate_per_s / rate) for rate in rates]
            self._known[key] = [rates, np.maximum.accumulate(p95s_s)]
        found = self._known[key]
        assert isinstance(found, list)
        return found

    def samples(self, groups: Groups) -> Sight:
        """Samples of latency and time to first token of a station of equal replicas."""
        ((engine, count),) = groups
        key = ("samples", *self._name, id(self.engines[engine].replica), count)
        if key not in self._known:
            self._known[key] = sampled(self.engines[engine], self.lengths, self.share, self.traffic, count)
        found = self._known[key]
        assert isinstance(found, Sight)
        return found


def nodes_of(lengths: Lengths, engine: Engine) -> int:
    """Samples per length cell."""
    share = np.full(lengths.size, 1 / lengths.size)
    return len(sampled(engine, lengths, share, Traffic(1e-3), 1).latency_s)


def sampled(engine: Engine, lengths: Lengths, share: FloatArray, traffic: Traffic, replicas: int) -> Sight:
    """Samples of a cascade of one station alone, whose requests are those that reach it."""
    alone = _core.CascadeSearch(
        models=_core.Models(replicas=[[engine.replica]], cells=[tuple(lengths)]),
        stations=[0],
        depth=[0],
        share=[share[None]],
        quality=np.zeros(1),
        levels=[],
        routings=np.zeros((1, 0), np.int32),
        traffic=_core.Traffic(rate_per_s=traffic.rate_per_s, scv=traffic.scv, max_utilization=traffic.max_utilization),
    )
    seen = alone.evaluate(0, 0, _core.Choice(0, replicas, replicas * engine.gpus, 0.0))
    return Sight(seen["latency_s"], seen["first_token_s"])


def _least_covering(curves: Sequence[Sequence[FloatArray]], counts: Sequence[int], rate_per_s: float) -> float:
    def carried(limit_s: float) -> float:
        return sum(
            count * float(np.interp(limit_s, curve[1], curve[0], left=0.0))
            for count, curve in zip(counts, curves, strict=True)
        )

    low, high = 0.0, max(float(curve[1][-1]) for curve in curves)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if carried(middle) >= rate_per_s else (middle, high)
    return high


def _add_knot(curve: list[FloatArray], rate_per_s: float, p95_s: float) -> None:
    at = int(np.searchsorted(curve[0], rate_per_s))
    if at < curve[0].size and curve[0][at] == rate_per_s:
        return
    curve[0] = np.insert(curve[0], at, rate_per_s)
    curve[1] = np.insert(curve[1], at, p95_s)
