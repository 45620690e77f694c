"""Quality that was reached, against the floor that was asked for."""

from __future__ import annotations

import math
from html import escape

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Group, Results, Setting
from cascadia_fast.report.tables import row, table
from cascadia_fast.report.words import floor_text, meets_mark, range_text
from cascadia_fast.summary_units import NOTHING, digits

_WIDTH, _HEIGHT = 200, 12
# Margins beyond this many points are drawn at the edge.
_WIDEST = 10.0


def qualities(results: Results, marks: dict[str, Mark]) -> str:
    """A table for each case, at its middle rate."""
    return "".join(_of_case(results, case, marks) for case in results.cases)


def _of_case(results: Results, case: Case, marks: dict[str, Mark]) -> str:
    settings = [Setting(case["name"], q_min, case["middle_rate"]) for q_min in case["q"]]
    half = float(math.ceil(_half_width(results, settings)))
    rows = (
        row(
            marks[system["name"]],
            (_cell(results.group(setting, system), setting.q_min, half) for setting in settings),
        )
        for system in results.systems
    )
    ends = f"<small>{digits(half)} points below the floor to {digits(half)} above it</small>"
    title = f"<h3><bdi>{escape(case['name'])}</bdi> {ends}</h3>"
    return title + table("quality", map(floor_text, case["q"]), rows)


def _half_width(results: Results, settings: list[Setting]) -> float:
    """How far from the floor the pictures of a case go."""
    off = [
        abs(end - setting.q_min)
        for setting in settings
        for system in results.systems
        if (group := results.group(setting, system)) is not None
        for end in group["quality"].values()
        if isinstance(end, float)
    ]
    return min(_WIDEST, max([1.0, *off]))


def _cell(group: Group | None, q_min: float, half: float) -> str:
    if group is None or group["quality"]["mean"] is None:
        return f'<td class="none">{NOTHING}</td>'
    quality, mean = group["quality"], group["quality"]["mean"]
    drawn = f'<path class="even" d="M{_WIDTH // 2} 0V{_HEIGHT}"/>'
    middle = _HEIGHT // 2
    if quality["low"] is not None and quality["high"] is not None:
        low, high = (_across(end - q_min, half) for end in (quality["low"], quality["high"]))
        drawn += f'<path class="whisker" d="M{low} {middle}H{high}"/>'
    drawn += f'<path class="{group["meets"]} point" d="M{_across(mean - q_min, half)} {middle}h0"/>'
    return (
        f"<td>{digits(mean, zeros=True)} {meets_mark(group)}<small>{range_text(quality)}</small>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg></td>'
    )


def _across(margin: float, half: float) -> str:
    share = 0.5 + 0.5 * max(-1.0, min(1.0, margin / half))
    return f"{_WIDTH * share:.0f}"
