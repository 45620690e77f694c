"""GPUs and reach of every model as stacked bars, a row for each system, at the middle rate of each case."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Group, Results, Setting
from cascadia_fast.report.words import floor_text, rate_text
from cascadia_fast.summary_units import NOTHING, digits

TONES = 8  # that the page has for models, from light to dark
# A segment narrower than this share of its bar has no room for its number.
_ROOM = 0.12


def allocations(results: Results, marks: dict[str, Mark]) -> str:
    """Ours over the floors, then all systems at each floor, the middle one unfolded."""
    return "".join(_of_case(results, case, marks) for case in results.cases)


def _of_case(results: Results, case: Case, marks: dict[str, Mark]) -> str:
    title = f"<h3><bdi>{escape(case['name'])}</bdi> <small>{escape(rate_text(case['middle_rate']))}</small></h3>"
    models = "".join(
        f'<span><i class="{_tone(place, len(case["models"]))}">{place + 1}</i><bdi>{escape(model)}</bdi></span>'
        for place, model in enumerate(case["models"])
    )
    widest = _most_visits(results, case)
    parts = [f'{title}<div class="legend models">{models}<span><i class="idle"></i>idle</span></div>']
    settings = [Setting(case["name"], q_min, case["middle_rate"]) for q_min in case["q"]]
    if results.ours is not None:
        found = [(floor_text(setting.q_min), results.group(setting, results.ours)) for setting in settings]
        parts.append(_block(marks[results.ours["name"]].named, found, case, widest))
    for setting in settings:
        found = [(marks[system["name"]].named, results.group(setting, system)) for system in results.systems]
        is_open = " open" if setting == settings[len(settings) // 2] else ""
        named = f"<summary>all systems, {escape(floor_text(setting.q_min))}</summary>"
        parts.append(f"<details{is_open}>{named}{_block('', found, case, widest)}</details>")
    return "".join(parts)


def _block(title: str, rows: Sequence[tuple[str, Group | None]], case: Case, widest: float) -> str:
    drawn = "".join(_row(name, group, case, widest) for name, group in rows)
    return (
        f'<div class="bars"><div class="row head"><div>{title}</div><div>GPUs of each model</div>'
        f"<div>% of requests that reach it</div></div>{drawn}</div>"
    )


def _most_visits(results: Results, case: Case) -> float:
    """Visits per request of the system with most of them: as wide as the bars of reach are."""
    groups = (
        results.group(Setting(case["name"], q_min, case["middle_rate"]), system)
        for q_min in case["q"]
        for system in results.systems
    )
    return max([1.0, *(sum(group["reach"]) for group in groups if group and group["reach"])])


def _row(name: str, group: Group | None, case: Case, widest: float) -> str:
    if group is None or group["gpus_by_model"] is None:
        return f'<div class="row"><div class="name">{name}</div><div class="soft">no plan</div><div></div></div>'
    counts, reach = group["gpus_by_model"], group["reach"] or []
    gpus = _bar(counts, case["gpus"], [digits(count) for count in counts], case["models"], "GPUs", idle=True)
    shares = [digits(100 * share, places=2) for share in reach]
    reached = _bar(reach, widest, shares, case["models"], "% of requests", idle=False) if reach else NOTHING
    return f'<div class="row"><div class="name">{name}</div><div>{gpus}</div><div>{reached}</div></div>'


def _bar(values: Sequence[float], whole: float, texts: list[str], models: list[str], unit: str, idle: bool) -> str:
    """Segments in the order of the models, and their numbers below."""
    segments = "".join(
        f'<i class="{_tone(place, len(values))}" style="width:{100 * value / whole:.1f}%">'
        f"{text if value >= _ROOM * whole else ''}</i>"
        for place, (value, text) in enumerate(zip(values, texts, strict=True))
        if value > 0
    )
    said = ", ".join(f"{model}: {text}" for model, text in zip(models, texts, strict=True))
    css = "bar idle" if idle else "bar"
    return (
        f'<div class="{css}" role="img" aria-label="{escape(said)} {unit}">{segments}</div>'
        f"<small>{' / '.join(texts)}</small>"
    )


def _tone(place: int, models: int) -> str:
    """Tones as far apart as can be; where models outnumber them, neighbours share one and differ by hatching."""
    if models <= TONES:
        return f"m{round(place * (TONES - 1) / max(1, models - 1))}"
    return f"m{place * TONES // models}" + (" hatched" if place % 2 else "")
