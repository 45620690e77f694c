"""An explanation as text for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from cascadia_fast.summary_blocks import Block, plain, show
from cascadia_fast.summary_layout import Table, to_ascii
from cascadia_fast.summary_units import (
    NOTHING,
    digits,
    dollars,
    duration,
    number,
    objective_text,
    percent,
)

if TYPE_CHECKING:
    from cascadia_fast.explaining.bottleneck import Constraint
    from cascadia_fast.explaining.explanation import Alternative, Explanation, Outcome

# More rows than a screen has help nobody.
MOST_ROWS = 12
# Less than this, relatively, is no difference to anybody.
_SAME = 5e-4


def text_of(explanation: Explanation, width: int = 100, ascii_only: bool = False) -> str:
    """Plain text of an explanation, wrapped at `width` columns."""
    text = plain(blocks_of(explanation), width)
    return to_ascii(text) if ascii_only else text


def write(explanation: Explanation, file: IO[str]) -> None:
    """Write to `file`: tables drawn as wide as the terminal on one, plain text elsewhere."""
    show(blocks_of(explanation), file)


def blocks_of(explanation: Explanation) -> list[Block]:
    """What an explanation says, in order."""
    objective = explanation.objective
    reached = objective_text(objective, explanation.chosen.objective_value)
    blocks: list[Block] = [
        f"Plan {explanation.plan_id}, objective {objective}: {reached}",
        _listed("What holds it back:", explanation.bottleneck.why),
        _constraints(explanation.constraints),
    ]
    if explanation.planned_again is not None:
        now = objective_text(objective, explanation.planned_again.objective_value)
        blocks.append(
            f"Planned again, this problem now comes to {now}: the plan is of another version, method or time limit. "
            "What follows is compared with that"
        )
    blocks += ["What a little more, or less, would buy:", _what_ifs(explanation)]
    refused = [f"{found.change}: no plan, {found.reason}" for found in explanation.what_ifs if found.best is None]
    if refused:
        blocks.append(_listed("Without a plan:", tuple(refused)))
    others = _others(explanation)
    if others:
        blocks += ["The best plans not chosen:", _alternatives(explanation, others[:MOST_ROWS])]
    if len(others) > MOST_ROWS:
        blocks.append(f"The {len(others) - MOST_ROWS:,} next best are in the JSON")
    without = _without_plan(explanation.alternatives)
    if without:
        blocks.append(_listed("Not to be had:", without))
    blocks.append(_listed("What is proved:", explanation.certificate))
    return blocks


def _listed(title: str, sentences: tuple[str, ...]) -> str:
    return "\n".join([title, *(f"- {sentence}" for sentence in sentences)])


def _constraints(constraints: tuple[Constraint, ...]) -> Table:
    rows = tuple(
        (found.what, _amount(found, found.limit), _amount(found, found.reached), _amount(found, found.left))
        for found in constraints
    )
    return Table(("constraint", "limit", "reached", "left"), rows, frozenset({"constraint"}))


def _amount(constraint: Constraint, value: float | None) -> str:
    if value is None:
        return NOTHING
    if constraint.kind == "latency":
        return duration(value) if value > 0 else "0 s"
    if constraint.kind == "utilization":
        return percent(value)
    if constraint.kind == "cost":
        return dollars(value)
    return f"{value:,.0f}" if constraint.kind == "gpus" else number(value)


def _what_ifs(explanation: Explanation) -> Table:
    base = explanation.base
    found = [("as planned", base)]
    found += [(what_if.change, what_if.best) for what_if in explanation.what_ifs if what_if.best is not None]
    header = ("change", *_header(explanation), "difference")
    rows = [
        (change, *_row(explanation, outcome), _difference(base.objective_value, outcome.objective_value))
        for change, outcome in found
    ]
    if any(outcome.models != base.models for _, outcome in found):
        header = (*header, "models")
        rows = [(*row, _cascade(outcome.models)) for row, (_, outcome) in zip(rows, found, strict=True)]
    return Table(header, tuple(rows), frozenset({"change", "models"}))


def _header(explanation: Explanation) -> tuple[str, ...]:
    rate = ("rate",) if explanation.objective == "max_rate" else ()
    return (*rate, "p95", "quality", "GPUs", "of each model", "USD/h")


def _row(explanation: Explanation, found: Outcome) -> tuple[str, ...]:
    objective = explanation.objective
    rate = (objective_text(objective, found.objective_value),) if objective == "max_rate" else ()
    return (
        *rate,
        duration(found.latency_s),
        number(found.quality),
        f"{found.gpus:,}",
        " / ".join(f"{gpus:,}" for gpus in found.stage_gpus),
        dollars(found.usd_per_hour),
    )


def _difference(base: float | None, value: float | None) -> str:
    if base is None or value is None or base == 0:
        return NOTHING
    change = value / base - 1
    if abs(change) < _SAME:
        return "none"
    return f"{percent(abs(change))} {'more' if change > 0 else 'less'}"


def _others(explanation: Explanation) -> list[tuple[str, Outcome]]:
    """The plans not chosen by name, the best first."""
    sign = -1.0 if explanation.objective == "max_rate" else 1.0

    def rank(found: tuple[str, Outcome]) -> float:
        value = found[1].objective_value
        return math.inf if value is None else sign * value

    named = [(_named(found), found.best) for found in explanation.alternatives if found.best is not None]
    return sorted(named, key=rank)


def _alternatives(explanation: Explanation, others: Sequence[tuple[str, Outcome]]) -> Table:
    rows = tuple((name, *_row(explanation, found), _why_not(explanation, found)) for name, found in others)
    header = ("instead", *_header(explanation), "why not")
    return Table(header, rows, frozenset({"instead", "why not"}))


def _without_plan(alternatives: tuple[Alternative, ...]) -> tuple[str, ...]:
    """What has no plan, by the reason; what follows a semicolon in one differs from case to case."""
    by_reason: dict[tuple[str | None, str], list[str]] = {}
    for found in alternatives:
        if found.best is None:
            reason = (found.reason or "no plan").split(";")[0]
            name = _cascade(found.models) if found.kind == "models" else found.shape or ""
            by_reason.setdefault((found.station, reason), []).append(name)
    return tuple(
        f"{'' if station is None else f'{station} in '}{', '.join(names)}: {reason}"
        for (station, reason), names in by_reason.items()
    )


def _named(found: Alternative) -> str:
    if found.kind == "models":
        return _cascade(found.models)
    return f"{found.station} in {found.shape}"


def _cascade(models: tuple[str, ...]) -> str:
    return f"{models[0]} alone" if len(models) == 1 else " > ".join(models)


def _why_not(explanation: Explanation, found: Outcome) -> str:
    base, value = explanation.base.objective_value, found.objective_value
    if value is None or not base:
        return NOTHING
    ratio = value / base
    if abs(ratio - 1) < _SAME:
        return "as good; what breaks ties decided"
    better = ratio > 1 if explanation.objective == "max_rate" else ratio < 1
    unit = {"min_cost": "cost", "max_rate": "rate", "min_gpus": "GPUs"}.get(explanation.objective, "p95")
    return f"{digits(ratio)} times the {unit}{', which is better' if better else ''}"
