"""Who wins by how much, and where not: sentences and a picture, all computed from the results."""

from __future__ import annotations

from html import escape

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.ratios import by_case, ratio_rows
from cascadia_fast.report.results import Figures, Results, Setting, Spread, System, overloaded, served
from cascadia_fast.report.standing import Standing, misses, standing
from cascadia_fast.report.throughput import rate_gain
from cascadia_fast.report.words import EQUAL, deadline_text, listed, setting_text, times
from cascadia_fast.summary_units import digits, percent, plural

# Mean qualities so near, in points, are said to be equal.
LEAST_GAP = 0.05


def headline(results: Results, marks: dict[str, Mark]) -> str:
    """The sentences and the picture."""
    ours, baselines = results.ours, results.of_kind("baseline")
    if ours is None:
        return "<p>Our own system took no part in this comparison; the tables below compare the others.</p>"
    said = f'<p class="lead">{escape(_winners(results, ours, baselines))}</p>' if baselines else ""
    said += f"<p>{escape(_own_faults(results, ours))}</p>"
    items = "".join(
        f"<li>{marks[system['name']].named}: {escape(lead(results, system))}"
        f"<small>{escape(details(results, system, ours))}</small></li>"
        for system in baselines
    )
    picture = ratio_rows(results, baselines, marks)
    return f'{said}{picture}<ul class="findings">{items}</ul>{by_case(results, marks)}'


def _winners(results: Results, ours: System, baselines: list[System]) -> str:
    """In how many settings which system is the tightest of those that are served and do not miss the floor."""
    wins = {system["name"]: 0 for system in (ours, *baselines)}
    shared, close, nobody = 0, 0, 0
    for setting in results.all_settings():
        scales = _fit(results, setting, (ours, *baselines))
        if not scales:
            nobody += 1
            continue
        least, own = min(scales.values()), scales.get(ours["name"])
        # Systems may find one and the same plan; ours comes first, and that it is not alone is said.
        best = [name for name, scale in scales.items() if scale == least]
        wins[best[0]] += 1
        shared += best[0] == ours["name"] and len(best) > 1
        close += best[0] != ours["name"] and own is not None and own <= least * (1 + EQUAL)
    settings = sum(wins.values()) + nobody
    mine = wins.pop(ours["name"])
    said = (
        f"In {mine} of {plural(settings, 'setting')} (a case, a quality floor and a rate), ours, {ours['title']}, has "
        "the smallest SLO scale of all systems that carry the rate and do not miss the floor"
    )
    if shared:
        said += f" ({'always' if shared == mine else f'in {shared} of them'} together with another)"
    titles = {system["name"]: system["title"] for system in baselines}
    others = [
        f"{titles[name]}{_on_assumption(results, name)} in {count}"
        for name, count in sorted(wins.items(), key=lambda win: -win[1])
        if count
    ]
    if others:
        said += f"; {listed(others)}"
    if close:
        said += f", of which ours comes within {percent(EQUAL)} in {close}"
    return said + (f"; in {nobody} no system does both." if nobody else ".")


def _on_assumption(results: Results, name: str) -> str:
    line = results.headline.get(name)
    return "" if line is None or line["assumes"] is None else " (by a signal of assumed accuracy)"


def _fit(results: Results, setting: Setting, systems: tuple[System, ...]) -> dict[str, float]:
    """Smallest scales of the systems that are served and do not miss the floor, in their order."""
    scales = {}
    for system in systems:
        group = results.group(setting, system)
        if group is not None and served(group) and not misses(group) and group["scale95"]["mean"] is not None:
            scales[system["name"]] = group["scale95"]["mean"]
    return scales


def _own_faults(results: Results, ours: System) -> str:
    """Where ours misses floors, is overloaded or has no plan."""
    groups = [results.group(setting, ours) for setting in results.all_settings()]
    known = [group for group in groups if group is not None]
    faults = []
    if missed := sum(map(misses, known)):
        faults.append(f"misses the floor in {missed}")
    if unsure := sum(group["meets"] == "unsure" for group in known):
        faults.append(f"comes out below the floor within the noise in {unsure}")
    if unstable := sum(map(overloaded, known)):
        faults.append(f"cannot carry the rate in {unstable}")
    if none := sum(group["status"] == "no_plan" for group in known):
        faults.append(f"has no plan in {none}")
    if not faults:
        return "Ours carries the rate and meets the floor in every setting."
    return f"Of {plural(len(known), 'setting')}, ours {listed(faults)}."


def lead(results: Results, system: System) -> str:
    """How the smallest SLO scale of a system compares with ours: on equal terms, then wherever both are served."""
    line = results.headline.get(system["name"])
    if line is None or line["where_both_serve"]["scale"]["geomean"] is None:
        return "in no setting are both served, so there is nothing to compare."
    both, equal = line["where_both_serve"], line["where_both_meet"]
    if equal["scale"]["geomean"] is None:
        return f"in no setting are both served on equal terms; by latency alone it {_figures(both)}."
    said = f"{_figures(equal)}, where both are served on equal terms"
    if equal["scale"]["count"] == both["scale"]["count"]:
        return f"{said}."
    return (
        f"{said}; {times(both['scale']['geomean'] or 1.0)} over all {both['scale']['count']} in which both are served."
    )


def _figures(figures: Figures) -> str:
    """Scale, p95 and quality against ours."""
    scale, p95, gap = figures["scale"], figures["p95"], figures["quality_gap"]
    said = f"{deadline_text(scale['geomean'] or 1.0)} ({_over(scale)})"
    if p95["geomean"] is not None:
        said += f", its p95 is {times(p95['geomean'])} ours"
    if gap is not None:
        said += f" and it answers {_points(gap)}"
    return said


def _points(gap: float) -> str:
    if abs(gap) < LEAST_GAP:
        return "as well"
    return f"{digits(abs(gap), places=2)} points {'better' if gap > 0 else 'worse'}"


def _over(spread: Spread) -> str:
    """What a mean is of."""
    if spread["count"] == 1 or spread["least"] is None or spread["largest"] is None:
        return f"in {plural(spread['count'], 'setting')}"
    ends = f"from {times(spread['least'])} to {times(spread['largest'])}"
    return f"geometric mean of {spread['count']} settings, {ends}"


def details(results: Results, system: System, ours: System) -> str:
    """What there is to it in both directions."""
    found = standing(results, system, ours)
    said = [text for text in (_wins(found), _rates(results, system, ours)) if text]
    return " ".join([*said, _troubles(found), *_assumed(results, system)])


def _assumed(results: Results, system: System) -> list[str]:
    """What its routing is simulated with: of a system that is better on the strength of it, that must be said."""
    line = results.headline.get(system["name"])
    return [] if line is None or line["assumes"] is None else [f"Assumed of it: {line['assumes']}."]


def _wins(found: Standing) -> str:
    """How often ours is better and worse, how often beyond the noise, and the worst of it."""
    if not found.compared:
        return ""
    several_seeds = any(ratio["low"] is not None for _, ratio in (*found.won, *found.lost))
    clear = sum(ratio["low"] is not None and ratio["low"] > 1 for _, ratio in found.won)
    said = f"Ours is better in {len(found.won)}"
    if found.won and several_seeds:
        said += f" ({clear} beyond the noise of the seeds)"
    if found.tied:
        said += f", within {percent(EQUAL)} of it in {found.tied}"
    said += f", worse in {len(found.lost) or 'none'}"
    if found.lost:
        setting, ratio = found.worst
        clear = sum(interval["high"] is not None and interval["high"] < 1 for _, interval in found.lost)
        known = f"{clear} beyond the noise of the seeds; " if several_seeds else ""
        said += f" ({known}at worst {times(ratio)}: {setting_text(setting)})"
    return f"{said}."


def _rates(results: Results, system: System, ours: System) -> str:
    gain = rate_gain(results, system, ours)
    if gain is None:
        return ""
    none = f"none of the rates that were simulated in {gain.none}"
    if not gain.count:
        return f"Within the scale that it needs at the middle rate, ours carries {none}."
    return (
        f"Within the scale that it needs at the middle rate, ours carries {times(gain.geomean)} that rate (geometric "
        f"mean of {gain.count}, from {times(gain.least)} to {times(gain.largest)}; of the rates that were simulated)"
        f"{f', and {none}' if gain.none else ''}."
    )


def _troubles(found: Standing) -> str:
    if found.none == found.settings:
        return f"Of {plural(found.settings, 'setting')} it has a plan in none."
    parts = [f"misses the floor in {found.missed}"] if found.missed else ["never misses the floor beyond the noise"]
    if found.none:
        parts.append(f"has no plan in {found.none}")
    if found.faster_below:
        parts[0] += f" (where it is faster than ours in {found.faster_below})"
    if found.unsure:
        parts.append(f"comes out below it within the noise in {found.unsure}")
    if found.only_ours:
        parts.append(f"cannot serve {found.only_ours} that ours serves")
    if found.only_theirs:
        parts.append(f"serves {found.only_theirs} that ours cannot")
    return f"Of {plural(found.settings, 'setting')} it {listed(parts)}."
