"""What the drift benchmark found, beside the paper's figures, as tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.accuracy_page import markdown as table_in_markdown
from cascadia_fast.comparison.estimates import Mean, log_mean_of, mean_of
from cascadia_fast.summary_layout import Table
from cascadia_fast.summary_units import digits

EVERY_PHASE, REHEARSED, FIRST_PLAN = "ours, every phase", "ours, rehearsed", "ours, first plan"
OURS = (EVERY_PHASE, REHEARSED, FIRST_PLAN)
# arXiv 2506.04203, its drift experiment: smallest SLO scales.
PAPER = {EVERY_PHASE: 8.99, "cascadeserve": 13.55, "single": 16.37}
# A deadline of so many times a request's own latency: near where the paper's systems end.
DEADLINE = 10.0
BRIEF_LEGEND = (
    "Means over seeds (geometric, but for qualities) with 95 % intervals. SLO scale: the smallest deadline that 95 % "
    "of the requests of all 34 minutes meet, over a request's own latency alone on the largest model. Replicas roll "
    "one at a time: old ones drain, their GPUs load the next, and once it is 'complete' the last one is open."
)
LEGEND = (
    f"{BRIEF_LEGEND} By phase, quality and meets: traces 1 / 2 / 3; unsure: below the floor, which the interval holds."
)


@dataclass(frozen=True)
class Move:
    """One transition between plans.

    Replicas that `stay`; `gpus` that change hands, and what their new replicas spend on loading, added up; when the new
    plan begins to route requests, and when its last replica opens, after the boundary; and for how long in between its
    models have no replica open, added up.
    """

    stay: int
    gpus: int
    reload_s: float
    routed_after_s: float
    done_after_s: float
    closed_s: float


@dataclass(frozen=True)
class Setting:
    """What is served: traces of a cascade under one floor each, at so many times their rates, in one drawing.

    Of the `highest` floors the paper has figures.
    """

    cascade: str
    highest: bool
    q_min: tuple[float, ...]
    load: float
    seed: int


@dataclass(frozen=True)
class Row:
    """One system in one setting; p95s after a boundary are of the requests of one minute."""

    setting: Setting
    system: str
    scale95: float
    p95_s: float | None
    phase_scale95: tuple[float, ...]
    quality: tuple[float, ...]
    after_p95_s: tuple[float | None, ...]
    moves: tuple[Move, ...]


def markdown(rows: Sequence[Row]) -> str:
    """Return all tables, and what they say."""
    parts: list[str] = []
    for cascade, q_min in dict.fromkeys((row.setting.cascade, row.setting.q_min) for row in rows):
        here = [row for row in rows if (row.setting.cascade, row.setting.q_min) == (cascade, q_min)]
        as_they_are = [row for row in here if row.setting.load == 1]
        parts.append(f"**{cascade}, floors {_joined(f'{floor:g}' for floor in q_min)}**")
        parts.append(table_in_markdown(scales(as_they_are)))
        parts.append(verdict(as_they_are))
        parts.append(table_in_markdown(transitions(as_they_are)))
        if len(here) > len(as_they_are):
            parts.append(table_in_markdown(throughput(here)))
    return "\n\n".join([*parts, LEGEND])


def brief(rows: Sequence[Row]) -> str:
    """Return one table of the SLO scales, and one of what moving came to."""
    as_they_are = [row for row in rows if row.setting.load == 1]
    settings = list(dict.fromkeys((row.setting.cascade, row.setting.q_min) for row in as_they_are))
    by_setting = [[row for row in as_they_are if (row.setting.cascade, row.setting.q_min) == one] for one in settings]
    header = ("SLO scale", "the paper, q 90", *(f"{cascade}, q {_joined(map(_short, q))}" for cascade, q in settings))
    lines = []
    for name in dict.fromkeys(row.system for row in as_they_are):
        cells = []
        for here in by_setting:
            own = [row for row in here if row.system == name]
            mark = " †" if any(_below(own)) else ""
            cells.append(f"{_interval(log_mean_of([row.scale95 for row in own]))}{mark}")
        lines.append((name, f"{PAPER[name]:.2f}" if name in PAPER else "–", *cells))
    parts = [table_in_markdown(Table(header, tuple(lines), frozenset(header[:1])))]
    moved = [_moved(one, here) for one, here in zip(settings, by_setting, strict=True)]
    columns = ("re-planned at each change", "replicas stay", "GPUs move", "complete after")
    parts.append(table_in_markdown(Table(columns, tuple(moved), frozenset(columns[:1]))))
    parts.append(f"†: mean quality below the floor in some phase. {BRIEF_LEGEND}")
    return "\n\n".join(parts)


def _moved(setting: tuple[str, tuple[float, ...]], rows: Sequence[Row]) -> tuple[str, ...]:
    """What both changes came to where ours is planned for every phase, mean over seeds."""
    own = [row for row in rows if row.system == EVERY_PHASE]
    changes = [[row.moves[place] for row in own] for place in range(len(own[0].moves))]

    def mean(field: str) -> str:
        return _joined(f"{np.mean([getattr(move, field) for move in moves]):.0f}" for moves in changes)

    cascade, q_min = setting
    return f"{cascade}, q {_joined(map(_short, q_min))}", mean("stay"), mean("gpus"), f"{mean('done_after_s')} s"


def scales(rows: Sequence[Row]) -> Table:
    """Smallest SLO scales at the traces' own rates, beside the paper's, seed by seed against ours."""
    header = (
        "system",
        "the paper",
        "SLO scale",
        "over ours, every phase",
        "by phase",
        "p95",
        "minute after 1st change",
        "after 2nd",
        "quality",
        "meets",
    )
    lines = []
    for name, own in _by_system(rows):
        floors = own[0].setting.q_min
        quality = [mean_of([row.quality[place] for row in own]) for place in range(len(floors))]
        phases = [log_mean_of([row.phase_scale95[place] for row in own]) for place in range(len(floors))]
        lines.append(
            (
                name,
                _of_the_paper(rows, name),
                _interval(log_mean_of([row.scale95 for row in own])),
                "–" if name == EVERY_PHASE else _interval(_over_ours(rows, name, EVERY_PHASE)),
                _joined(map(_mean, phases)),
                _seconds([row.p95_s for row in own]),
                *(_seconds([row.after_p95_s[place] for row in own]) for place in range(len(floors) - 1)),
                _joined(map(_mean, quality)),
                _joined(_meets(found, floor) for found, floor in zip(quality, floors, strict=True)),
            )
        )
    return Table(header, tuple(lines), frozenset({"system"}))


def _below(own: Sequence[Row]) -> list[bool]:
    """Whether the mean quality over seeds is below the floor, phase by phase."""
    floors = own[0].setting.q_min
    return [float(np.mean([row.quality[place] for row in own])) < floor for place, floor in enumerate(floors)]


def _of_the_paper(rows: Sequence[Row], name: str) -> str:
    setting = rows[0].setting
    known = setting.highest and setting.cascade == "deepseek" and name in PAPER
    return f"{PAPER[name]:.2f} ({PAPER[name] / PAPER[EVERY_PHASE]:.2f} × ours)" if known else "–"


def _over_ours(rows: Sequence[Row], name: str, ours: str) -> Mean | None:
    """How many times the SLO scale of ours a system's is, seed by seed."""
    by_seed = {(row.system, row.setting.seed): row.scale95 for row in rows}
    seeds = sorted({seed for _, seed in by_seed})
    return log_mean_of([by_seed[name, seed] / by_seed[ours, seed] for seed in seeds])


def verdict(rows: Sequence[Row]) -> str:
    """Say who is faster than ours and who is slower, as far as the seeds tell."""
    parts = []
    for ours in OURS[:2]:
        found: dict[str, list[str]] = {"slower": [], "faster": [], "not told apart by these seeds": []}
        for name, own in _by_system(rows):
            if name in OURS:
                continue
            ratio = _over_ours(rows, name, ours)
            if ratio is None or ratio.low is None or ratio.high is None or ratio.low <= 1 <= ratio.high:
                what = "not told apart by these seeds"
            else:
                what = "slower" if ratio.mean > 1 else "faster"
            short = " but below a floor" if any(_below(own)) else ""
            found[what].append(f"{name} ({_mean(ratio)} times its SLO scale{short})")
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in found.items() if names)
        itself = " (below a floor itself)" if any(_below([row for row in rows if row.system == ours])) else ""
        parts.append(f"Against {ours}{itself} – {told}.")
    return " ".join(parts)


def transitions(rows: Sequence[Row]) -> Table:
    """What moving came to, mean over seeds."""
    header = (
        "transitions of",
        "change",
        "replicas stay",
        "GPUs move",
        "loading, all replicas",
        "routed anew after",
        "complete after",
        "a model without replica",
    )
    lines = []
    for name, own in _by_system(rows):
        for place in range(len(own[0].moves)):
            moves = [row.moves[place] for row in own]
            whole = [f"{np.mean([getattr(move, field) for move in moves]):.1f}" for field in ("stay", "gpus")]
            times = ("reload_s", "routed_after_s", "done_after_s", "closed_s")
            spent = [f"{np.mean([getattr(move, field) for move in moves]):.0f} s" for field in times]
            lines.append((name, str(place + 1), *whole, *spent))
    return Table(header, tuple(lines), frozenset({"transitions of"}))


def throughput(rows: Sequence[Row]) -> Table:
    """SLO scales at several loads, and the load that every system carries within a deadline."""
    loads = sorted({row.setting.load for row in rows})
    header = (
        "SLO scale at",
        *(f"{load:g} × the rates" for load in loads),
        f"load carried at SLO scale {DEADLINE:g}",
        f"{EVERY_PHASE}, over it",
    )
    found = {name: [_scale(own, load) for load in loads] for name, own in _by_system(rows)}
    carried = {name: _carried(loads, scales) for name, scales in found.items()}
    best = carried[EVERY_PHASE][0]
    lines = []
    for name, (load, bound) in carried.items():
        ratio = "–" if name in OURS or bound else digits(best / load, 3)
        lines.append((name, *(digits(value, 3) for value in found[name]), f"{bound}{digits(load, 3)} ×", ratio))
    return Table(header, tuple(lines), frozenset({"SLO scale at"}))


def _by_system(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for name in dict.fromkeys(row.system for row in rows):
        yield name, [row for row in rows if row.system == name]


def _scale(own: Sequence[Row], load: float) -> float:
    """Geometric mean over seeds."""
    return math.exp(float(np.mean([math.log(row.scale95) for row in own if row.setting.load == load])))


def _carried(loads: Sequence[float], scales: Sequence[float]) -> tuple[float, str]:
    """The load at which the scale passes the deadline, between two that were tried; or a bound."""
    beyond = next((place for place, value in enumerate(scales) if value > DEADLINE), None)
    if beyond is None:
        return loads[-1], "> "
    if beyond == 0:
        return loads[0], "< "
    low, high = (math.log(scales[place]) for place in (beyond - 1, beyond))
    part = (math.log(DEADLINE) - low) / (high - low)
    return loads[beyond - 1] + part * (loads[beyond] - loads[beyond - 1]), ""


def _meets(quality: Mean | None, floor: float) -> str:
    if quality is None:
        return "–"
    if quality.mean >= floor:
        return "yes"
    return "unsure" if quality.high is not None and quality.high >= floor else "no"


def _seconds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{_mean(log_mean_of(known))} s" if known else "–"


def _mean(found: Mean | None) -> str:
    return "–" if found is None else digits(found.mean, 3)


def _interval(found: Mean | None) -> str:
    if found is None or found.low is None or found.high is None:
        return _mean(found)
    return f"{digits(found.mean, 3)} ({digits(found.low, 3)} to {digits(found.high, 3)})"


def _joined(values: Iterable[str]) -> str:
    return " / ".join(values)


def _short(value: float) -> str:
    """A number as short as it goes."""
    return f"{value:g}"
