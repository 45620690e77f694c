"""The search behind `heterogeneous.plan_pools`: candidates are closed by bounds or by programs, best first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cascadia_fast.planning.capacity_bounds import (
    FULL,
    OVER_FULL,
    Capacities,
    LoadBounds,
    PooledStation,
    StationCapacities,
    proven_limit_s,
)
from cascadia_fast.planning.capacity_program import Counts, Demand, relax, solve_counts
from cascadia_fast.planning.station_latency import latency_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    BoolArray = NDArray[np.bool_]
    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

Minimise = Literal["latency", "spend", "gpus", "any"]
Status = Literal["optimal", "infeasible", "time_limit"]

BLOCK = 64  # routings whose capacities are computed together
FEW = 8  # of them, that a cheaper look did not rule out
FOR_BOUND = 0.15  # of a time limit: kept for proving how good what was found is
AFTER_ALL = 0.05  # of it: spent on that even when time is up


@dataclass(frozen=True, slots=True)
class PoolSupply:
    """GPUs of one pool that may be used, and the price of one per hour."""

    gpus: int
    usd_per_gpu: float


@dataclass(frozen=True, slots=True)
class PooledGroup:
    """Equal replicas of a station: the option, how many, and the requests per second that each gets."""

    option: int
    replicas: int
    rate_per_s: float


@dataclass(frozen=True, slots=True)
class PooledAnswer:
    """What was found and what is proven.

    Attributes
    ----------
    routing : position among the candidates; -1: none.
    stations : the groups of every station.
    latency_s : p95 of every station; 0 where nobody comes.
    value : seconds, USD per hour, GPUs, or 0 where any plan would do; infinite without one.
    bound : no plan has a lower value.
    status : ``"optimal"``: proven within the gap asked for. ``"infeasible"``: proven that there is none.
        ``"time_limit"``: stopped early, with what was found, if anything was.
    evaluated : routings that a program was solved for.
    pruned : routings that bounds ruled out.
    programs : programs solved.
    seconds : wall time.
    """

    routing: int
    stations: tuple[tuple[PooledGroup, ...], ...]
    latency_s: tuple[float, ...]
    value: float
    bound: float
    status: Status
    evaluated: int
    pruned: int
    programs: int
    seconds: float

    @property
    def gap(self) -> float:
        """Relative distance of the value from the bound; infinite when nothing was found."""
        if math.isinf(self.value):
            return math.inf
        return max(0.0, (self.value - self.bound) / self.value) if self.value > 0 else 0.0


@dataclass(frozen=True, eq=False, slots=True)
class PooledTask:
    """What `heterogeneous.plan_pools` is asked; the parameters are described there."""

    search: Capacities
    stations: Sequence[PooledStation]
    pools: Sequence[PoolSupply]
    minimise: Minimise
    limit_s: float
    fixed_usd: FloatArray | None
    budget_usd: float
    beat: float
    gap: float
    time_limit_s: float
    threads: int


class PooledSearch:
    """One search; candidates are open until a bound or a program settles them."""

    def __init__(self, task: PooledTask) -> None:
        self._started_s = time.perf_counter()
        self._ends_s = self._started_s + task.time_limit_s
        self._stops_s = self._started_s + task.time_limit_s * (1 - FOR_BOUND)
        self._gap = task.gap
        self._whole = task.minimise == "gpus"
        self._by_latency, self._by_cost = task.minimise == "latency", task.minimise in ("spend", "gpus")
        usd_per_gpu = np.array([pool.usd_per_gpu for pool in task.pools], np.float64)
        has_budget = math.isfinite(task.budget_usd)
        price = np.ones_like(usd_per_gpu) if task.minimise == "gpus" else usd_per_gpu
        self._cost = [station.gpus * price[station.pool] for station in task.stations]
        self._stations = [
            StationCapacities(task.search, index, station, station.usage(usd_per_gpu, budget=has_budget), task.threads)
            for index, station in enumerate(task.stations)
        ]
        # Stations that few routings tell apart are cheap to know well.
        self._cheap_first = sorted(self._stations, key=lambda station: station.prefixes.size)
        candidates = task.stations[0].prefix.size
        fixed_usd = np.zeros(candidates) if task.fixed_usd is None else np.asarray(task.fixed_usd, np.float64)
        self._fixed_cost = np.zeros(candidates) if task.minimise == "gpus" else fixed_usd
        supply = np.tile(np.array([float(pool.gpus) for pool in task.pools]), (candidates, 1))
        if has_budget:
            supply = np.column_stack([supply, task.budget_usd - fixed_usd])
        self._supply = supply
        self._open: BoolArray = np.asarray((supply >= 0).all(axis=1))
        self._bounds = LoadBounds(self._stations, np.maximum(supply, 0.0))
        # What a plan must keep, and what it may cost, to be better than what is known.
        self._limit_s = min(task.limit_s, task.beat) if self._by_latency else task.limit_s
        self._cutoff = task.beat if self._by_cost else math.inf
        self._value = math.inf
        self._found: tuple[int, Counts] | None = None
        self._latencies: dict[tuple[int, int, bytes], tuple[float, FloatArray]] = {}
        self._stopped = False
        self._evaluated = self._programs = 0
        self._key = np.zeros(candidates)
        self._block = np.zeros(0, np.int64)
        every = np.flatnonzero(self._open)
        if every.size:
            self._rank(every)

    def may_try(self, candidate: int) -> bool:
        """Whether a candidate is still open and there is time."""
        return bool(self._open[candidate]) and not self._late()

    def next_candidate(self) -> int:
        """Return the most promising open candidate with tight capacities; -1: none is left, or time is up."""
        while True:
            if self._late():
                return -1
            open_ones = self._settle_hopeless()
            if open_ones.size == 0:
                return -1
            # While the limit still drops, a look at all would be a look too early: one block is finished first.
            left = self._block[self._open[self._block]] if self._by_latency else open_ones
            left = left if left.size else open_ones
            self._block = left[np.argsort(self._key[left], kind="stable")[:BLOCK]]
            if not self._know_more(self._block):
                return int(self._block[0])

    def _know_more(self, block: IntArray) -> bool:
        """Tighten the capacities that bound the first candidate; return whether there was anything to tighten."""
        *shared, last = self._cheap_first
        for station in shared:
            if not station.is_tight(int(block[0]), self._limit_s):
                station.tighten(block, self._limit_s)
                self._rank(block)
                return True
        if last.is_tight(int(block[0]), self._limit_s):
            return False
        unseen = block[~last.is_screened(block, self._limit_s)]
        if unseen.size and unseen[0] == block[0]:
            known = np.array([all(s.is_tight(int(c), self._limit_s) for s in shared) for c in unseen])
            unseen = _one_per_row(unseen[known], last)
            last.screen(unseen, self._limit_s, self._enough_per_s(unseen, last))
            self._rank(unseen)
        else:
            some = block[last.is_screened(block, self._limit_s)][:FEW]
            last.tighten(some, self._limit_s)
            self._rank(some)
        return True

    def _enough_per_s(self, candidates: IntArray, last: StationCapacities) -> FloatArray:
        if not self._by_cost:
            return self._bounds.enough_per_s(candidates, last)
        cost = self._cost[self._stations.index(last)]
        others = self._key[candidates] - last.least_payment(candidates, cost)
        return last.affordable_per_s(candidates, cost, self._cutoff * OVER_FULL - others)

    def try_out(self, candidate: int) -> None:
        """Settle a candidate: improve on the best plan with it, or show that it cannot."""
        self._evaluated += 1
        demands = self._demands(candidate, self._limit_s)
        relaxation = relax(demands, self._supply[candidate])
        self._programs += 1
        if relaxation.share > FULL:
            self._open[candidate] = False
            self._bounds.add(relaxation.worth)
            others = np.flatnonzero(self._open)
            if others.size and not self._by_cost:
                self._key[others] = np.maximum(self._key[others], self._bounds.shares(others, newest_only=True))
            return
        counts = self._solve(candidate, self._limit_s, self._cost if self._by_cost else None)
        if counts.found:
            self._improve(candidate, counts)
        if not self._stopped:
            self._open[candidate] = False

    def answer(self) -> PooledAnswer:
        """Return the best plan with what is proven of it."""
        open_ones = self._settle_hopeless()
        proven = open_ones.size == 0 and not self._stopped
        if self._found is None:
            none: Status = "infeasible" if proven else "time_limit"
            return self._answered(-1, (), (), math.inf, self._bound(open_ones), none)
        candidate, counts = self._found
        if self._by_latency:
            counts = self._cheapest(candidate, counts)
        latency_s, groups = self._deployed(candidate, counts)
        value = self._value
        if self._by_latency:
            value = max(latency_s, default=0.0)
        bound = min(self._bound(open_ones), value)
        closed = proven or value - bound <= self._gap * value
        return self._answered(candidate, groups, latency_s, value, bound, "optimal" if closed else "time_limit")

    def _answered(
        self,
        routing: int,
        stations: tuple[tuple[PooledGroup, ...], ...],
        latency_s: tuple[float, ...],
        value: float,
        bound: float,
        status: Status,
    ) -> PooledAnswer:
        pruned = int(np.count_nonzero(~self._open)) - self._evaluated
        seconds = time.perf_counter() - self._started_s
        return PooledAnswer(
            routing, stations, latency_s, value, bound, status, self._evaluated, max(pruned, 0), self._programs, seconds
        )

    def _late(self) -> bool:
        return self._stopped or time.perf_counter() > self._stops_s

    def _settle_hopeless(self) -> IntArray:
        """Close the candidates that bounds rule out and return the others."""
        ceiling = self._cutoff if self._by_cost else FULL
        self._open &= (self._key <= ceiling) & np.isfinite(self._key)
        return np.flatnonzero(self._open)

    def _rank(self, candidates: IntArray) -> None:
        """Bound these candidates by what is known of their capacities."""
        shares = self._bounds.shares(candidates)
        if not self._by_cost:
            self._key[candidates] = np.maximum(self._key[candidates], shares)
            return
        spend = self._bounds.spend(candidates, self._cost) + self._fixed_cost[candidates]
        self._key[candidates] = np.where(shares > FULL, np.inf, spend)

    def _demands(self, candidate: int, limit_s: float) -> list[Demand]:
        found = []
        for known in self._stations:
            station = known.station
            capacity_per_s = known.at(candidate, limit_s)
            # Losing replicas may cost latency up to a limit of its own.
            survivor_per_s = known.at(candidate, station.survive_s) if station.spare_replicas else capacity_per_s
            found.append(
                Demand(
                    rate_per_s=float(station.rate_per_s[candidate]),
                    capacity_per_s=capacity_per_s,
                    survivor_per_s=survivor_per_s,
                    usage=known.usage,
                    least_replicas=station.least_replicas,
                    most_replicas=station.most_replicas,
                    spare_replicas=station.spare_replicas,
                )
            )
        return found

    def _solve(self, candidate: int, limit_s: float, cost: Sequence[FloatArray] | None) -> Counts:
        self._programs += 1
        left_s = max(self._stops_s - time.perf_counter(), 0.01)
        most = self._cutoff - float(self._fixed_cost[candidate])
        counts = solve_counts(self._demands(candidate, limit_s), self._supply[candidate], cost, left_s, most)
        self._stopped |= counts.status == "time_limit"
        return counts

    def _improve(self, candidate: int, counts: Counts) -> None:
        nobody = not any(station.station.rate_per_s[candidate] > 0 for station in self._stations)
        if not self._by_cost and (nobody or not self._by_latency):
            self._found, self._value = (candidate, counts), 0.0
            self._open[:] = False
        elif self._by_cost:
            spend = float(self._fixed_cost[candidate]) + sum(
                float(n @ cost) for n, cost in zip(counts.replicas, self._cost, strict=True)
            )
            if spend <= self._cutoff:
                self._found, self._value = (candidate, counts), spend
                # GPUs are whole: whatever is better takes one fewer at least.
                self._cutoff = min(spend * (1 - self._gap), spend - 1 + 1e-6 if self._whole else math.inf)
        else:
            self._found, self._value = self._fastest(candidate, counts)
            self._limit_s = self._value * (1 - self._gap)

    def _fastest(self, candidate: int, counts: Counts) -> tuple[tuple[int, Counts], float]:
        """Bisect on the limit until the routing's least latency is known within the gap."""
        high_s, low_s = self._limit_s, 0.0
        while math.isinf(high_s) or high_s - low_s > self._gap / 2 * high_s:
            if self._late():
                self._stopped = True
                break
            if math.isinf(high_s):
                middle_s = max(4 * low_s, 1.0)
            else:
                middle_s = high_s / 2 if low_s < high_s / 4 else math.sqrt(low_s * high_s)
            demands = self._demands(candidate, middle_s)
            self._programs += 1
            if relax(demands, self._supply[candidate]).share > FULL:
                low_s = middle_s
                continue
            faster = self._solve(candidate, middle_s, None)
            if faster.found:
                counts, high_s = faster, middle_s
            elif faster.status == "infeasible":
                low_s = middle_s
        return (candidate, counts), high_s if math.isfinite(high_s) else self._slowest_s(candidate, counts)

    def _cheapest(self, candidate: int, counts: Counts) -> Counts:
        """Of the deployments that are as fast, the one that costs least, or takes the fewest GPUs."""
        if self._late():
            return counts
        limit_s = self._slowest_s(candidate, counts) or math.inf  # nobody waits where nobody comes
        priced = any(cost.any() for cost in self._cost)
        cost = self._cost if priced else [known.station.gpus.astype(np.float64) for known in self._stations]
        cheaper = self._solve(candidate, limit_s, cost)
        self._stopped = False  # the proof of the latency stands, whatever became of the price
        return cheaper if cheaper.found else counts

    def _slowest_s(self, candidate: int, counts: Counts) -> float:
        return max(self._deployed(candidate, counts)[0], default=0.0)

    def _deployed(
        self, candidate: int, counts: Counts
    ) -> tuple[tuple[float, ...], tuple[tuple[PooledGroup, ...], ...]]:
        """Return every station's p95, and its groups with the rates that make their p95s equal."""
        latencies, groups = [], []
        for index, replicas in enumerate(counts.replicas):
            rate_per_s = float(self._stations[index].station.rate_per_s[candidate])
            latency_s, per_s = self._latency_of(candidate, index, replicas, rate_per_s)
            carried = float(replicas @ per_s)
            scale = rate_per_s / carried if carried > 0 else 0.0
            used = np.flatnonzero(replicas)
            latencies.append(latency_s)
            groups.append(tuple(PooledGroup(int(s), int(replicas[s]), float(per_s[s] * scale)) for s in used))
        return tuple(latencies), tuple(groups)

    def _latency_of(
        self, candidate: int, index: int, replicas: IntArray, rate_per_s: float
    ) -> tuple[float, FloatArray]:
        key = (candidate, index, replicas.tobytes())
        if key not in self._latencies:
            known = self._stations[index]
            self._latencies[key] = latency_of(lambda s: known.at(candidate, s), replicas, rate_per_s, self._limit_s)
        return self._latencies[key]

    def _bound(self, open_ones: IntArray) -> float:
        """Return a value below which there is provably no plan."""
        if self._by_cost:
            least = float(self._key[open_ones].min(initial=math.inf))
            bound = min(least, self._cutoff)
            return math.ceil(bound - 1e-9) if self._whole and math.isfinite(bound) else bound
        if not self._by_latency:
            return 0.0
        if open_ones.size == 0:
            return self._limit_s
        best_s = self._value if math.isfinite(self._value) else self._limit_s
        ends_s = max(self._ends_s, time.perf_counter() + AFTER_ALL * (self._ends_s - self._started_s))
        return proven_limit_s(self._cheap_first, self._bounds, open_ones, best_s, ends_s)


def _one_per_row(candidates: IntArray, station: StationCapacities) -> IntArray:
    """Leave out candidates that look the same to a station: what is enough for one is not for the other."""
    return candidates[np.unique(station.row[candidates], return_index=True)[1]]
