"""Shares of requests within their deadline, over how loose the deadline is."""

from __future__ import annotations

from html import escape

from cascadia_fast.pareto.scale import Scale
from cascadia_fast.report.figure import Line, linear_scale, panel, times_scale
from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Results, Setting, System
from cascadia_fast.report.standing import misses
from cascadia_fast.report.words import floor_text, rate_text
from cascadia_fast.simulation.run import SLO_SHARE

# Scales at which nearly none or nearly all are in time, everywhere, are not drawn.
_FEW, _MOST = 0.01, 0.99


def attainment(results: Results, shown: list[System], marks: dict[str, Mark]) -> str:
    """A picture for every floor of every case: at the middle rate at once, at the others folded away."""
    return "".join(_of_case(results, case, shown, marks) for case in results.cases)


def _of_case(results: Results, case: Case, shown: list[System], marks: dict[str, Mark]) -> str:
    x = _across(results, case, shown)
    parts = [f"<h3><bdi>{escape(case['name'])}</bdi> <small>{escape(rate_text(case['middle_rate']))}</small></h3>"]
    for rate in sorted(case["rates"], key=lambda rate: rate != case["middle_rate"]):
        panels = "".join(_panel(results, Setting(case["name"], q_min, rate), x, shown, marks) for q_min in case["q"])
        if rate == case["middle_rate"]:
            parts.append(f'<div class="panels">{panels}</div>')
        else:
            named = f"<summary>{escape(rate_text(rate))}</summary>"
            parts.append(f'<details>{named}<div class="panels">{panels}</div></details>')
    return "".join(parts)


def _across(results: Results, case: Case, shown: list[System]) -> Scale:
    """One scale for all pictures of a case: from where the first is in time to where the slowest served system is."""
    found = [
        results.group(Setting(case["name"], q_min, rate), system)
        for q_min in case["q"]
        for rate in case["rates"]
        for system in shown
    ]
    curves = [group["attainment"] for group in found if group and group["attainment"]]
    scales = results.scales
    first = min((_first(curve, _FEW) for curve in curves), default=0)
    # An overloaded system never gets there; it must not stretch the picture of the others.
    last = max((_first(curve, _MOST) for curve in curves if curve[-1] >= _MOST), default=len(scales) - 1)
    return times_scale(scales[max(0, first - 1)], scales[min(len(scales) - 1, last + 1)], "SLO scale")


def _first(curve: list[float], share: float) -> int:
    return next((place for place, value in enumerate(curve) if value >= share), len(curve) - 1)


def _panel(results: Results, setting: Setting, x: Scale, shown: list[System], marks: dict[str, Mark]) -> str:
    lines = []
    for system in shown:
        group = results.group(setting, system)
        if group and group["attainment"]:
            inside = [
                (x.at(scale), share)
                for scale, share in zip(results.scales, group["attainment"], strict=True)
                if x.low <= scale <= x.high
            ]
            lines.append(Line(marks[system["name"]], inside, misses(group)))
    y = linear_scale(0.0, 100.0, "% in time")
    return panel(floor_text(setting.q_min), x, y, lines, 100 * SLO_SHARE)
