"""Curves over time as SVG that stretches to any width, with all words as HTML around it.

Without text in the pictures, one page reads on a phone, on a wide screen and on paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from cascadia_fast.timeline.series import Bins, FloatArray, LatencySeries, StationSeries, round_number, round_step

_ROUND_TOPS = (1, 2, 3, 4, 5, 6, 8, 10)
COLOURS = 8  # that the page has for stations
# Pictures are so high in their own units.
HEIGHT = 100
_TICKS = 6
_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
TROUBLES = ("late", "timed out", "refused", "unfinished")


@dataclass(frozen=True, slots=True)
class Frame:
    """What all curves share: the bins, when measured requests arrived, and the time that is drawn request by request.

    Without measured requests `measured_s` is None.
    """

    bins: Bins
    end_s: float
    measured_s: tuple[float, float] | None
    closer_s: tuple[float, float]

    def x(self, time_s: float) -> float:
        """Place of a time in a picture, in bins."""
        return round(time_s / self.bins.width_s, 2)


@dataclass(frozen=True, slots=True)
class Curve:
    """Values per bin under a name; `css` draws it."""

    name: str
    css: str
    values: FloatArray
    filled: bool = False


def time_axis(start_s: float, end_s: float) -> tuple[list[float], str]:
    """Round times from start to end, at most seven, and the axis that names them."""
    step_s = round_step((end_s - start_s) / _TICKS)
    scale_s, unit = next(((scale, unit) for scale, unit in _UNITS if step_s >= scale), _UNITS[-1])
    first, last = math.ceil(start_s / step_s - 1e-9), math.floor(end_s / step_s + 1e-9)
    ticks_s = [k * step_s for k in range(first, last + 1)]
    labels = "".join(
        f'<span style="left:{100 * (tick_s - start_s) / (end_s - start_s):.2f}%">{tick_s / scale_s:.6g}</span>'
        for tick_s in ticks_s
    )
    return ticks_s, f'<div class="axis"><div class="ticks">{labels}</div><div class="unit">{unit}</div></div>'


def station_section(number: int, name: str, replicas: int, series: StationSeries, frame: Frame) -> str:
    """All curves of one station."""
    panels = (
        ("arrivals", "per second", series.arrivals_per_s, None),
        ("waiting", "requests", series.waiting, None),
        ("running", "requests", series.running, None),
        ("busy", "% of replicas", 100 * series.busy_share, 100.0),
    )
    body = "".join(
        _panel(what, unit, (Curve(what, "line", values, filled=True),), top or _top(values), frame)
        for what, unit, values, top in panels
    )
    counts = f"{_counted(replicas, 'replica')} · {_counted(series.visits, 'visit')}"
    title = f"<h3><i></i><bdi>{escape(name)}</bdi> <small>{counts}</small></h3>"
    return f'<section class="station c{number % COLOURS}">{title}{body}{time_axis(0.0, frame.end_s)[1]}</section>\n'


def latency_section(series: LatencySeries, deadline_s: float | None, frame: Frame) -> str:
    """End-to-end latency and what went wrong, by time of arrival."""
    wide = Frame(series.bins, frame.end_s, frame.measured_s, frame.closer_s)
    latencies = (Curve("p50", "p50", series.p50_s), Curve("p95", "p95", series.p95_s))
    top = max(_top(series.p50_s), _top(series.p95_s))
    shows_deadline = deadline_s is not None and deadline_s <= 2 * top
    if deadline_s is not None and shows_deadline:
        top = max(top, _top(np.array([deadline_s])))
    body = _panel("latency", "seconds, end to end", latencies, top, wide, deadline_s if shows_deadline else None)
    wrong = [Curve(name, name.replace(" ", "-"), 100 * share, True) for name, share in troubles(series) if share.any()]
    if wrong:
        stacked = [
            Curve(curve.name, curve.css, total, True)
            for curve, total in zip(wrong, itertools.accumulate(curve.values for curve in wrong), strict=True)
        ]
        # The highest first, so that each stands in front of those it is part of.
        body += _panel("late or lost", "% of arrivals", stacked[::-1], _top(stacked[-1].values), wide)
    legend = "".join(f'<span class="{curve.css}"><i></i>{curve.name}</span>' for curve in (*latencies, *wrong))
    if shows_deadline:
        legend += '<span class="deadline"><i></i>deadline</span>'
    return (
        f'<section class="station"><h3>End to end, by time of arrival <small class="legend">{legend}</small></h3>'
        f"{body}{time_axis(0.0, frame.end_s)[1]}</section>\n"
    )


def troubles(series: LatencySeries) -> Iterator[tuple[str, FloatArray]]:
    """Shares of the arrivals in every bin that were late or never served."""
    arrivals = np.maximum(series.arrivals, 1)
    counts = (series.late, series.timed_out, series.refused, series.unfinished)
    return ((name, count / arrivals) for name, count in zip(TROUBLES, counts, strict=True))


def readout(stations: Sequence[tuple[str, StationSeries]], latency: LatencySeries, frame: Frame) -> dict[str, object]:
    """The numbers that the page shows under the pointer."""
    groups: list[dict[str, object]] = [
        {
            "name": name,
            "width_s": frame.bins.width_s,
            "series": [
                _numbers("arrivals", "/s", series.arrivals_per_s),
                _numbers("waiting", "", series.waiting),
                _numbers("running", "", series.running),
                _numbers("busy", " %", 100 * series.busy_share),
            ],
        }
        for name, series in stations
    ]
    wrong = [_numbers(name, " %", 100 * share) for name, share in troubles(latency) if share.any()]
    groups.append(
        {
            "name": "end to end",
            "width_s": latency.bins.width_s,
            "series": [_numbers("p50", " s", latency.p50_s), _numbers("p95", " s", latency.p95_s), *wrong],
        }
    )
    return {"width_s": frame.bins.width_s, "bins": frame.bins.count, "end_s": frame.end_s, "groups": groups}


def _numbers(name: str, unit: str, values: FloatArray) -> list[object]:
    return [name, unit, [None if math.isnan(value) else float(f"{value:.3g}") for value in values]]


def _panel(what: str, unit: str, curves: Sequence[Curve], top: float, frame: Frame, level: float | None = None) -> str:
    """One picture with its name and its scale; `level` draws a horizontal line."""
    right = frame.x(frame.end_s)
    ticks_s, _ = time_axis(0.0, frame.end_s)
    grid = "".join(f"M{frame.x(tick_s)} 0V{HEIGHT}" for tick_s in ticks_s) + f"M0 {HEIGHT // 2}H{right}"
    drawn = "".join(_drawn(curve, top, frame) for curve in curves)
    if level is not None:
        drawn += f'<path class="deadline" d="M0 {_y(level, top):g}H{right}"/>'
    return (
        f'<div class="panel {what.replace(" ", "-")}"><div class="name">{what} <small>{unit}</small></div>'
        f'<div class="plot"><svg viewBox="0 0 {right} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{what}, {unit}">{_shades(frame)}<path class="grid" d="{grid}"/>{drawn}</svg></div>'
        f'<div class="scale"><span>{top:,.6g}</span><span>0</span></div></div>'
    )


def _shades(frame: Frame) -> str:
    """Warm-up and cool-down, and the time that is drawn request by request."""
    right = frame.x(frame.end_s)
    first, last = (0.0, 0.0) if frame.measured_s is None else map(frame.x, frame.measured_s)
    closer, until = map(frame.x, frame.closer_s)
    return (
        f'<path class="out" d="M0 0H{first}V{HEIGHT}H0ZM{last} 0H{right}V{HEIGHT}H{last}Z"/>'
        f'<path class="closer" d="M{closer} 0H{until}V{HEIGHT}H{closer}Z"/>'
    )


def _drawn(curve: Curve, top: float, frame: Frame) -> str:
    """Steps from bin to bin, with gaps where there is no value."""
    right, at, line, steps, on_paper = frame.x(frame.end_s), 0, "", "", False
    for y, same in itertools.groupby(None if math.isnan(value) else _y(value, top) for value in curve.values):
        start, at = at, at + len(list(same))
        if y is not None:
            step = f"V{y:g}H{min(at, right):g}"
            line += step if on_paper else f"M{start} {y:g}{step}"
            steps += step
        on_paper = y is not None
    fill = f'<path class="{curve.css} area" d="M0 {HEIGHT}{steps}V{HEIGHT}Z"/>' if curve.filled else ""
    return f'{fill}<path class="{curve.css}" d="{line}"/>'


def _y(value: float, top: float) -> float:
    return round(HEIGHT * (1 - value / top), 1)


def _top(values: FloatArray) -> float:
    """End of the scale for some values."""
    known = values[np.isfinite(values)]
    largest = float(known.max(initial=0.0))
    return round_number(largest, _ROUND_TOPS) if largest > 0 else 1.0


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
