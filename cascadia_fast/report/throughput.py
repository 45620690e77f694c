"""The largest rate that a system carries within an SLO scale, from simulations at rising rates."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from statistics import geometric_mean

from cascadia_fast.pareto.scale import Scale
from cascadia_fast.report.figure import Line, linear_scale, panel, times_scale
from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Results, Setting, System
from cascadia_fast.report.standing import misses
from cascadia_fast.report.words import EQUAL, floor_text

# Scales this many times the least are not drawn: next to overload they grow without end.
_WIDEST = 32.0


@dataclass(frozen=True, slots=True)
class Gain:
    """Ratios of rates over cases and floors; `none` counts those where no rate that was simulated is within."""

    geomean: float
    least: float
    largest: float
    count: int
    none: int


def rate_gain(results: Results, system: System, ours: System) -> Gain | None:
    """How much more than the middle rate ours carries within the scale that a system needs at the middle rate.

    Only rates that were simulated count, without interpolation: a step above the largest may be possible too.
    """
    gains, none = [], 0
    for case in results.cases:
        for q_min in case["q"]:
            middle = Setting(case["name"], q_min, case["middle_rate"])
            scale = _at(results, middle, system)
            # What misses the floor has not done the same work.
            unequal = misses(results.group(middle, system)) or misses(results.group(middle, ours))
            if scale is None or unequal:
                continue
            within = [rate for own, rate in _steps(results, case, q_min, ours) if own <= scale * (1 + EQUAL)]
            if within:
                gains.append(within[-1] / case["middle_rate"])
            else:
                none += 1
    if not gains:
        return Gain(1.0, 1.0, 1.0, 0, none) if none else None
    return Gain(geometric_mean(gains), min(gains), max(gains), len(gains), none)


def _at(results: Results, setting: Setting, system: System) -> float | None:
    """The scale on a system's curve, which is of the same seed as that of ours; None where it does not keep up."""
    curve = results.curves.get((setting.case, setting.q_min, system["name"]))
    points = [] if curve is None else curve["points"]
    return next((point["scale95"] for point in points if point["rate_per_s"] == setting.rate_per_s), None)


def throughput(results: Results, shown: list[System], marks: dict[str, Mark]) -> str:
    """A picture for every floor of every case."""
    return "".join(_of_case(results, case, shown, marks) for case in results.cases)


def _steps(results: Results, case: Case, q_min: float, system: System) -> list[tuple[float, float]]:
    """Scales and the largest rate within each, both rising."""
    curve = results.curves.get((case["name"], q_min, system["name"]))
    known = (
        [] if curve is None else [(p["scale95"], p["rate_per_s"]) for p in curve["points"] if p["scale95"] is not None]
    )
    steps: list[tuple[float, float]] = []
    for scale, rate in sorted(known, key=lambda point: (point[0], -point[1])):
        if not steps or rate > steps[-1][1]:
            steps.append((scale, rate))
    return steps


def _of_case(results: Results, case: Case, shown: list[System], marks: dict[str, Mark]) -> str:
    """Pictures with the same rates, and each with the scales of its floor: these differ by orders of magnitude."""
    title = f"<h3><bdi>{escape(case['name'])}</bdi></h3>"
    rates = [rate for q_min in case["q"] for system in shown for _, rate in _steps(results, case, q_min, system)]
    if not rates:
        return f"{title}<p>No rate was carried.</p>"
    y = linear_scale(0.0, 1.08 * max(rates), "requests/s")
    panels = "".join(_panel(results, case, q_min, y, shown, marks) for q_min in case["q"])
    return f'{title}<div class="panels">{panels}</div>'


def _panel(results: Results, case: Case, q_min: float, y: Scale, shown: list[System], marks: dict[str, Mark]) -> str:
    curves = {system["name"]: _steps(results, case, q_min, system) for system in shown}
    scales = [scale for steps in curves.values() for scale, _ in steps] or [1.0]
    x = times_scale(min(scales) / 1.1, min(max(scales), _WIDEST * min(scales)) * 1.1, "SLO scale")
    middle = Setting(case["name"], q_min, case["middle_rate"])
    lines = []
    for system in shown:
        inside = [(x.at(scale), y.at(rate)) for scale, rate in curves[system["name"]] if scale <= x.high]
        if inside:
            lines.append(Line(marks[system["name"]], inside, misses(results.group(middle, system)), dots=True))
    return panel(floor_text(q_min), x, y, lines)
