"""A front as text for people: a table of some of its plans, the models alone, and what it was looked for among."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import IO, TYPE_CHECKING

from cascadia_fast import summary_blocks
from cascadia_fast.plan_json import NEVER
from cascadia_fast.summary_blocks import Block
from cascadia_fast.summary_layout import Table, to_ascii
from cascadia_fast.summary_units import OBJECTIVES, dollars, duration, number, plural

if TYPE_CHECKING:
    from cascadia_fast.pareto.front import Front, FrontPoint

# More rows than a screen has help nobody; JSON and CSV have all.
MOST_ROWS = 24


def text_of(front: Front, width: int = 100, ascii_only: bool = False) -> str:
    """Plain text of a front, wrapped at `width` columns."""
    text = summary_blocks.plain(blocks_of(front), width)
    return to_ascii(text) if ascii_only else text


def show(front: Front, file: IO[str]) -> None:
    """Write to `file`: tables drawn as wide as the terminal on one, plain text elsewhere."""
    summary_blocks.show(blocks_of(front), file)


def blocks_of(front: Front) -> list[Block]:
    """What the text of a front says, in order."""
    shown = spread(front, MOST_ROWS)
    blocks: list[Block] = [title_of(front), _table(shown)]
    if len(shown) < len(front.points):
        blocks.append(f"{len(shown)} of {len(front.points):,} plans are shown; --json and -o have them all")
    if front.singles:
        blocks += ["Models alone:", _table(front.singles)]
    end = "" if front.complete else "; the search was stopped at its time limit"
    blocks.append(f"{front.certificate}{end}; {duration(front.seconds)}")
    return blocks


def title_of(front: Front) -> str:
    """What is traded for what, on what, within what limits."""
    names = {"latency": f"latency ({OBJECTIVES[front.metric]})", "quality": "quality", "cost": "cost"}
    axes = [names[axis] for axis in front.axes]
    pools = " + ".join(f"{pool.gpus:,} {pool.gpu}" for pool in front.pools)
    limits = [f"quality {number(front.q_min)} or more"] if front.q_min > 0 else []
    if front.slo_s is not None and front.slo_metric is not None:
        limits.append(f"{OBJECTIVES[front.slo_metric]} {duration(front.slo_s)} or less")
    if front.budget_usd_per_hour is not None:
        limits.append(f"{dollars(front.budget_usd_per_hour)} USD per hour or less")
    within = f", with {' and '.join(limits)}" if limits else ""
    return (
        f"Front of {', '.join(axes[:-1])} and {axes[-1]} on {pools} at {front.rate_per_s:,.4g} requests/s{within}: "
        f"{plural(len(front.points), 'plan')} that no other plan beats on all of them"
    )


def spread(front: Front, most: int) -> tuple[FrontPoint, ...]:
    """At most so many points, ends included: each next one halves the longest way along the front without one."""
    points = front.points
    if len(points) <= most:
        return points
    away = _ways(front)
    chosen = [0, len(points) - 1]
    while len(chosen) < most:
        gaps = [(away[right] - away[left], left, right) for left, right in pairwise(chosen) if right - left > 1]
        _, left, right = max(gaps)
        middle = (away[left] + away[right]) / 2
        chosen.append(min(range(left + 1, right), key=lambda index: abs(away[index] - middle)))
        chosen.sort()
    return tuple(points[index] for index in chosen)


def _ways(front: Front) -> list[float]:
    """Way along the front from its start to every point, each axis counted by its extent."""
    steps = [0.0] * len(front.points)
    for axis in front.axes:
        values = [point.value(axis) or 0.0 for point in front.points]
        extent = (max(values) - min(values)) or 1.0
        for index in range(1, len(values)):
            steps[index] += abs(values[index] - values[index - 1]) / extent
    return list(accumulate(steps))


def _table(points: Sequence[FrontPoint]) -> Table:
    header = ("p95", "quality", "USD/h", "GPUs", "of each model", "thresholds", "models")
    rows = tuple(
        (
            duration(point.latency_s, zeros=True),
            number(point.quality),
            dollars(point.usd_per_hour),
            f"{point.gpus:,}",
            " / ".join(f"{gpus:,}" for gpus in point.stage_gpus),
            thresholds_text(point),
            " > ".join(point.models),
        )
        for point in points
    )
    return Table(header, rows, frozenset({"models"}))


def thresholds_text(point: FrontPoint) -> str:
    """Thresholds as people write them."""
    return " / ".join(NEVER if value == float("inf") else number(value) for value in point.thresholds)
