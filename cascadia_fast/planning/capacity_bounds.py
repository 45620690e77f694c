"""What every routing takes of the pools at least: shadow prices prove it for all routings at once.

With prices ``u_k >= 0`` of the resources, a station that gets ``λ`` requests per second pays at least

    min_s (u·a_s) · max(λ/c_s, 1)

for its replicas, whatever their number. A routing whose stations pay more than all resources are worth, ``u·N``, has no
feasible counts; and with real costs in place of some prices, this bounds the spend from below (weak duality of the
program's relaxation). Prices that prove it for one routing prove it for most, so few vectors of them are kept.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]
    BoolArray = NDArray[np.bool_]


ROUNDING = 1e-9
FULL = 1 + ROUNDING  # a share of the resources above this is more than there is
RUNGS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # of a limit: what may be proven
CHUNK = 64  # candidates looked at between two looks at the clock
OVER_FULL = 1 + 3e-9  # what rules a routing out, whatever rounding does


class Capacities(Protocol):
    """What a search says of the replicas of a station."""

    def capacities(
        self,
        *,
        station: int,
        prefixes: IntArray,
        limit_s: float,
        enough_per_s: FloatArray | None = None,
        threads: int = 1,
    ) -> FloatArray:
        """Return, shape (P, S), the largest rate one replica of each option serves within the limit.

        Where it is no more than `enough_per_s`, shape (P, S), that may come back instead, which is found out sooner.
        """


@dataclass(frozen=True, eq=False)
class PooledStation:
    """One station, its options on all pools, and what every candidate routing sends there.

    Parameters
    ----------
    pool, gpus
        Shape (S,): pool and GPUs of one replica of each option.
    prefix, rate_per_s
        Shape (R,): for each candidate the row of `capacities`, and the requests per second that reach the station.
    least_replicas, most_replicas
        Limits of the number of replicas; the least ones run even where nobody reaches the station.
    spare_replicas, survive_s
        With so many replicas fewer, whichever they are, the p95 is still at most `survive_s`.
    """

    pool: IntArray
    gpus: IntArray
    prefix: IntArray
    rate_per_s: FloatArray
    least_replicas: int = 0
    most_replicas: int = 1_000_000
    spare_replicas: int = 0
    survive_s: float = np.inf

    def usage(self, usd_per_gpu: FloatArray, *, budget: bool) -> FloatArray:
        """Return, shape (S, K), what one replica takes of the GPUs of each pool and, last, of a budget."""
        taken = np.zeros((self.pool.size, usd_per_gpu.size + budget))
        taken[np.arange(self.pool.size), self.pool] = self.gpus
        if budget:
            taken[:, -1] = self.gpus * usd_per_gpu[self.pool]
        return taken


class StationCapacities:
    """The capacities of one station under every prefix, tightened to lower limits of latency where needed.

    A capacity for one limit bounds that for every lower limit, so what is known serves until it is not enough.
    """

    def __init__(self, search: Capacities, index: int, station: PooledStation, usage: FloatArray, threads: int) -> None:
        self.station = station
        self.usage = usage
        self.prefixes, self.row = np.unique(station.prefix, return_inverse=True)
        self.rate_per_s = np.zeros(self.prefixes.size)
        self.rate_per_s[self.row] = station.rate_per_s
        self._search, self._index, self._threads = search, index, threads
        self.limit_s = np.full(self.prefixes.size, np.inf)  # that the capacities are for
        self.screened_s = self.limit_s.copy()  # that they bound
        self.per_s = self._ask(np.arange(self.prefixes.size), np.inf)
        self._most_per_s = self.per_s.copy()
        self._usual = np.ones(len(usage))  # share of the most that replicas may take within recent limits

    def screen(self, candidates: IntArray, limit_s: float, enough_per_s: FloatArray) -> None:
        """Bound the capacities of these candidates, which differ here, for the limit: as far down as is enough."""
        rows = self.row[candidates]
        asked = self._ask(rows, limit_s, enough_per_s)
        self.per_s[rows] = np.minimum(self.per_s[rows], asked)
        self.screened_s[rows] = limit_s

    def tighten(self, candidates: IntArray, limit_s: float) -> None:
        """Compute the capacities of these candidates for the limit, where they are known for higher ones only."""
        rows = np.unique(self.row[candidates])
        rows = rows[self.limit_s[rows] > limit_s]
        if rows.size:
            self.per_s[rows] = self._ask(rows, limit_s)
            self.limit_s[rows] = self.screened_s[rows] = limit_s

    def copy(self) -> StationCapacities:
        """Return a copy that may be tightened by itself."""
        other = copy.copy(self)
        other.per_s, other.limit_s, other.screened_s = self.per_s.copy(), self.limit_s.copy(), self.screened_s.copy()
        return other

    def at(self, candidate: int, limit_s: float) -> FloatArray:
        """Return, shape (S,), the capacities of one candidate at any limit; nothing is kept."""
        row = self.row[candidate]
        if self.limit_s[row] == limit_s == self.screened_s[row]:
            return np.asarray(self.per_s[row])
        return np.asarray(self._ask(np.array([row]), limit_s)[0])

    def is_tight(self, candidate: int, limit_s: float) -> bool:
        """Whether the capacities of a candidate are those for the limit, or a lower one."""
        return bool(self.limit_s[self.row[candidate]] <= limit_s)

    def is_screened(self, candidates: IntArray, limit_s: float) -> BoolArray:
        """Whether the capacities of these candidates are bounded for the limit, or a lower one."""
        screened: BoolArray = self.screened_s[self.row[candidates]] <= limit_s
        return screened

    def least_payment(self, candidates: IntArray, option_price: FloatArray) -> FloatArray:
        """Return, shape (R',), what each candidate pays here at least if an option costs that much."""
        rows = self.row[candidates]
        if rows.size <= self.prefixes.size:
            return self._payment(rows, self.per_s[rows], option_price)
        return np.asarray(self._payment(np.arange(self.prefixes.size), self.per_s, option_price)[rows])

    def usual_payment(self, candidates: IntArray, option_price: FloatArray) -> FloatArray:
        """Return, shape (R',), a guess of what each candidate pays here once its capacities are known."""
        rows = self.row[candidates]
        return self._payment(rows, np.minimum(self.per_s[rows], self._most_per_s[rows] * self._usual), option_price)

    def _payment(self, rows: IntArray, per_s: FloatArray, option_price: FloatArray) -> FloatArray:
        rate_per_s = self.rate_per_s[rows]
        one = np.where(per_s > 0, option_price, np.inf).min(axis=1, initial=np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(per_s > 0, option_price / per_s, np.inf).min(axis=1, initial=np.inf)
            load = np.where(np.isinf(share), np.inf, share * rate_per_s)
        # So many replicas of the best option carry no more.
        carried_per_s = per_s.max(axis=1, initial=0.0) * self.station.most_replicas
        load = np.where(rate_per_s > carried_per_s * (1 + ROUNDING), np.inf, load)
        kept = self.station.least_replicas * option_price.min(initial=np.inf) if self.station.least_replicas else 0.0
        return np.asarray(np.where(rate_per_s > 0, np.maximum(np.maximum(load, one), kept), kept))

    def affordable_per_s(self, candidates: IntArray, option_price: FloatArray, budget: FloatArray) -> FloatArray:
        """Return, shape (R', S), what a replica must serve at least if the load here is to cost less than a budget."""
        rate_per_s = self.rate_per_s[self.row[candidates]]
        with np.errstate(divide="ignore", invalid="ignore"):
            least = rate_per_s[:, None] * option_price[None, :] / budget[:, None]
        return np.where(np.isfinite(least) & (least > 0), least, 0.0)

    def _ask(self, rows: IntArray, limit_s: float, enough_per_s: FloatArray | None = None) -> FloatArray:
        asked = self._search.capacities(
            station=self._index,
            prefixes=self.prefixes[rows],
            limit_s=float(limit_s),
            enough_per_s=enough_per_s,
            threads=self._threads,
        )
        found = np.array(asked)
        if np.isfinite(limit_s) and enough_per_s is None:
            with np.errstate(divide="ignore", invalid="ignore"):
                self._usual = np.nan_to_num(found / self._most_per_s[rows]).mean(axis=0)
        return found


class LoadBounds:
    """For every candidate the most that any kept prices say it takes of the resources; above 1 it has no plan."""

    def __init__(self, stations: Sequence[StationCapacities], supply: FloatArray) -> None:
        self._stations = stations
        self._supply = supply  # shape (R, K)
        self._prices: list[FloatArray] = []
        typical = supply.max(axis=0, initial=0.0)
        for corner in [np.ones(typical.size), *np.eye(typical.size)]:
            self.add(np.where(typical > 0, corner / np.where(typical > 0, typical, 1.0), 0.0))

    def add(self, prices: FloatArray) -> None:
        """Keep one more vector of prices, shape (K,)."""
        if prices.any():
            self._prices.append(prices)

    def shares(self, candidates: IntArray, *, newest_only: bool = False) -> FloatArray:
        """Return, shape (R',), the share of the resources that each candidate takes at least."""
        best = np.zeros(candidates.size)
        for prices in self._prices[-1:] if newest_only else self._prices:
            paid = sum(s.least_payment(candidates, s.usage @ prices) for s in self._stations)
            worth = _worth(prices, self._supply[candidates])
            with np.errstate(divide="ignore", invalid="ignore"):
                best = np.maximum(best, np.where(paid > 0, paid / worth, 0.0))
        return best

    def on(self, stations: Sequence[StationCapacities]) -> LoadBounds:
        """Return these prices with other capacities."""
        other = copy.copy(self)
        other._stations = stations
        return other

    def enough_per_s(self, candidates: IntArray, last: StationCapacities) -> FloatArray:
        """Return, shape (R', S), rates that a replica at one station must exceed if the candidate is not to be full.

        Of the prices, those decide that are likely to rule the candidate out; any are right.
        """
        best = np.full(candidates.size, -1.0)
        enough = np.zeros((candidates.size, len(last.usage)))
        for prices in self._prices:
            price = last.usage @ prices
            others = sum(s.least_payment(candidates, s.usage @ prices) for s in self._stations if s is not last)
            worth = _worth(prices, self._supply[candidates])
            with np.errstate(divide="ignore", invalid="ignore"):
                share = (others + last.usual_payment(candidates, price)) / worth
            better = share > best
            best[better] = share[better]
            enough[better] = last.affordable_per_s(candidates, price, worth * OVER_FULL - others)[better]
        return enough

    def spend(self, candidates: IntArray, cost: Sequence[FloatArray]) -> FloatArray:
        """Return, shape (R',), what each candidate spends at least; `cost` is that of one replica of each option."""
        return np.array(sum(s.least_payment(candidates, c) for s, c in zip(self._stations, cost, strict=True)))


def proven_limit_s(
    stations: Sequence[StationCapacities], bounds: LoadBounds, candidates: IntArray, limit_s: float, ends_s: float
) -> float:
    """Return a limit of latency, as near to the one given as time allows, that no candidate can keep.

    `stations` come with those that few candidates tell apart first; low limits are tried first, since they are proven
    soonest.
    """
    proven_s = 0.0
    for rung in RUNGS if math.isfinite(limit_s) else ():
        if not _all_full(stations, bounds, candidates, rung * limit_s, ends_s):
            break
        proven_s = rung * limit_s
    return proven_s


def _all_full(
    stations: Sequence[StationCapacities], bounds: LoadBounds, candidates: IntArray, limit_s: float, ends_s: float
) -> bool:
    """Whether time suffices to show that no candidate keeps the limit; what is known of capacities stays as it is."""
    copies = [station.copy() for station in stations]
    own, left = bounds.on(copies), candidates
    for station in copies:
        step = CHUNK if station.prefixes.size > CHUNK else max(left.size, 1)
        carried = []
        for part in (left[start : start + step] for start in range(0, left.size, step)):
            if time.perf_counter() > ends_s:
                return False
            station.tighten(part, limit_s)
            carried.append(part[own.shares(part) <= FULL])
            if station is copies[-1] and carried[-1].size:
                return False
        left = np.concatenate(carried) if carried else left
    return left.size == 0


def _worth(prices: FloatArray, supply: FloatArray) -> FloatArray:
    priced = prices > 0
    worth: FloatArray = supply[:, priced] @ prices[priced]
    return worth
