"""A comparison as text for people: one table per case, and who is how far from ours over everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cascadia_fast.comparison.estimates import log_mean_of
from cascadia_fast.report.words import EQUAL, deadline_text
from cascadia_fast.summary_blocks import Block
from cascadia_fast.summary_layout import Table
from cascadia_fast.summary_units import NOTHING, digits, duration, plain, plural

OURS = "ours"
# With more floors than these there is no room for p95 beside every scale.
BOTH_FIGURES = 2
_LEGEND = (
    "A scale is the smallest deadline that 95 % of the requests meet, over their own latency alone on the largest "
    "model; p95 is one deadline for all requests, which is what ours makes least. >: still growing when the run ends "
    "(overload in some seed). !: misses the quality floor; ?: below it, within the noise. keeps up: in how many "
    "settings of floor and rate no seed is in overload. vs ours: over ours where both keep up, in the geometric mean "
    "over settings. ours saves: the least cost at which ours attains their scale, against the least at which they do, "
    "in the mean over the floors where ours does, and how many these are."
)


def blocks_of(results: Mapping[str, Any]) -> list[Block]:
    """Return what the text of a results.json says, in order."""
    settings = results["settings"]
    blocks: list[Block] = [
        f"{plural(len(results['systems']), 'system')}, {plural(len(results['cases']), 'case')}, "
        f"{plural(len(settings['seeds']), 'seed')}, {settings['requests']:,} requests per trial; "
        f"{plural(len(results['cells']), 'trial')}"
    ]
    for case in results["cases"]:
        blocks += [_case_title(case), _figures(results, case), _against(results, case), *_without_plan(results, case)]
    return [*blocks, *_assumed(results), _LEGEND, *results["notes"]]


def _assumed(results: Mapping[str, Any]) -> Iterator[str]:
    """Who is better than ours on the strength of an assumption, and what it is."""
    titles = {system["name"]: system["title"] for system in results["systems"]}
    better: dict[str, list[Mapping[str, Any]]] = {}
    for line in results["headline"]:
        both = line["where_both_serve"]["scale"]
        if line["assumes"] is not None and both["count"] and both["geomean"] < 1 - EQUAL:
            better.setdefault(line["assumes"], []).append(line)
    for assumption, lines in better.items():
        said = [
            f"{titles[line['system']]} {deadline_text(both['geomean'])} where both keep up "
            f"({plural(both['count'], 'setting')})."
            for line in lines
            for both in [line["where_both_serve"]["scale"]]
        ]
        yield f"{' '.join(said)} Assumed of {'it' if len(said) == 1 else 'them'}: {assumption}."


def _case_title(case: Mapping[str, Any]) -> str:
    figures = "smallest SLO scale and p95" if len(case["q"]) <= BOTH_FIGURES else "smallest SLO scale"
    return (
        f"{printable(case['name'])}: {case['title']}; {figures} by quality floor, at {digits(case['middle_rate'])} "
        "requests/s"
    )


def _figures(results: Mapping[str, Any], case: Mapping[str, Any]) -> Table:
    """What every system comes to at the middle rate, by floor."""
    groups = {(group["system"], group["q_min"], group["rate_per_s"]): group for group in _of(results["groups"], case)}
    figures = {"": scale_text, " p95": p95_text} if len(case["q"]) <= BOTH_FIGURES else {"": scale_text}
    rows = [
        (
            system["name"],
            *(
                text(groups[system["name"], q_min, case["middle_rate"]])
                for q_min in case["q"]
                for text in figures.values()
            ),
        )
        for system in results["systems"]
    ]
    header = ("system", *(f"q {plain(q_min)}{figure}" for q_min in case["q"] for figure in figures))
    return Table(header, tuple(rows), frozenset({"system"}))


def _against(results: Mapping[str, Any], case: Mapping[str, Any]) -> Table:
    """How often every system keeps up, and how it compares with ours over all settings."""
    rows = [
        (system["name"], _keeps_up(results, case, system["name"]), *_versus(results, case, system["name"]))
        for system in results["systems"]
    ]
    return Table(
        ("system", "keeps up", "scale vs ours", "p95 vs ours", "ours saves"), tuple(rows), frozenset({"system"})
    )


def _without_plan(results: Mapping[str, Any], case: Mapping[str, Any]) -> list[str]:
    """Why systems have no plan: the first reason, and whose it is."""
    why: dict[str, str] = {}
    for group in _of(results["groups"], case):
        if group["status"] == "no_plan":
            why.setdefault(group["system"], group["why"])
    reasons: dict[str, list[str]] = {}
    for system, reason in why.items():
        reasons.setdefault(reason, []).append(system)
    return [f"No plan of {', '.join(systems)}: {printable(reason)}" for reason, systems in reasons.items()]


def scale_text(group: Mapping[str, Any]) -> str:
    """The smallest SLO scale of a group, with its marks."""
    return _figure(group, "scale95", digits)


def p95_text(group: Mapping[str, Any]) -> str:
    """The p95 of a group, with its marks."""
    return _figure(group, "p95_s", duration)


def _figure(group: Mapping[str, Any], name: str, text: Callable[[float], str]) -> str:
    mark = {"no": " !", "unsure": " ?"}.get(group["meets"], "")
    if group["status"] == "no_plan":
        return "no plan"
    mean = group[name]["mean"]
    if mean is None:
        return f"too few served{mark}"
    return f"{'> ' if group['lower_bound'] else ''}{text(mean)}{mark}"


def _versus(results: Mapping[str, Any], case: Mapping[str, Any], system: str) -> tuple[str, str, str]:
    """Scale and p95 over ours, where both keep up, and what ours saves."""
    if system == OURS:
        return "", "", ""
    pairs = [pair for pair in _of(results["ratios"], case) if pair["system"] == system and pair["bound"] == "exact"]
    scale, p95 = (
        [pair[name]["mean"] for pair in pairs if pair[name]["mean"] is not None]
        for name in ("scale95_over_ours", "p95_over_ours")
    )
    return _times(scale), _times(p95), _saved(results, case, system)


def _times(ratios: Sequence[float]) -> str:
    found = log_mean_of(ratios)
    return NOTHING if found is None else f"{digits(found.mean)} ×"


def _keeps_up(results: Mapping[str, Any], case: Mapping[str, Any], system: str) -> str:
    """In how many of the settings."""
    statuses = [group["status"] for group in _of(results["groups"], case) if group["system"] == system]
    return f"{statuses.count('served')}/{len(statuses)}"


def _saved(results: Mapping[str, Any], case: Mapping[str, Any], system: str) -> str:
    """What ours saves at their scale, in the mean over the floors at which it attains it, and how many these are."""
    shares = [one["saving"] for one in _of(results["savings"], case) if one["system"] == system]
    known = [share for share in shares if share is not None]
    if not known:
        return NOTHING
    return f"{100 * sum(known) / len(known):.0f} % ({len(known)}/{len(shares)})"


def _of(items: Sequence[Mapping[str, Any]], case: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item for item in items if item["case"] == case["name"]]


def printable(name: str) -> str:
    """A name as a terminal can show it: what would move the cursor or hide text is escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in name)
