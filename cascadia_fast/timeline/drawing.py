"""A page that draws what happened in a simulation: curves over time, and some requests one by one.

The page is one HTML file that loads nothing, shows everything without JavaScript, and stays small for any number of
requests. Equal simulations give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cascadia_fast.simulation import Simulation
    from cascadia_fast.simulation.columns import Columns
    from cascadia_fast.simulation.settings import Settings


@dataclass(frozen=True, slots=True)
class Station:
    """A stage or a hosted judge: its `rows` in the table of visits, and how many replicas it has."""

    name: str
    rows: tuple[int, ...]
    replicas: int


@dataclass(frozen=True, slots=True, eq=False)
class TimelineData:
    """What a timeline is drawn from.

    Parameters
    ----------
    plan_id, seed
        What was simulated.
    traffic, judge
        How requests arrive and what kind of judge there is, in words.
    stages : names of the models, small to large.
    replicas : replicas of every stage and, if the judge is hosted, of the judge.
    columns
        What happened; rows S + s of its visits, if there are such, are a hosted judge's of what stage s wrote.
    measured : (N,) requests whose numbers count: not those of warm-up and cool-down.
    deadline_s : the latency that is late.
    """

    plan_id: str
    seed: int
    traffic: str
    judge: str
    stages: tuple[str, ...]
    replicas: tuple[int, ...]
    columns: Columns
    measured: NDArray[np.bool_]
    deadline_s: float | None

    @property
    def stations(self) -> tuple[Station, ...]:
        """The stages and, if it is hosted, the judge."""
        stages = len(self.stages)
        found = [Station(name, (row,), self.replicas[row]) for row, name in enumerate(self.stages)]
        if len(self.replicas) > stages:
            found.append(Station("judge", tuple(range(stages, 2 * stages - 1)), self.replicas[stages]))
        return tuple(found)

    @property
    def rows_in_order(self) -> tuple[int, ...]:
        """Rows in the order in which a request passes them: each stage, then its judging."""
        stages = len(self.stages)
        rows = {row for station in self.stations for row in station.rows}
        return tuple(row for stage in range(stages) for row in (stage, stages + stage) if row in rows)


def write_timeline(simulation: Simulation, path: str | Path) -> None:
    """Write the timeline of a simulation: readers see the old file or the whole new one.

    Raises
    ------
    InputError
        The file cannot be written there.
    """
    from cascadia_fast.plan_json import replace_file

    replace_file(Path(path), timeline_html(simulation).encode())


def timeline_html(simulation: Simulation) -> str:
    """Return the timeline of a simulation as one HTML page."""
    from cascadia_fast.timeline.page import page

    return page(timeline_data(simulation))


def timeline_data(simulation: Simulation) -> TimelineData:
    """What the timeline of a simulation is drawn from."""
    plan, settings = simulation.plan, simulation.settings
    stations = (*(stage.replicas for stage in plan.stages), plan.judge.replicas)
    return TimelineData(
        plan_id=plan.plan_id,
        seed=settings.seed,
        traffic=_traffic(settings),
        judge=plan.judge.kind if plan.routing.asks_judge else "none is asked",
        stages=tuple(stage.model for stage in plan.stages),
        replicas=tuple(sum(group.count for group in groups) for groups in stations if groups),
        columns=simulation.columns,
        measured=simulation.mask,
        deadline_s=settings.slo_s,
    )


def _traffic(settings: Settings) -> str:
    if settings.concurrency is not None:
        return f"closed loop of {settings.concurrency:,} clients"
    return f"{settings.arrivals}, {settings.rate_per_s:,.4g} requests per second"
