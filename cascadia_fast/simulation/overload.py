"""Which stations of a run fall behind: requests come faster than they are finished, and the queue grows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.simulation.columns import known
from cascadia_fast.simulation.statistics import counted_until, present_at
from cascadia_fast.simulation.visits import Station, stations_of

if TYPE_CHECKING:
    from cascadia_fast.simulation import Simulation

# A stage keeps up when it finishes this share of what arrives; what its engines hold at the ends of a window differs.
KEEPS_UP = 0.95
GROWTH = 1.2
# Fewer ends than these say nothing of how fast a station is.
LEAST_ENDS = 10


@dataclass(frozen=True, slots=True)
class Overload:
    """A station that falls behind, in the second half of the time in which requests arrive.

    Parameters
    ----------
    station
        Its place among the stations: the stages that run, then a hosted judge.
    arrived_per_s, finished_per_s
        Visits begun and finished per second meanwhile.
    waiting
        Visits that wait for an engine when the last request arrives.
    grows
        Whether that is more than in the middle of the run; else timeouts keep the queue short.
    able_per_s
        What it finishes per second while all its engines are full; None where too few do to tell.
    """

    station: int
    arrived_per_s: float
    finished_per_s: float
    waiting: int
    grows: bool
    able_per_s: float | None


def overloads(run: Simulation) -> Iterator[Overload]:
    """Return the stations that fall behind; none in a closed loop, whose clients wait."""
    columns = run.columns
    if run.settings.concurrency is not None or columns.sent < 2:
        return
    start_s, end_s = (float(run.native.arrived_s[place]) for place in (0, columns.sent - 1))
    window_s = np.array([(start_s + end_s) / 2, end_s])
    if window_s[1] <= window_s[0]:
        return
    for station in stations_of(columns):
        found = _overload(run, station, window_s)
        if found is not None:
            yield found


def _overload(run: Simulation, station: Station, window_s: NDArray[np.float64]) -> Overload | None:
    arrived_s, admitted_s, finished_s = station.arrivals_s(), station.admissions_s(), known(station.finished_s())
    came, done = (int(np.diff(counted_until(events_s, window_s))[0]) for events_s in (arrived_s, finished_s))
    before, now = map(int, present_at(arrived_s, admitted_s, window_s))
    # Engines that are still filling up finish less than arrives, too; only in overload does a queue form.
    queues = now > int(np.count_nonzero(run.native.station == station.number))
    grows = now > GROWTH * before
    if not (came and done < KEEPS_UP * came and queues and (grows or run.counts["timed_out"])):
        return None
    length_s, end_s = float(window_s[1] - window_s[0]), float(window_s[1])
    able_per_s = _able_per_s(finished_s, admitted_s, end_s)
    return Overload(station.number, came / length_s, done / length_s, now, grows, able_per_s)


def _able_per_s(finished_s: NDArray[np.float64], admitted_s: NDArray[np.float64], from_s: float) -> float | None:
    """What a stage finishes per second while all its engines are full: from the last arrival to the last admission."""
    until_s = float(known(admitted_s).max(initial=from_s))
    finished = int(np.count_nonzero((finished_s > from_s) & (finished_s <= until_s)))
    return finished / (until_s - from_s) if finished >= LEAST_ENDS else None
