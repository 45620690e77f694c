"""A plan that was found, at work: every station's groups of replicas, what each is asked for, and how fast it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast import _core
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.solving import Found, Group

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Metric
    from cascadia_fast.profile import Status


@dataclass(frozen=True, eq=False)
class Served:
    """One group of equal replicas.

    Parameters
    ----------
    option, replicas
        Which candidate engine, and how many.
    pool
        Index of the pool.
    shape, status
        The engine's shape, and how far its predicted times can be trusted.
    rate_per_s
        Requests per second of one replica.
    share
        Part of the station's requests that goes to the group.
    detail
        What the latency model says of it.
    """

    option: int
    replicas: int
    pool: int
    shape: _core.Shape
    status: Status
    rate_per_s: float
    share: float
    detail: _core.StageDetail

    @property
    def gpus(self) -> int:
        """GPUs of the group."""
        return self.replicas * self.shape.gpus


@dataclass(frozen=True, eq=False)
class Station:
    """A model, or the hosted judge, with its groups.

    Parameters
    ----------
    model
        Index into the fleet: of the problem's models, the judge after them.
    place
        Index among the stations of the search.
    groups
        Empty where nothing runs.
    """

    model: int
    place: int
    groups: tuple[Served, ...]

    @property
    def gpus(self) -> int:
        """GPUs of all groups."""
        return sum(group.gpus for group in self.groups)

    @property
    def rate_per_s(self) -> float:
        """Requests per second of the station."""
        return sum(group.replicas * group.rate_per_s for group in self.groups)

    @property
    def capacity_per_s(self) -> float:
        """Requests per second that keep it just stable, shared out as they are."""
        return self.rate_per_s / self.peak_utilization if self.peak_utilization > 0 else float("inf")

    @property
    def peak_utilization(self) -> float:
        """Utilisation of the busiest group."""
        return max((group.detail["utilization"] for group in self.groups), default=0.0)

    @property
    def utilization(self) -> float:
        """Share of its GPUs that is busy."""
        return sum(group.gpus * group.detail["utilization"] for group in self.groups) / max(self.gpus, 1)

    @property
    def p95_s(self) -> float:
        """95th percentile latency: that of the slowest group, which no group's requests exceed more often."""
        return max((group.detail["p95_s"] for group in self.groups if group.share > 0), default=0.0)

    @property
    def mean_batch(self) -> float:
        """Mean number of sequences that run on one replica."""
        replicas = sum(group.replicas for group in self.groups)
        return sum(group.replicas * group.detail["mean_batch"] for group in self.groups) / max(replicas, 1)


def stations_of(searches: Searches, found: Found) -> tuple[Station, ...]:
    """Return what the stations of a plan do."""
    models = searches.stations(found.subset)
    return tuple(
        Station(model, place, _served(searches, found, model, place, groups))
        for place, (model, groups) in enumerate(zip(models, found.stations, strict=True))
    )


def path_latency_s(
    searches: Searches, found: Found, stations: tuple[Station, ...], metric: Metric, quantile: float
) -> float:
    """Return a quantile of one request's whole path."""
    paths = searches.paths(found.subset, found.search)
    if found.choices is not None and all(len(groups) < 2 for groups in found.stations):
        return paths.quantile(found.routing, found.choices, metric, quantile)
    samples = [
        [
            (group.share, group.detail["latency_s"], group.detail["first_token_s"])
            for group in station.groups
            if group.rate_per_s > 0
        ]
        for station in stations
    ]
    return paths.quantile_of(routing=found.routing, stations=samples, metric=metric, q=quantile)


def _served(searches: Searches, found: Found, model: int, place: int, groups: tuple[Group, ...]) -> tuple[Served, ...]:
    fleet = searches.fleet[model]
    rates = _rates_per_s(found, place, groups)
    total = float(np.dot(rates, [group.replicas for group in groups])) if groups else 0.0
    return tuple(
        Served(
            option=group.option,
            replicas=group.replicas,
            pool=fleet.pools[group.option],
            shape=fleet.replicas[group.option].shape,
            status=fleet.statuses[group.option],
            rate_per_s=rate,
            share=group.replicas * rate / total if total > 0 else 1.0 / len(groups),
            detail=_detail(found, place, group.option, rate),
        )
        for group, rate in zip(groups, rates, strict=True)
    )


def _detail(found: Found, place: int, option: int, rate_per_s: float) -> _core.StageDetail:
    if rate_per_s > 0:
        return found.search.sampled(routing=found.routing, station=place, option=option, rate_per_s=rate_per_s)
    nobody = np.zeros((1, 1))  # runs, and nobody comes
    return {
        "p95_s": 0.0,
        "reach": 0.0,
        "capacity_per_s": 0.0,
        "utilization": 0.0,
        "batch_limit": 0,
        "mean_batch": 0.0,
        "latency_s": nobody,
        "first_token_s": nobody,
    }


def _rates_per_s(found: Found, place: int, groups: tuple[Group, ...]) -> list[float]:
    """Requests per second of one replica of each group."""
    if all(group.rate_per_s is not None for group in groups):
        return [group.rate_per_s or 0.0 for group in groups]
    assert found.choices is not None, "groups without rates come from the native search"
    return list(found.search.split(routing=found.routing, station=place, choice=found.choices[place]))[: len(groups)]
