"""Smallest SLO scales over ours, a row per system: every setting as a faint dot, their range and geometric mean."""

from __future__ import annotations

from itertools import product
from statistics import geometric_mean

from cascadia_fast.pareto.scale import Scale
from cascadia_fast.report.figure import WIDTH, times_scale
from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Results, Setting, System
from cascadia_fast.report.tables import row, table
from cascadia_fast.report.words import times
from cascadia_fast.summary_units import NOTHING, plural

_HEIGHT = 20
# Room around the dots, as a factor.
_MARGIN = 1.08


def ratio_rows(results: Results, systems: list[System], marks: dict[str, Mark]) -> str:
    """The picture; nothing where no ratio is known."""
    known = {system["name"]: _ratios(results, system) for system in systems}
    every = [ratio for ratios in known.values() for ratio in ratios]
    if not every:
        return ""
    x = times_scale(min(1.0, *every) / _MARGIN, max(1.0, *every) * _MARGIN, "")
    rows = "".join(_row(results, system, known[system["name"]], x, marks[system["name"]]) for system in systems)
    ticks = "".join(f'<span style="left:{100 * at:.1f}%">{text}×</span>' for at, text in x.ticks)
    return (
        '<figure class="ratios"><figcaption>Smallest SLO scale over ours; right of 1× ours is better. Dot: geometric '
        "mean of the settings on equal terms: both are served, neither misses the floor beyond the noise, and neither "
        "falls short of it by half a point more than the other. Ring: of all in which both are served. Faint, and "
        "their range: these settings one by one."
        f'</figcaption>{rows}<div class="row axis"><div></div>'
        f'<div class="ticks">{ticks}</div><div></div></div></figure>\n'
    )


def by_case(results: Results, marks: dict[str, Mark]) -> str:
    """The geometric means on equal terms for each case by itself, folded away; nothing where there is one case only."""
    if len(results.cases) < 2:
        return ""
    rows = []
    for system in results.of_kind("baseline", "ablation"):
        cells = []
        for case in results.cases:
            equal = [
                ratio["mean"]
                for q_min, rate in product(case["q"], case["rates"])
                if results.on_equal_terms(setting := Setting(case["name"], q_min, rate), system)
                and (ratio := results.ratio(setting, system)) is not None
                and ratio["mean"] is not None
            ]
            mean = times(geometric_mean(equal)) if equal else NOTHING
            cells.append(f"<td>{mean} <small>of {plural(len(equal), 'setting')}</small></td>")
        rows.append(row(marks[system["name"]], cells))
    head = [case["name"] for case in results.cases]
    return f"<details><summary>the same case by case</summary>{table('ratios', head, rows)}</details>"


def _ratios(results: Results, system: System) -> list[float]:
    found = (results.ratio(setting, system) for setting in results.all_settings())
    return [ratio["mean"] for ratio in found if ratio is not None and ratio["mean"] is not None]


def _row(results: Results, system: System, ratios: list[float], x: Scale, mark: Mark) -> str:
    settings = sum(1 for _ in results.all_settings())
    line = results.headline.get(system["name"])
    equal = None if line is None else line["where_both_meet"]["scale"]["geomean"]
    every = None if line is None else line["where_both_serve"]["scale"]["geomean"]
    middle = _HEIGHT / 2
    grid = "".join(f"M{WIDTH * at:.0f} 0V{_HEIGHT}" for at, _ in x.ticks)
    drawn = f'<path class="grid" d="{grid}"/><path class="even" d="M{WIDTH * x.at(1.0):.0f} 0V{_HEIGHT}"/>'
    value = NOTHING
    if ratios:
        low, high = (WIDTH * x.at(end) for end in (min(ratios), max(ratios)))
        drawn += f'<path class="range {mark.css}" d="M{low:.0f} {middle:g}H{high:.0f}"/>'
        faint = "".join(f"M{WIDTH * x.at(ratio):.0f} {middle:g}h0" for ratio in ratios)
        drawn += f'<path class="faint {mark.css}" d="{faint}"/>'
    if every is not None:
        place = f"M{WIDTH * x.at(every):.0f} {middle:g}h0"
        drawn += f'<path class="ring {mark.css}" d="{place}"/><path class="hole" d="{place}"/>'
    if equal is not None:
        drawn += f'<path class="mean {mark.css}" d="M{WIDTH * x.at(equal):.0f} {middle:g}h0"/>'
        value = times(equal)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{value}">{drawn}</svg>'
    )
    counted = f"<small>{0 if line is None else line['where_both_meet']['scale']['count']} of {settings}</small>"
    return (
        f'<div class="row"><div class="name">{mark.named}</div><div class="strip">{svg}</div>'
        f'<div class="value">{value} {counted}</div></div>'
    )
