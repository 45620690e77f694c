"""Which stations of a run are overloaded: more comes than they are able to finish while all their engines are full.

That a queue is longer at the end than in the middle is not enough: traffic that comes in bursts ends many a run with
one, which a run of a hundred thousand requests shows to be none.
"""

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
INSTANTS = 200
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
        Whether latencies grow with the length of the run; else timeouts keep the queue short.
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
    middle_s, end_s = map(float, window_s)
    able_per_s = _able_per_s(finished_s, admitted_s, end_s)
    too_slow = able_per_s is not None and able_per_s < arrived_s.size / (2 * (end_s - middle_s))
    # Engines that are still filling up finish less than arrives, too; only in overload does a queue form.
    queues = now > int(np.count_nonzero(run.native.station == station.number))
    grows, gives_up = now > GROWTH * before, run.counts["timed_out"] > 0
    falls_behind = bool(came) and done < KEEPS_UP * came and queues and (grows or gives_up)
    overloaded = falls_behind and (gives_up or (too_slow and not _was_gone(run, station, window_s)))
    # A little too much takes longer to show than a run lasts; the plan knows that it is.
    if not overloaded and not (queues and run.plan.status == "unstable"):
        return None
    length_s = end_s - middle_s
    return Overload(station.number, came / length_s, done / length_s, now, grows or not gives_up, able_per_s)


def _was_gone(run: Simulation, station: Station, window_s: NDArray[np.float64]) -> bool:
    """Whether the queue was gone at some instant: then it came with a burst, and goes with it."""
    instants_s = np.linspace(float(window_s[0]), float(window_s[1]), INSTANTS)
    waiting = present_at(station.arrivals_s(), station.admissions_s(), instants_s)
    return int(waiting.min()) <= int(np.count_nonzero(run.native.station == station.number))


def _able_per_s(finished_s: NDArray[np.float64], admitted_s: NDArray[np.float64], from_s: float) -> float | None:
    """What a stage finishes per second while all its engines are full: from the last arrival to the last admission."""
    until_s = float(known(admitted_s).max(initial=from_s))
    finished = int(np.count_nonzero((finished_s > from_s) & (finished_s <= until_s)))
    return finished / (until_s - from_s) if finished >= LEAST_ENDS else None
