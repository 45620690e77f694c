"""From what each model is asked for to GPUs: deployments of loads that are fixed, whatever routing fixed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.errors import NoPlanError, PoolTooSmallError
from cascadia_fast.length_cells import LengthCells, length_cells
from cascadia_fast.planning.plan_parts import spec_of
from cascadia_fast.routing import route
from cascadia_fast.workload import MAX_RATE_PER_S, ScoredRequests

FloatArray = NDArray[np.float64]

# Where the goal's cap on utilisation cannot be kept, this one is; beyond it queues take hours to settle.
MOST_UTILIZATION = 0.99
# A rate that is just carried, less what bisection and rounding leave open.
JUST_BELOW = 1 - 1e-9


@dataclass(frozen=True, eq=False)
class CascadeVisits:
    """Who visits whom under a cascade of thresholds; what `StationLoads` and `draw_plan` take.

    Parameters
    ----------
    visits, judged
        Shape (C, n): the models that each request visits, and whose answers to it are judged.
    quality
        Shape (n,): quality of the answer that is served.
    """

    visits: NDArray[np.bool_]
    judged: NDArray[np.bool_]
    quality: FloatArray

    @classmethod
    def of(cls, requests: ScoredRequests, models: Sequence[int], thresholds: Sequence[float]) -> Self:
        """Route by the scores of requests through some of the models, by their indexes."""
        accepted = route(requests.of_models(models), thresholds)
        visits = np.zeros(requests.quality.shape, np.bool_)
        judged = np.zeros(requests.quality.shape, np.bool_)
        for place, model in enumerate(models):
            visits[model] = accepted >= place
            judged[model] = visits[model] & (place < len(models) - 1)
        quality: FloatArray = requests.quality[np.array(models)[accepted], np.arange(requests.size)]
        return cls(visits, judged, quality)


class StationLoads:
    """The load of every model under some routing, and the deployments that serve it.

    Say who visits whom, then ask for engines::

        visits = np.zeros((case.models, case.requests.size))
        visits[0] = 1                                 # everyone sees the first model,
        visits[2] = case.requests.score[0] < 60       # some go on to the third; the second gets no GPUs
        loads = StationLoads(case, visits)
        choices = loads.deploy()                      # {model: Choice}: min-max of the p95s on all GPUs
        choices = {m: loads.best(m, gpus[m]) for m in loads.models}          # or on GPUs shared out in advance
        loads.evaluate(2, choices[2])["p95_s"]

    Everything here is by the planner's latency model, with the case's arrivals. A rate that cannot be carried under the
    goal's `max_utilization` is tried under 0.99, then gets the deployment that carries the most: evaluated at the real
    rate its p95 is infinite. `Choice.shape` is a place in ``case.fleet[model].replicas``. One shape serves a model, and
    the problem's limits on replicas do not bind: both are left free to other systems.

    Parameters
    ----------
    case
        What is planned.
    visits
        Shape (C, n), 0 to 1: whether, or in which share of the cases, a request visits each model.
    tokens_in, tokens_out
        Shape (C, n): what a visit reads and writes where that is not the request's own.
    judged
        Shape (C, n), 0 to 1: whether the judge is asked about each model's answer. A hosted judge is the station after
        the models, number C; None: nobody asks.
    rate_per_s
        Requests per second; None: the planned rate.

    Raises
    ------
    UnsupportedError
        The cluster has several pools.
    """

    def __init__(
        self,
        case: Case,
        visits: NDArray[np.bool_] | FloatArray,
        *,
        tokens_in: FloatArray | None = None,
        tokens_out: FloatArray | None = None,
        judged: NDArray[np.bool_] | FloatArray | None = None,
        rate_per_s: float | None = None,
    ) -> None:
        case.require_one_pool()
        requests = case.requests
        self.case = case
        self.visits = np.asarray(visits, np.float64)
        self.judged = None if judged is None else np.asarray(judged, np.float64)
        self.rate_per_s = case.rate_per_s if rate_per_s is None else rate_per_s
        self._own_lengths = tokens_in is not None or tokens_out is not None
        self._tokens = (
            requests.input_tokens if tokens_in is None else tokens_in,
            requests.output_tokens if tokens_out is None else tokens_out,
        )
        self._searches: dict[tuple[tuple[int, ...], float, float], _core.CascadeSearch] = {}

    @cached_property
    def cells(self) -> tuple[LengthCells, ...]:
        """The length cells of every model's visits."""
        if not self._own_lengths:
            return self.case.cells
        weight = self.case.requests.weight
        return tuple(length_cells(into, out, weight) for into, out in zip(*self._tokens, strict=True))

    @cached_property
    def shares(self) -> tuple[FloatArray, ...]:
        """Per station, shape (K,), visits per request in each length cell; the hosted judge's last."""
        requests = self.case.requests
        found = [
            _by_cell(cells, requests.weight, visits) for cells, visits in zip(self.cells, self.visits, strict=True)
        ]
        if self.judged is not None and len(self.case.fleet) > self.case.models:
            calls = [_by_cell(cells, requests.weight, row) for cells, row in zip(self.cells, self.judged, strict=True)]
            found.append(np.concatenate(calls))
        return tuple(found)

    @cached_property
    def reach(self) -> FloatArray:
        """Shape (stations,): visits per request of every model, and calls per request of a hosted judge."""
        return np.array([share.sum() for share in self.shares])

    @property
    def models(self) -> tuple[int, ...]:
        """The stations that anyone visits: models by their index, a hosted judge as number C."""
        return tuple(int(model) for model in np.flatnonzero(self.reach))

    @property
    def calls_per_s(self) -> float:
        """Calls of the judge per second, hosted or not."""
        if self.judged is None:
            return 0.0
        weight = self.case.requests.weight
        return float(self.rate_per_s * (self.judged @ weight).sum() / weight.sum())

    def deploy(self, gpus: int | None = None) -> dict[int, _core.Choice]:
        """Return the deployment of all stations on so many GPUs, by default all, whose slowest p95 is least.

        Raises
        ------
        PoolTooSmallError
            The smallest engines of the stations do not fit together.
        """
        gpus = self.case.gpus if gpus is None else gpus
        return dict(zip(self.models, self._deployed(self.models, gpus), strict=True))

    def best(self, model: int, gpus: int) -> _core.Choice:
        """Return the deployment of one station on at most so many GPUs with the least p95; raises as `deploy`."""
        return self._deployed((model,), gpus)[0]

    def distinct(self, model: int) -> list[_core.Choice]:
        """Return the deployments of least p95 of one station over all numbers of GPUs, each on the fewest it needs."""
        latency_s, shape, replicas = self._search((model,)).table(0, 0, self.case.gpus)
        engines = self.case.fleet[model].replicas
        found = {
            (option, count): _core.Choice(option, count, count * engines[option].shape.gpus, p95_s)
            for p95_s, option, count in zip(latency_s.tolist(), shape.tolist(), replicas.tolist(), strict=True)
            if count and np.isfinite(p95_s)
        }
        return sorted(found.values(), key=lambda choice: choice.gpus)

    def evaluate(self, model: int, choice: _core.Choice) -> _core.StageDetail:
        """Return what the latency model says of a station; an overloaded one has an infinite `p95_s`."""
        return self._search((model,)).evaluate(0, 0, choice)

    def capacity_per_s(self, model: int) -> FloatArray:
        """Return, per engine of the fleet, the visits per second that keep it just stable; 0 where none fits."""
        search = self._search((model,), MOST_UTILIZATION, MAX_RATE_PER_S)
        carried: FloatArray = search.capacities(station=0, prefixes=np.zeros(1, np.int64), limit_s=np.inf)[0]
        return carried / MOST_UTILIZATION

    def choice(self, model: int, option: int, replicas: int) -> _core.Choice:
        """Return so many replicas of one engine of the fleet, with their p95."""
        each = self.case.fleet[model].replicas[option].shape.gpus
        named = _core.Choice(option, replicas, replicas * each, np.inf)
        return _core.Choice(option, replicas, replicas * each, self.evaluate(model, named)["p95_s"])

    def _deployed(self, stations: tuple[int, ...], gpus: int) -> list[_core.Choice]:
        cap = self.case.problem.goal.max_utilization
        for most in (cap, max(cap, MOST_UTILIZATION)):
            found = self._search(stations, most).deploy(0, gpus)
            if found:
                return found
        return self._most_capable(stations, gpus)

    def _most_capable(self, stations: tuple[int, ...], gpus: int) -> list[_core.Choice]:
        self._check_room(stations, gpus)
        everyone, most = np.zeros(1, np.int64), np.array([gpus], np.int32)
        rate_per_s = self._search(stations, MOST_UTILIZATION).max_rate_per_s(everyone, most) * JUST_BELOW
        found = self._search(stations, MOST_UTILIZATION, rate_per_s).deploy(0, gpus)
        return [self.choice(model, one.shape, one.replicas) for model, one in zip(stations, found, strict=True)]

    def _check_room(self, stations: Sequence[int], gpus: int) -> None:
        least = {model: self._engines.smallest_engine(model) for model in stations}
        names = {model: spec_of(self.case.problem, model).name for model in stations}
        for model, engine in least.items():
            if engine == 0:
                raise NoPlanError(
                    f"no engine of {names[model]} holds the KV cache of its longest request; allow larger "
                    "memory_utilization, use a smaller kv_dtype, or drop the longest requests"
                )
        if sum(least.values()) > gpus:
            needed = sum(least.values())
            raise PoolTooSmallError(
                f"{' and '.join(names.values())} cannot run on fewer than {needed:,} GPUs, and there are {gpus:,}; add "
                f"{needed - gpus:,}",
                gpus_needed=needed,
            )

    @cached_property
    def _engines(self) -> _core.Models:
        return self.case.engines_on(self.cells) if self._own_lengths else self.case.engines

    def _search(
        self, stations: tuple[int, ...], max_utilization: float | None = None, rate_per_s: float | None = None
    ) -> _core.CascadeSearch:
        """The native search of one routing: no threshold decides anything, every station has one row of shares."""
        cap = self.case.problem.goal.max_utilization if max_utilization is None else max_utilization
        rate = self.rate_per_s if rate_per_s is None else rate_per_s
        key = (stations, cap, rate)
        if key not in self._searches:
            workload = self.case.problem.workload
            self._searches[key] = _core.CascadeSearch(
                models=self._engines,
                stations=stations,
                depth=[0] * len(stations),
                share=[np.ascontiguousarray(self.shares[model][None]) for model in stations],
                quality=np.zeros(1),
                levels=[],
                routings=np.zeros((1, 0), np.int32),
                traffic=_core.Traffic(
                    rate_per_s=rate, scv=workload.cv**2, max_utilization=cap, dispersion=workload.swings
                ),
            )
        return self._searches[key]


def _by_cell(cells: LengthCells, weight: FloatArray, visits: FloatArray) -> FloatArray:
    summed: FloatArray = np.bincount(cells.cell_of, weight * visits, cells.tokens_in.size) / weight.sum()
    return summed
