"""What each part of ours is worth: ours with one thing changed, against ours."""

from __future__ import annotations

from html import escape

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.ratios import ratio_rows
from cascadia_fast.report.results import Results, System
from cascadia_fast.report.standing import standing
from cascadia_fast.report.words import listed, setting_text, times
from cascadia_fast.summary_units import plural


def ablations(results: Results, marks: dict[str, Mark]) -> str:
    """Sentences, in order of what they cost, and the picture."""
    ours, systems = results.ours, results.of_kind("ablation")
    if ours is None or not systems:
        return "<p>No ablation took part in this comparison.</p>"
    systems = sorted(systems, key=lambda system: -(_geomean(results, system) or 0.0))
    items = "".join(
        f"<li>{marks[system['name']].named}: {escape(_said(results, system, ours))}</li>" for system in systems
    )
    order = f"<p>{escape(_order(results, systems))}</p>"
    return f'{order}{ratio_rows(results, systems, marks)}<ul class="findings">{items}</ul>'


def _geomean(results: Results, system: System) -> float | None:
    line = results.headline.get(system["name"])
    return None if line is None else line["where_both_meet"]["scale"]["geomean"]


def _order(results: Results, systems: list[System]) -> str:
    known = [(system["title"], value) for system in systems if (value := _geomean(results, system)) is not None]
    if not known:
        return "In no setting are an ablation and ours both served on equal terms."
    said = [f"{title} {times(value)}" for title, value in known]
    return (
        "Smallest SLO scale over that of ours, in the geometric mean of the settings in which both are served "
        f"on equal terms, the dearest loss first: {', '.join(said)}."
    )


def _said(results: Results, system: System, ours: System) -> str:
    found = standing(results, system, ours)
    if not found.compared:
        return f"in none of {plural(found.settings, 'setting')} are both served without one missing the floor."
    parts = [f"worse than ours in {len(found.won)} of {plural(found.compared, 'setting')}", f"as good in {found.tied}"]
    if found.lost:
        setting, ratio = found.worst
        parts.append(f"better in {len(found.lost)} (at best {times(ratio)}: {setting_text(setting)})")
    else:
        parts.append("better in none")
    said = listed(parts)
    if found.only_ours:
        said += f"; it cannot serve {found.only_ours} that ours serves"
    if found.missed:
        said += f"; it misses the floor in {found.missed}"
    return f"{said}."
