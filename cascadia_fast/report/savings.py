"""What the SLO scale of each system costs when ours serves it."""

from __future__ import annotations

from html import escape

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Results, Saving, System
from cascadia_fast.report.tables import row, table
from cascadia_fast.report.words import floor_text, listed
from cascadia_fast.summary_units import NOTHING, digits, dollars, plural


def savings(results: Results, systems: list[System], marks: dict[str, Mark]) -> str:
    """A sentence for each system and a table for each case."""
    if results.ours is None or not results.savings:
        return "<p>Without ours in the comparison, nothing is saved or lost.</p>"
    items = "".join(f"<li>{marks[system['name']].named}: {_said(results, system)}</li>" for system in systems)
    return f'<ul class="findings">{items}</ul>' + "".join(
        _of_case(results, case, systems, marks) for case in results.cases
    )


def _said(results: Results, system: System) -> str:
    rows = [
        saving
        for case in results.cases
        for q_min in case["q"]
        if (saving := results.savings.get((case["name"], q_min, system["name"]))) is not None
    ]
    known = [one["saving"] for one in rows if one["saving"] is not None]
    without_scale = sum(one["scale95"] is None for one in rows)
    unreached = len(rows) - len(known) - without_scale
    parts = []
    if known:
        said = f"attains its scale for {_less(sum(known) / len(known))}"
        if len(known) > 1:
            said += f" on average of {len(known)} comparisons"
        if max(known) > min(known):
            said += f", from {_less(max(known))} to {_less(min(known))}"
        parts.append(said)
    if unreached:
        parts.append(f"does not attain {'it' if known else 'its scale'} in {unreached}")
    if without_scale:
        parts.append(f"has nothing to attain in {without_scale}, where the system is not served")
    return f"ours {listed(parts)}." if parts else "not measured."


def _less(saving: float) -> str:
    if saving == 0:
        return "as much"
    share = digits(100 * abs(saving), places=2)
    return f"{share} % {'less' if saving >= 0 else 'more'}"


def _of_case(results: Results, case: Case, systems: list[System], marks: dict[str, Mark]) -> str:
    rows = []
    for system in systems:
        found = [results.savings.get((case["name"], q_min, system["name"])) for q_min in case["q"]]
        rows.append(row(marks[system["name"]], (_cell(saving, case) for saving in found)))
    title = f"<h3><bdi>{escape(case['name'])}</bdi> <small>of {plural(case['gpus'], 'GPU')}</small></h3>"
    return title + table("savings", map(floor_text, case["q"]), rows)


def _cell(saving: Saving | None, case: Case) -> str:
    """GPUs that ours and the system use, as bars of all GPUs, and what they cost."""
    if saving is None:
        return f'<td class="none">{NOTHING}</td>'
    if saving["scale95"] is None:
        return '<td class="none">not served</td>'
    if saving["gpus_used_ours"] is None or saving["gpus_used_system"] is None or saving["saving"] is None:
        return '<td class="none">not attained</td>'
    widths = [100 * count / case["gpus"] for count in (saving["gpus_used_ours"], saving["gpus_used_system"])]
    prices = saving["usd_ours"], saving["usd_system"]
    money = "" if None in prices else f"<small>{dollars(prices[0])} for {dollars(prices[1])} USD/h</small>"
    sign = "−" if saving["saving"] > 0 else "+" if saving["saving"] < 0 else "±"
    return (
        f"<td>{sign}{digits(100 * abs(saving['saving']), places=2)} % "
        f'<span class="soft">{digits(saving["gpus_used_ours"])} for {digits(saving["gpus_used_system"])} GPUs</span>'
        f'<div class="whole"><i style="width:{widths[0]:.0f}%"></i></div>'
        f'<div class="whole"><i class="theirs" style="width:{widths[1]:.0f}%"></i></div>{money}</td>'
    )
