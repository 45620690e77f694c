"""Some requests of a simulation one by one, laid out in lanes: one lane per replica, as many lines as overlap."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast.simulation.columns import ARRIVED, Columns
from cascadia_fast.timeline.series import busy_intervals

if TYPE_CHECKING:
    from cascadia_fast.timeline.drawing import TimelineData

LINE_PX = 7
STATION_PX = 22  # for the name of a stage above its lanes
_SPACE_PX = 5  # between lanes; a lane of one line is as high as its name
# The picture gets fewer requests rather than higher than this.
_MOST_PX = 1600
_COUNTS = (300, 200, 120, 80, 50, 30, 20)
# The few longest requests would squeeze all others: the first view ends when this share is done.
_SHARE_IN_VIEW = 0.95
FINEST = 1000  # parts of the window that a lane's background tells apart


@dataclass(frozen=True, slots=True)
class Visit:
    """One request at one station; times are None where they never came, `judged_s` is the end of an external judging.

    `line` is its place in the lane, counted from the top.
    """

    request: int
    row: int
    station: int
    replica: int
    arrived_s: float
    admitted_s: float | None
    first_token_s: float | None
    finished_s: float | None
    left_s: float
    judged_s: float | None
    line: int = 0

    @property
    def end_s(self) -> float:
        """When its bar ends."""
        return self.left_s if self.judged_s is None else self.judged_s


@dataclass(frozen=True, slots=True)
class Lane:
    """One replica: its lines start `top_px` below the top of the picture; `busy` are spans with somebody running."""

    station: int
    replica: int
    top_px: int
    lines: int
    busy: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive requests around a moment, with all their visits; the first view ends at `view_end_s`."""

    requests: tuple[int, ...]
    visits: tuple[Visit, ...]
    lanes: tuple[Lane, ...]
    start_s: float
    view_end_s: float
    end_s: float
    height_px: int

    @property
    def beyond(self) -> int:
        """Requests that end after the first view."""
        return sum(done_s > self.view_end_s for done_s in _dones(self.visits))


def window_around(data: TimelineData, moment_s: float) -> Window:
    """The requests that arrived around a moment: as many, up to 300, as can be drawn readably."""
    sent = data.columns.sent
    middle = int(np.searchsorted(data.columns.native.arrived_s[:sent], moment_s))
    most: tuple[Visit, ...] = ()
    for count in _COUNTS:
        first = min(max(middle - count // 2, 0), max(sent - count, 0))
        requests = range(first, min(first + count, sent))
        # Every choice lies within the one before; finding visits takes time in proportion to all requests.
        most = most or _visits(data, requests)
        visits, sizes = _on_lines([visit for visit in most if visit.request in requests])
        tops_px, height_px = _stacked(sizes)
        if height_px <= _MOST_PX:
            break
    start_s = min((visit.arrived_s for visit in visits), default=0.0)
    end_s = max((visit.end_s for visit in visits), default=0.0)
    if end_s <= start_s:  # refused as it came, a request takes no time
        end_s = start_s + 1.0
    view_end_s = float(np.quantile(_dones(visits), _SHARE_IN_VIEW, method="higher")) if visits else end_s
    if view_end_s <= start_s:
        view_end_s = end_s
    lanes = _lanes(data, sizes, tops_px, start_s, end_s)
    return Window(tuple(requests), visits, lanes, start_s, view_end_s, end_s, height_px)


def _dones(visits: Iterable[Visit]) -> list[float]:
    done_s: dict[int, float] = defaultdict(lambda: -math.inf)
    for visit in visits:
        done_s[visit.request] = max(done_s[visit.request], visit.end_s)
    return list(done_s.values())


def _visits(data: TimelineData, requests: Sequence[int]) -> tuple[Visit, ...]:
    """Visits by request, each one's in order of time."""
    columns = data.columns
    station = {row: number for number, place in enumerate(data.stations) for row in place.rows}
    left_s = {row: _left_s(columns, row, requests) for row in data.rows_in_order}
    found = []
    for request in requests:
        rows = [row for row in data.rows_in_order if request in left_s[row]]
        next_arrivals = [float(columns.times(row)[request, ARRIVED]) for row in rows[1:]]
        # The end of a request is NaN, and so no end of judging, unless it was served.
        for row, next_s in zip(rows, [*next_arrivals, float(columns.native.finished_s[request])], strict=True):
            arrived_s, *others = map(float, columns.times(row)[request])
            admitted_s, first_token_s, finished_s = (None if math.isnan(time_s) else time_s for time_s in others)
            gone_s = left_s[row][request]
            judged_s = next_s if finished_s is not None and next_s > gone_s else None
            replica = int(columns.replica(row)[request])
            times_s = (arrived_s, admitted_s, first_token_s, finished_s, gone_s, judged_s)
            found.append(Visit(request, row, station[row], replica, *times_s))
    return tuple(found)


def _left_s(columns: Columns, row: int, requests: Sequence[int]) -> dict[int, float]:
    """When those of some requests that visited a row's station left it, at the latest at the end of the run."""
    visitors = np.flatnonzero(columns.visited(row))
    chosen = np.flatnonzero(np.isin(visitors, requests))
    left_s = np.minimum(columns.visit_ends_s(row)[chosen], columns.native.ended_s)
    return dict(zip(map(int, visitors[chosen]), map(float, left_s), strict=True))


def _on_lines(visits: Sequence[Visit]) -> tuple[tuple[Visit, ...], dict[tuple[int, int], int]]:
    """The visits, each on the first line that is free on its replica, and the number of lines of every replica."""
    ends: dict[tuple[int, int], list[float]] = {}
    placed = list(visits)
    order = sorted(range(len(visits)), key=lambda k: (visits[k].station, visits[k].replica, visits[k].arrived_s, k))
    for k in order:
        visit = visits[k]
        taken = ends.setdefault((visit.station, visit.replica), [])
        line = next((line for line, end_s in enumerate(taken) if end_s < visit.arrived_s), len(taken))
        taken[line : line + 1] = [visit.end_s]
        placed[k] = replace(visit, line=line)
    return tuple(placed), {lane: len(taken) for lane, taken in ends.items()}


def _stacked(sizes: dict[tuple[int, int], int]) -> tuple[list[int], int]:
    """Top of every lane, below the name of its station, and the height of all."""
    tops_px, height_px, above = [], 0, None
    for (station, _), lines in sizes.items():
        if station != above:
            height_px += STATION_PX
        tops_px.append(height_px)
        height_px += LINE_PX * lines + _SPACE_PX
        above = station
    return tops_px, height_px


def _lanes(
    data: TimelineData, sizes: dict[tuple[int, int], int], tops_px: Sequence[int], start_s: float, end_s: float
) -> tuple[Lane, ...]:
    lanes = []
    busy: dict[int, dict[int, list[tuple[float, float]]]] = {}
    for ((station, replica), lines), top_px in zip(sizes.items(), tops_px, strict=True):
        if station not in busy:
            busy[station] = busy_spans(data.columns, data.stations[station].rows, start_s, end_s)
        spans = tuple(busy[station].get(replica, ()))
        lanes.append(Lane(station, replica, top_px, lines, spans))
    return tuple(lanes)


def busy_spans(
    columns: Columns, rows: Sequence[int], start_s: float, end_s: float
) -> dict[int, list[tuple[float, float]]]:
    """When each replica of a station had any request running, chosen or not, as finely as can be seen."""
    parts = []
    for row in rows:
        admitted_s, left_s = columns.visit_admissions_s(row), columns.visit_ends_s(row)
        here = np.flatnonzero((admitted_s < end_s) & (left_s > start_s))
        spans_s = np.maximum(admitted_s[here], start_s), np.minimum(left_s[here], end_s)
        parts.append((*spans_s, columns.visit_replicas(row)[here]))
    busy = busy_intervals(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    gap_s = (end_s - start_s) / FINEST
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for replica, begin_s, until_s in zip(busy.replica, busy.start_s, busy.end_s, strict=True):
        mine = spans[int(replica)]
        if mine and begin_s - mine[-1][1] < gap_s:
            mine[-1] = (mine[-1][0], float(until_s))
        else:
            mine.append((float(begin_s), float(until_s)))
    return spans
