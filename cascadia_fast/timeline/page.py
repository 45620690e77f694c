"""The timeline as one HTML page: the facts of the run, curves over time, and some requests one by one."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

import numpy as np
import orjson

from cascadia_fast.simulation.columns import REFUSED, SERVED, TIMED_OUT, UNFINISHED
from cascadia_fast.summary import duration
from cascadia_fast.timeline.bars import bars
from cascadia_fast.timeline.curves import Frame, latency_section, readout, station_section
from cascadia_fast.timeline.requests import Window, window_around
from cascadia_fast.timeline.series import (
    FEWEST_FOR_P95,
    Bins,
    FloatArray,
    LatencySeries,
    bins_until,
    latency_series,
    station_series,
)

if TYPE_CHECKING:
    from cascadia_fast.timeline.drawing import TimelineData


def page(data: TimelineData) -> str:
    """The whole page."""
    end_s = _end_s(data)
    bins = bins_until(end_s)
    stations = [station_series(data.columns, place, bins) for place in data.stations]
    present = np.sum([series.waiting + series.running for series in stations], axis=0)
    busiest = int(present.argmax())
    window = window_around(data, (busiest + 0.5) * bins.width_s)
    latency = latency_series(data.columns, data.deadline_s, bins)
    frame = Frame(bins, end_s, _measured_s(data), (window.start_s, window.view_end_s))
    curves = latency_section(latency, data.deadline_s, frame) + "".join(
        station_section(number, place.name, place.replicas, series, frame)
        for number, (place, series) in enumerate(zip(data.stations, stations, strict=True))
    )
    names = [place.name for place in data.stations]
    numbers = orjson.dumps(readout(list(zip(names, stations, strict=True)), latency, frame)).decode()
    template = files("cascadia_fast").joinpath("data", "timeline.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        plan_id=escape(data.plan_id),
        facts=_facts(data, end_s),
        curves=curves,
        curves_note=_curves_note(bins, latency),
        bars=bars(data, window),
        bars_note=_bars_note(data, window, bins, present, busiest),
        # Names could end the script otherwise.
        numbers=numbers.replace("<", "\\u003c"),
    )


def _end_s(data: TimelineData) -> float:
    """When the last request was done; a run of nothing still has an axis."""
    return float(data.columns.native.ended_s) or 1.0


def _measured_s(data: TimelineData) -> tuple[float, float] | None:
    """Arrivals of the first and of the last measured request."""
    arrived_s = data.columns.native.arrived_s
    measured = np.flatnonzero(data.measured)
    return (float(arrived_s[measured[0]]), float(arrived_s[measured[-1]])) if measured.size else None


def _facts(data: TimelineData, end_s: float) -> str:
    columns = data.columns
    counts = np.bincount(columns.native.status, minlength=4)
    outcome = f"{counts[SERVED]:,} served"
    if data.deadline_s is not None:
        late = np.count_nonzero(columns.latency_s() > data.deadline_s)
        outcome += f" ({late:,} of them later than {duration(data.deadline_s)})"
    if columns.timeout_s is not None:
        outcome += f", {counts[TIMED_OUT]:,} timed out after {duration(columns.timeout_s)}"
    outcome += f", {counts[REFUSED]:,} refused, {counts[UNFINISHED]:,} unfinished"
    facts = {
        "Seed": str(data.seed),
        "Requests": f"{data.measured.size:,}: {outcome}",
        "Measured": f"{np.count_nonzero(data.measured):,} requests",
        "Arrivals": data.traffic,
        "Simulated time": duration(end_s) + (", then interrupted" if columns.native.interrupted else ""),
        "Judge": data.judge,
    }
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())


def _curves_note(bins: Bins, latency: LatencySeries) -> str:
    return (
        f"Curves of stages are means over {duration(bins.width_s)}; latencies are of the requests that arrived within "
        f"{duration(latency.bins.width_s)} and were served, p95 where they are {FEWEST_FOR_P95} or more."
    )


def _bars_note(data: TimelineData, window: Window, bins: Bins, present: FloatArray, busiest: int) -> str:
    if not window.visits:
        return ""
    note = (
        f"{len(window.requests):,} of {data.measured.size:,} requests: those that arrived around the busiest moment, "
        f"{duration((busiest + 0.5) * bins.width_s)} after the start, when most were waiting or running "
        f"({present[busiest]:,.4g} on average over {duration(bins.width_s)}). "
        f"The picture starts {duration(window.start_s)} after the start of the simulation"
    )
    return note + (f"; {window.beyond} of them end to the right of it." if window.beyond else ".")
