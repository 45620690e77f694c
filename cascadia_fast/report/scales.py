"""The smallest SLO scale of every system: a table for each case and rate, a column for each floor."""

from __future__ import annotations

from html import escape

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Group, Results, Setting, overloaded, served
from cascadia_fast.report.tables import row, table
from cascadia_fast.report.words import floor_text, listed, meets_mark, range_text, rate_text
from cascadia_fast.summary_units import NOTHING, digits, duration, number


def scale_tables(results: Results, marks: dict[str, Mark]) -> str:
    """All tables; those of other rates than the middle one folded away."""
    return "".join(_of_case(results, case, marks) for case in results.cases)


def _of_case(results: Results, case: Case, marks: dict[str, Mark]) -> str:
    parts = [f"<h3><bdi>{escape(case['name'])}</bdi> <small>{escape(rate_text(case['middle_rate']))}</small></h3>"]
    for rate in sorted(case["rates"], key=lambda rate: rate != case["middle_rate"]):
        table = _table(results, case, rate, marks)
        if rate == case["middle_rate"]:
            parts.append(table)
        else:
            parts.append(f"<details><summary>{escape(rate_text(rate))}</summary>{table}</details>")
    parts += [f'<p class="note">{reason}</p>' for reason in _no_plans(results, case, marks)]
    return "".join(parts)


def _no_plans(results: Results, case: Case, marks: dict[str, Mark]) -> list[str]:
    """Why systems have no plan, each reason once."""
    floors: dict[tuple[str, str], set[float]] = {}
    for group in results.groups.values():
        if group["case"] == case["name"] and group["status"] == "no_plan" and group["why"]:
            floors.setdefault((group["system"], group["why"]), set()).add(group["q_min"])
    said = {key: escape(listed([floor_text(q_min) for q_min in sorted(found)])) for key, found in floors.items()}
    return [f"No plan: {marks[system].named}, {said[system, why]}: {escape(why)}" for system, why in floors]


def _table(results: Results, case: Case, rate: float, marks: dict[str, Mark]) -> str:
    settings = [Setting(case["name"], q_min, rate) for q_min in case["q"]]
    best = {setting: _best(results, setting) for setting in settings}
    rows = []
    for system in results.systems:
        cells = [_cell(results.group(setting, system), best[setting]) for setting in settings]
        rows.append(row(marks[system["name"]], cells))
    return table("scales", map(floor_text, case["q"]), rows)


def _best(results: Results, setting: Setting) -> float | None:
    """The smallest scale among the systems that are served and do not miss the floor."""
    found = (results.group(setting, system) for system in results.systems)
    fit = [group["scale95"]["mean"] for group in found if group and served(group) and group["meets"] != "no"]
    return min((scale for scale in fit if scale is not None), default=None)


def _cell(group: Group | None, best: float | None) -> str:
    if group is None:
        return f'<td class="none">{NOTHING}</td>'
    if group["status"] == "no_plan":
        return f'<td class="none">no plan<small>{_share_of_seeds(group)}</small></td>'
    scale, mark = group["scale95"]["mean"], meets_mark(group)
    if overloaded(group):
        bound = "" if scale is None else f"&gt; {digits(scale, zeros=True)} "
        share = _share_of_seeds(group) or "overload"
        return f'<td class="unstable"{_title(group)}>{bound}▲ {mark}<small>{share}</small></td>'
    if scale is None:
        return f'<td class="none"{_title(group)}>too few served {mark}</td>'
    best_of_all = ' class="best"' if scale == best and group["meets"] != "no" else ""
    small = " · ".join(text for text in (range_text(group["scale95"]), _p95(group)) if text)
    return f"<td{best_of_all}{_title(group)}>{digits(scale, zeros=True)} {mark}<small>{small}</small></td>"


def _share_of_seeds(group: Group) -> str:
    """In how many seeds the worst happens, where it is not in all."""
    count = group["statuses"][group["status"]]
    return "" if count == group["seeds"] else f"{count} of {group['seeds']} seeds"


def _p95(group: Group) -> str:
    """A latency whose unit stays on its line."""
    return "" if group["p95_s"]["mean"] is None else duration(group["p95_s"]["mean"]).replace(" ", "\N{NO-BREAK SPACE}")


def _title(group: Group) -> str:
    """What else is known, shown when pointed at."""
    said = []
    if group["quality"]["mean"] is not None:
        said.append(f"quality {number(group['quality']['mean'])}")
    if group["ttft_p95_s"]["mean"] is not None:
        said.append(f"first token p95 {duration(group['ttft_p95_s']['mean'])}")
    return f' title="{", ".join(said)}"' if said else ""
