"""Requests one by one as bars in lanes; the bars' coordinates are seconds and pixels."""

from __future__ import annotations

import math
from html import escape
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from cascadia_fast.simulation.columns import REFUSED, SERVED, TIMED_OUT
from cascadia_fast.summary import duration
from cascadia_fast.timeline.curves import COLOURS, TROUBLES, time_axis
from cascadia_fast.timeline.requests import LINE_PX, STATION_PX, Lane, Visit, Window

if TYPE_CHECKING:
    from cascadia_fast.timeline.drawing import TimelineData


def bars(data: TimelineData, window: Window) -> str:
    """The picture: lanes, their names, and an axis that counts from the start of the window."""
    if not window.visits:
        return "<p>No request arrived.</p>"
    height, end_s = window.height_px, window.view_end_s - window.start_s
    ticks_s, axis = time_axis(0.0, end_s)
    scale = _Scale(window)
    grid = "".join(f"M{scale.x(window.start_s + tick_s)} 0V{height}" for tick_s in ticks_s)
    lanes = {(lane.station, lane.replica): lane for lane in window.lanes}
    names = "".join(
        _station_name(data, station, next(of_station).top_px)
        for station, of_station in groupby(window.lanes, key=lambda lane: lane.station)
    )
    names += "".join(map(_lane_name, window.lanes))
    busy = "".join(_busy(lane, scale) for lane in window.lanes)
    drawn = "".join(
        _request(data, request, list(visits), lanes, scale)
        for request, visits in groupby(window.visits, key=lambda visit: visit.request)
    )
    return (
        f'<div class="bars" data-end="{window.end_s - window.start_s:.6g}">'
        f'<div class="lanes" style="height:{height}px"><div class="field"><svg viewBox="0 0 {end_s:.6g} {height}" '
        f'preserveAspectRatio="none" role="img" aria-label="requests one by one">'
        f'<path class="grid" d="{grid}"/>{busy}\n{drawn}</svg></div>{names}</div>{axis}</div>\n'
    )


class _Scale:
    """Seconds since the start of a window, as short as can be without a visible difference."""

    def __init__(self, window: Window) -> None:
        span_s = window.end_s - window.start_s
        self._start_s = window.start_s
        self._decimals = max(0, 5 - math.floor(math.log10(span_s)))

    def x(self, time_s: float) -> str:
        return f"{time_s - self._start_s:.{self._decimals}f}"


def _station_name(data: TimelineData, station: int, first_lane_px: int) -> str:
    name = escape(data.stations[station].name)
    place = f'class="stage c{station % COLOURS}" style="top:{first_lane_px - STATION_PX}px"'
    return f"<div {place}><i></i><bdi>{name}</bdi></div>"


def _lane_name(lane: Lane) -> str:
    return f'<div class="lane" style="top:{lane.top_px}px"><span>replica</span> {lane.replica}</div>'


def _busy(lane: Lane, scale: _Scale) -> str:
    height = lane.lines * LINE_PX
    middle = lane.top_px + height / 2
    spans = "".join(f"M{scale.x(start_s)} {middle:g}H{scale.x(end_s)}" for start_s, end_s in lane.busy)
    return f'<path class="busy" stroke-width="{height}" d="{spans}"/>'


def _request(
    data: TimelineData, request: int, visits: list[Visit], lanes: dict[tuple[int, int], Lane], scale: _Scale
) -> str:
    middles = [lanes[visit.station, visit.replica].top_px + (visit.line + 0.5) * LINE_PX for visit in visits]
    drawn = "".join(_visit(visit, y, scale) for visit, y in zip(visits, middles, strict=True))
    for visit, (y, next_y) in zip(visits[1:], pairwise(middles), strict=True):
        drawn += f'<path class="h" d="M{scale.x(visit.arrived_s)} {y:g}V{next_y:g}"/>'
    status = data.columns.native.status[request]
    if status != SERVED:
        end = "x" if status in (TIMED_OUT, REFUSED) else "o"
        drawn += f'<path class="{end}" d="M{scale.x(visits[-1].left_s)} {middles[-1]:g}h0"/>'
    return f'<g class="r"><title>{escape(_facts(data, request, visits))}</title>{drawn}</g>\n'


def _visit(visit: Visit, y: float, scale: _Scale) -> str:
    """Waiting, reading the prompt, writing, being judged."""
    admitted_s = visit.left_s if visit.admitted_s is None else visit.admitted_s
    first_s = visit.left_s if visit.first_token_s is None else visit.first_token_s
    # Pipelines let a token out after its step: a cancelled request may leave before the token it wrote.
    first_s = min(first_s, visit.left_s)
    parts = [("w", visit.arrived_s, admitted_s), ("p", admitted_s, first_s), ("d", first_s, visit.left_s)]
    if visit.judged_s is not None:
        parts.append(("j", visit.left_s, visit.judged_s))
    paths = "".join(
        f'<path class="{css}" d="M{scale.x(start_s)} {y:g}H{scale.x(end_s)}"/>'
        for css, start_s, end_s in parts
        if end_s > start_s
    )
    return f'<g class="c{visit.station % COLOURS}">{paths}</g>'


def _facts(data: TimelineData, request: int, visits: list[Visit]) -> str:
    """What is known of one request, a line for every visit."""
    native = data.columns.native
    arrived_s, finished_s = float(native.arrived_s[request]), float(native.finished_s[request])
    status = int(native.status[request])
    fate = "served" if status == SERVED else TROUBLES[status]
    if status == SERVED and data.deadline_s is not None and finished_s - arrived_s > data.deadline_s:
        fate = "served late"
    lines = [f"request {request:,}: {fate}; arrived at {duration(arrived_s)}"]
    if status == SERVED:
        first_s = float(native.first_token_s[request]) - arrived_s
        lines[0] += f", first token after {duration(first_s)}, done after {duration(finished_s - arrived_s)}"
    if not data.measured[request]:
        lines[0] += " (not measured: warm-up or cool-down)"
    return "\n".join([*lines, *(_visit_facts(data, visit) for visit in visits)])


def _visit_facts(data: TimelineData, visit: Visit) -> str:
    waited_until_s = visit.left_s if visit.admitted_s is None else visit.admitted_s
    waited_s = waited_until_s - visit.arrived_s
    said = [f"waited {duration(waited_s)}" if waited_s > 0 else "no wait"]
    if visit.admitted_s is not None and visit.first_token_s is not None:
        said.append(f"prefill {duration(visit.first_token_s - visit.admitted_s)}")
    if visit.first_token_s is not None and visit.finished_s is not None:
        said.append(f"decode {duration(visit.finished_s - visit.first_token_s)}")
    if visit.finished_s is None:
        said.append("never finished")
    preempted = int(data.columns.preempted(visit.row)[visit.request])
    if preempted:
        said.append(f"preempted {preempted} time{'s' if preempted > 1 else ''}")
    if visit.judged_s is not None:
        said.append(f"judged in {duration(visit.judged_s - visit.left_s)}")
    said.extend(_tokens(data, visit))
    return f"{data.stations[visit.station].name}, replica {visit.replica}: {', '.join(said)}"


def _tokens(data: TimelineData, visit: Visit) -> list[str]:
    """Lengths; nothing is known of what a judge reads."""
    if visit.row >= len(data.stages):
        return []
    system, scored = data.columns.system, data.columns.drawn[visit.request]
    return [f"{system.tokens_in[visit.row, scored]:,} tokens in", f"{system.tokens_out[visit.row, scored]:,} out"]
