"""Where a plan sends requests, in words: thresholds, a router, or gears."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from cascadia_fast.summary_units import duration, number, plural

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.blueprint_routing import Gear, Router, Signal

# No threshold interval narrower than this is worth a word.
_WIDE_POINTS = 1.0


def routing_facts(plan: Plan) -> list[tuple[str, str]]:
    """Every line with its label; lines that belong to the one before have none."""
    routing = plan.routing
    if routing.router is not None and routing.signal is not None:
        return [("router", _router(plan, routing.router, routing.signal))]
    if routing.gears:
        return _gears(plan)
    lines = list(_thresholds(plan))
    if routing.signal is not None and lines:
        lines.append(f"{_learned(routing.signal)}; it takes no time and costs nothing")
    return [("" if place else "thresholds", line) for place, line in enumerate(lines)]


def routing_text(plan: Plan) -> str:
    """The routing in one short line, such as ``accept at 87 / never``; stages by their numbers in the cascade."""
    routing = plan.routing
    if routing.router is not None and routing.signal is not None:
        what = _SIGNALS[routing.signal.kind]
        parts = [_named(_visited(plan, path)) for path in routing.router.paths]
        cuts = [number(cut) for cut in routing.router.cuts]
        return f"{what}: {parts[0]}" + "".join(f" | {cut} | {part}" for cut, part in zip(cuts, parts[1:], strict=True))
    if routing.gears:
        return f"{plural(len(routing.gears), 'gear')}: " + "; ".join(_gear(plan, gear) for gear in routing.gears)
    if not routing.thresholds:
        return "one model"
    learned = "" if routing.signal is None else f"{_SIGNALS[routing.signal.kind]}: "
    return f"{learned}accept at {_levels(routing.thresholds)}"


_SIGNALS = {
    "learned_score": "learned score",
    "win_probability": "probability that the largest model wins",
    "verification": "verification by stage 1",
}


def _thresholds(plan: Plan) -> Iterator[str]:
    pairs = zip(plan.routing.thresholds, plan.routing.threshold_intervals, strict=True)
    for stage, (threshold, interval) in zip(plan.stages, pairs, strict=False):
        text = "no answer" if threshold == math.inf else f"answers scored {number(threshold)} or more"
        yield f"stage {stage.index + 1} keeps {text}{_alike(*interval)}"


def _alike(low: float | None, high: float) -> str:
    """Which other thresholds route the scored requests alike, where there is some room."""
    start, end = max(low or 0.0, 0.0), min(high, 100.0)
    if end - start <= _WIDE_POINTS:
        return ""
    above = f" above {number(start)}" if start > 0 else ""
    below = f" up to {number(end)}" if end < 100 else ""
    return f" (the same for any{above}{below})" if above or below else " (the same for any)"


def _learned(signal: Signal) -> str:
    return f"scores are those of a learned scorer, simulated with AUC {number(signal.auc)}"


def _router(plan: Plan, router: Router, signal: Signal) -> str:
    """By what requests are sent, and which where."""
    if signal.kind == "verification":
        checker = f"stage {plan.stages[0].index + 1}"
        what = f"the share of {plural(signal.votes, 'vote')} of {checker} for its own answer"
    else:
        what = "the probability that the largest model answers better than the smallest"
    ends = [-math.inf, *router.cuts, math.inf]
    sent = [
        f"{_named(_visited(plan, path), long=True)} {_range(low, high)}".rstrip()
        for path, (low, high) in zip(router.paths, pairwise(ends), strict=True)
        if low < high
    ]
    return f"by {what}, simulated with AUC {number(signal.auc)}: {', '.join(sent)}"


def _range(low: float, high: float) -> str:
    if low == -math.inf:
        return f"below {number(high)}" if high < math.inf else ""
    return f"from {number(low)}" if high == math.inf else f"from {number(low)} to {number(high)}"


def _gears(plan: Plan) -> list[tuple[str, str]]:
    gears, switching = plan.routing.gears, plan.routing.switching
    facts = [("" if place else "gears", _gear(plan, gear)) for place, gear in enumerate(gears)]
    if switching is not None and len(gears) > 1:
        facts.append(
            (
                "",
                f"by the rate of the last {duration(switching.window_s)}; a gear for less load waits until the rate is "
                f"{number(switching.queue_factor)} times the requests that queue for the first stage",
            )
        )
    return facts


def _gear(plan: Plan, gear: Gear) -> str:
    """Such as ``up to 1.25/s stages 1-2-3 at 87 / never``."""
    rates = "beyond" if gear.up_to_per_s is None else f"up to {number(gear.up_to_per_s)}/s"
    if len(plan.routing.gears) == 1:
        rates = "at any rate"
    named = _named([plan.stages[stage].index + 1 for stage in gear.stages])
    return f"{rates} {named}" + (f" at {_levels(gear.thresholds)}" if gear.thresholds else "")


def _visited(plan: Plan, path: int) -> list[int]:
    """The stages on a path by their numbers in the cascade."""
    return [stage.index + 1 for bit, stage in enumerate(plan.stages) if path >> bit & 1]


def _named(stages: Sequence[int], long: bool = False) -> str:
    word = "stage" if len(stages) == 1 else "stages"
    return f"{word} {' then '.join(map(str, stages)) if long else '-'.join(map(str, stages))}"


def _levels(thresholds: Sequence[float]) -> str:
    return " / ".join("never" if threshold == math.inf else number(threshold) for threshold in thresholds)
