"""Systems at the load where the single model stands at the paper's SLO scale, and the traffic they carry at that scale.

The paper states no rates, but it does state a single model's smallest SLO scale: 11.88, on trace 3 at q = 85. Per case
and floor, every system is tried on a ladder of rates; where the mean of the single model's scales over the seeds
crosses 11.88 (overload or not: it is the single model that chooses the load), all systems are tried again. Plans are
made on one half of the requests and tried on the other as in `cascadia-fast compare`, whose trials these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from benchmarks.paper_cases import case, floors
from benchmarks.paper_figures import Carried, Factor, carried, scale_factor
from benchmarks.paper_reasons import alone_per_s, single_model
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.systems import SYSTEMS
from cascadia_fast.comparison.cells import Cell, digest_of, key_of
from cascadia_fast.comparison.groups import groups_of
from cascadia_fast.comparison.ratios import against_ours
from cascadia_fast.comparison.store import Store
from cascadia_fast.comparison.trial import Trials
from cascadia_fast.comparison.workers import rows_here, rows_in_processes
from cascadia_fast.planner import Planner

SCALE = 11.88
SEEDS = (0, 1, 2)
# Times what the single model carries by the latency model: from well below its limit to where no system follows.
LADDER = tuple(float(factor) for factor in np.geomspace(0.4, 3.2, 10))
RAMPED = ("single", "sarathi", "ours", "cascadeserve", "cascadeserve-tuned", "routellm-ours")

Rows = Mapping[Cell, Mapping[str, Any]]


@dataclass(frozen=True)
class Place:
    """One case at one floor."""

    case: str
    q_min: float
    gpus: int
    alone_per_s: float

    def cell(self, system: str, rate_per_s: float, seed: int) -> Cell:
        """Return a trial here."""
        return Cell(self.case, system, self.q_min, rate_per_s, self.gpus, seed)


@dataclass(frozen=True, eq=False)
class Matched:
    """What came of it: per place the rate at which the single model stands at the scale, and the rows of all trials."""

    rates: Mapping[Place, float]
    places: tuple[Place, ...]
    rows: Rows

    @cached_property
    def ratios(self) -> list[dict[str, Any]]:
        """Every system against ours at the matched rates, as the `ratios` of a comparison."""
        at = {(place.case, place.q_min): rate_per_s for place, rate_per_s in self.rates.items()}
        here = [cell for cell in self.rows if at.get((cell.case, cell.q_min)) == cell.rate_per_s]
        trials = [(cell, dict(self.rows[cell])) for cell in here]
        return [pair.as_dict() for pair in against_ours(groups_of(trials))]

    def scales(self, system: str) -> Factor:
        """Return a system's smallest SLO scale over ours at the matched rates."""
        return scale_factor(self.ratios, system)

    def traffic(self, system: str, highest_only: bool = False) -> Factor:
        """Return the largest rate that ours carries within the scale, without overload, over what a system carries."""
        ratios, beyond, missed = [], 0, 0
        highest = {place.case: max(p.q_min for p in self.places if p.case == place.case) for place in self.places}
        places = [place for place in self.places if not highest_only or place.q_min == highest[place.case]]
        for place in places:
            ours, theirs = (carried_here(self.rows, place, name, keeps_up=True) for name in ("ours", system))
            if any(misses(self.rows, place, name) for name in ("ours", system)):
                missed += 1
            elif not (ours.bound and ours.bound == theirs.bound):
                ratios.append(ours.rate_per_s / theirs.rate_per_s)
                beyond += bool(ours.bound or theirs.bound)
        return Factor(tuple(ratios), len(places), missed=missed, beyond=beyond)


def matched(names: Sequence[str], out: Path, requests: int, jobs: int, fresh: bool = False) -> Matched:
    """Try what is not kept in a folder yet, and return everything."""
    places = tuple(place for name in names for place in places_of(name))
    trials = {name: Trials(case(name), {system.name: system for system in SYSTEMS}, requests) for name in names}
    with Store(out, fresh) as store:
        ladder = [
            place.cell(system, factor * place.alone_per_s, seed)
            for seed in SEEDS
            for place in places
            for factor in LADDER
            for system in RAMPED
        ]
        rows = dict(_tried(trials, ladder, store, requests, jobs))
        rates = {}
        for place in places:
            found = carried_here(rows, place, "single")
            if not found.bound:
                rates[place] = found.rate_per_s
        again = [
            place.cell(system.name, rate_per_s, seed)
            for seed in SEEDS
            for place, rate_per_s in rates.items()
            for system in SYSTEMS
        ]
        rows |= dict(_tried(trials, again, store, requests, jobs))
    return Matched(rates, places, rows)


def places_of(name: str) -> Iterator[Place]:
    """Return a case's floors, with the rate that the single model carries at each by the latency model."""
    problem = case(name)
    planner = Planner(problem)
    fixed = Case.of(problem, planner)
    for floor in floors(planner):
        yield Place(name, float(floor), problem.gpus, alone_per_s(fixed, single_model(fixed, floor)))


def carried_here(rows: Rows, place: Place, system: str, keeps_up: bool = False) -> Carried:
    """Return the rate at which the mean of a system's scales over the seeds crosses the scale.

    With `keeps_up` it must moreover be out of overload with every seed.
    """
    points = []
    for factor in LADDER:
        rate_per_s = factor * place.alone_per_s
        scales = [_scale(rows, place, system, rate_per_s, seed) for seed in SEEDS]
        known = [scale for scale in scales if scale]
        mean = geometric_mean(known) if len(known) == len(SEEDS) else None
        overload = keeps_up and any(rows[place.cell(system, rate_per_s, seed)]["status"] != "served" for seed in SEEDS)
        points.append({"rate_per_s": rate_per_s, "scale95": None if overload else mean, "at_least": mean})
    return carried(points, SCALE)


def misses(rows: Rows, place: Place, system: str) -> bool:
    """Whether a system misses the floor beyond the noise, at the lowest rate of the ladder."""
    rate_per_s = LADDER[0] * place.alone_per_s
    trials = [(cell, dict(rows[cell])) for cell in (place.cell(system, rate_per_s, seed) for seed in SEEDS)]
    return groups_of(trials)[0].meets == "no"


def _scale(rows: Rows, place: Place, system: str, rate_per_s: float, seed: int) -> float | None:
    """A trial's smallest SLO scale; None without a plan, or where fewer than 95 % are served."""
    measured = rows[place.cell(system, rate_per_s, seed)]["measured"]
    return None if measured is None else measured["scale95"]


def _tried(
    trials: Mapping[str, Trials], cells: Sequence[Cell], store: Store, requests: int, jobs: int
) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Cells with their rows: kept ones first, then the others as they are done."""
    digests = {name: digest_of(one.problem) for name, one in trials.items()}
    keys = {cell: key_of(cell, digests[cell.case], requests) for cell in cells}
    missing = [cell for cell in keys if keys[cell] not in store.rows]
    yield from ((cell, store.rows[key]) for cell, key in keys.items() if key in store.rows)
    found = rows_in_processes(trials, missing, jobs) if jobs > 1 and missing else rows_here(trials, missing)
    for cell, row in found:
        store.add(keys[cell], row)
        yield cell, row
