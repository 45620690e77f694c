"""What was compared, on what, and how: the facts, the pages of the systems, and the command."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Results, System
from cascadia_fast.report.words import floor_text
from cascadia_fast.summary_units import NOTHING, OBJECTIVES, digits, duration, number, plural


def facts(results: Results) -> str:
    """The size of the comparison."""
    made, settings = results.made_by, results.settings
    cells = len(results.cells)
    said = {
        "Systems": f"{len(results.systems)}",
        "Cases": f"{len(results.cases)}",
        "Simulated": f"{plural(cells, 'run')} of {settings['requests']:,} requests",
        "Seeds": f"{len(settings['seeds'])}",
        "Made by": f"cascadia-fast {made['version']}",
        "On": f"{made['date']}, in {_spent(made)} on {plural(made['cores'], 'core')}",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in said.items())


def _spent(made: dict[str, Any]) -> str:
    """The time it took; where most of it was spent in an earlier run, all of it."""
    if not made["resumed"]:
        return duration(made["seconds"])
    return f"{duration(made['cell_seconds'])} of computing, resumed once interrupted,"


def made_by(results: Results) -> str:
    """The command, for below each section."""
    return f'<p class="made"><code>{escape(results.made_by["command"])}</code></p>'


def case_table(results: Results) -> str:
    """The problems and their traffic."""
    return "".join(_case(case) for case in results.cases)


def _case(case: Case) -> str:
    said = {
        "File": case["file"],
        "Models": " > ".join(case["models"]),
        "GPUs": f"{case['gpus']:,} {case['gpu']}",
        "Scored requests": f"{case['scored_requests']:,} (independent: {digits(case['independent_requests'])})",
        "Rate": f"{number(case['rate_per_s'])} requests/s; compared at {', '.join(map(number, case['rates']))}",
        "CV of the gaps": NOTHING if case["cv"] is None else number(case["cv"]),
        "Dispersion": _dispersion(case),
        "Judge": case["judge"],
        "Floors": ", ".join(map(floor_text, case["q"])),
        "Ours minimises": OBJECTIVES.get(case["objective"], case["objective"]),
        "Reference": case["reference"],
    }
    items = "".join(f"<div><dt>{name}</dt><dd><bdi>{escape(value)}</bdi></dd></div>" for name, value in said.items())
    return (
        f"<h3><bdi>{escape(case['name'])}</bdi> <small><bdi>{escape(case['title'])}</bdi></small></h3><dl>{items}</dl>"
    )


def _dispersion(case: Case) -> str:
    if case["dispersion"] is None or case["dispersion_window_s"] is None:
        return NOTHING
    return f"{number(case['dispersion'])} over {duration(case['dispersion_window_s'])}"


def notes(results: Results) -> str:
    """What the results cannot claim, and what their intervals are of."""
    return "".join(f'<p class="note">{escape(note)}</p>' for note in (*results.notes, results.settings["intervals"]))


def method(results: Results) -> str:
    """How everything was done, a sentence each."""
    sentences: list[str] = results.settings["method"]
    return f"<h3>Method</h3><ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def system_pages(results: Results, marks: dict[str, Mark]) -> str:
    """What is said of every system, folded away; systems that share a page share the fold."""
    sharing: dict[tuple[str, str], list[System]] = {}
    for system in results.systems:
        sharing.setdefault((system["source"], system["page"]), []).append(system)
    return "".join(_page(source, page, systems, marks) for (source, page), systems in sharing.items())


def _page(source: str, page: str, systems: list[System], marks: dict[str, Mark]) -> str:
    names = " · ".join(
        f"{marks[system['name']].named} <small><code>{escape(system['name'])}</code></small>" for system in systems
    )
    said = f"<p><small>{escape(source)}</small></p>" if source else ""
    return f'<details class="page"><summary>{names}</summary>{said}{_text(page)}</details>'


def _text(page: str) -> str:
    """Paragraphs and lists of a docstring; its line breaks mean nothing."""
    blocks = re.split(r"\n\s*\n", page.strip())
    return "".join(_block([line.strip() for line in block.splitlines()]) for block in blocks)


def _block(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        if re.match(r"[*-] ", line):
            items.append(line[2:])
        elif items:
            items[-1] += f" {line}"
        else:
            return f"<p>{_inline(' '.join(lines))}</p>"
    return f"<ul>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</ul>"


def _inline(text: str) -> str:
    code = re.sub(r"(`+)(.+?)\1", r"<code>\2</code>", escape(text))
    return re.sub(r"\*(\w[^*]*)\*", r"<em>\1</em>", code)
