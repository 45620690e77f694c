"""Every run, a row for all seeds of a system in a setting, folded away; and why some have no plan."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from cascadia_fast.report.marks import Mark
from cascadia_fast.report.results import Case, Results, Setting
from cascadia_fast.report.tables import row, table
from cascadia_fast.report.words import floor_text
from cascadia_fast.summary_units import NOTHING, digits, duration, number

_HEAD = (
    "rate",
    "status",
    "SLO scale",
    "p95, s",
    "quality",
    "USD per 1,000",
    "routing of the first seed",
    "GPUs",
    "planned in",
)


def cells(results: Results, marks: dict[str, Mark]) -> str:
    """A folded table for each case and floor."""
    runs: dict[tuple[Setting, str], list[dict[str, Any]]] = {}
    for cell in results.cells:
        if cell["purpose"] == "main":
            setting = Setting(cell["case"], cell["q_min"], cell["rate_per_s"])
            runs.setdefault((setting, cell["system"]), []).append(cell)
    return "".join(_of_floor(results, case, q_min, runs, marks) for case in results.cases for q_min in case["q"])


def _of_floor(
    results: Results,
    case: Case,
    q_min: float,
    runs: dict[tuple[Setting, str], list[dict[str, Any]]],
    marks: dict[str, Mark],
) -> str:
    rows = [
        _row(marks[system["name"]], rate, of_setting)
        for rate in case["rates"]
        for system in results.systems
        if (of_setting := runs.get((Setting(case["name"], q_min, rate), system["name"])))
    ]
    title = f"<summary><bdi>{escape(case['name'])}</bdi>, {escape(floor_text(q_min))}</summary>"
    return f"<details>{title}{table('cells', _HEAD, rows)}</details>"


def _row(mark: Mark, rate: float, runs: Sequence[dict[str, Any]]) -> str:
    """Values of the seeds side by side."""
    measured = [cell["measured"] or {} for cell in runs]
    plan = runs[0]["plan"]
    statuses = " ".join(dict.fromkeys(cell["status"] for cell in runs))
    whys = dict.fromkeys(cell["why"] for cell in runs if cell["why"])
    gpus = " / ".join(f"{stage['gpus']:,}" for stage in plan["stages"]) if plan else NOTHING
    texts = (
        digits(rate, places=4),
        statuses,
        _of_seeds(measured, "scale95"),
        _of_seeds(measured, "p95_s"),
        _of_seeds(measured, "quality"),
        _of_seeds(measured, "usd_per_1000"),
        "; ".join(whys) if not plan else plan["routing"],
        gpus,
        duration(plan["seconds"]) if plan else NOTHING,
    )
    return row(mark, (f"<td>{escape(text)}</td>" for text in texts))


def _of_seeds(measured: Sequence[dict[str, Any]], name: str) -> str:
    values = [one.get(name) for one in measured]
    texts = [NOTHING if value is None else number(value) for value in values]
    return " ".join(texts) if any(value is not None for value in values) else NOTHING
