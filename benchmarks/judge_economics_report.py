"""What the judge benchmark found, as tables and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.accuracy_page import markdown as table_in_markdown
from cascadia_fast.comparison.estimates import Mean, log_mean_of
from cascadia_fast.summary_layout import Table
from cascadia_fast.summary_units import digits

ALONE, SINGLE = "best single model", "single"
AS_IN_THE_FILE = "as in the file"
LEGEND = (
    "Served, on the other half of the requests: SLO scale, p95, shares, calls, and in how many drawings the quality is "
    "below the floor. Planned: money, with the cheapest plan whose p95 is that of the best single model on all GPUs, "
    "calls free unless a price is given; and what breaks even: the price of a call (mean over drawings, 0 where no "
    "cascade is cheaper), and the least AUC of a simulated judge whose plans gain 1 % in the mean."
)
# A gain of less is none.
LEAST_GAIN = 0.01
# An AUC below this is a guess.
GUESSES = 0.51


@dataclass(frozen=True)
class Setting:
    """A trace under a floor, in one drawing."""

    trace: str
    q_min: float
    seed: int

    @property
    def cascade(self) -> str:
        return self.trace.split("_")[0]


@dataclass(frozen=True)
class Judged:
    """How a plan served; `escalated` is the share of requests that went on from the first model that runs."""

    setting: Setting
    judge: str
    scale95: float | None
    p95_s: float | None
    quality: float | None
    models: int
    escalated: float
    calls: float


@dataclass(frozen=True)
class Priced:
    """What 1,000 requests cost by the cheapest plan within the best single model's p95, and by a single model."""

    setting: Setting
    judge: str
    price_usd: float
    usd_per_1000: float
    alone_usd_per_1000: float


@dataclass(frozen=True)
class BreakEven:
    """Where the cascade stops paying: prices of a call by drawing, and accuracies (None: at none it pays)."""

    trace: str
    q_min: float
    price_usd: tuple[float, ...]
    auc_latency: float | None
    auc_money: float | None


def markdown(judged: Sequence[Judged], priced: Sequence[Priced], found: Sequence[BreakEven]) -> str:
    """Return all tables, and what they say."""
    parts: list[str] = []
    for cascade in dict.fromkeys(row.setting.cascade for row in judged):
        own = [row for row in judged if row.setting.cascade == cascade]
        money = [row for row in priced if row.setting.cascade == cascade]
        count = len({(row.setting.trace, row.setting.q_min) for row in own})
        parts.append(
            f"**{cascade}**, {count} settings of trace and floor; ratios to the best single model are geometric means "
            "over settings (least to largest):"
        )
        parts.append(table_in_markdown(judges(own, money)))
        parts.append(table_in_markdown(prices(money)))
    parts.append(table_in_markdown(settings(judged, priced, found)))
    parts.append(" ".join(answer(judged, found)))
    parts.append(LEGEND)
    return "\n\n".join(parts)


def brief(judged: Sequence[Judged], priced: Sequence[Priced], found: Sequence[BreakEven]) -> str:
    """Return one table over judges, one over prices of a call, and what all tables say."""
    cascades = list(dict.fromkeys(row.setting.cascade for row in judged))
    judged_of = {name: [row for row in judged if row.setting.cascade == name] for name in cascades}
    priced_of = {name: [row for row in priced if row.setting.cascade == name] for name in cascades}
    fields = ("SLO scale", "p95", "USD per request, equal deadline")
    header = ("judge", *(f"{name}: {field}" for name in cascades for field in fields))
    known = [name for name in dict.fromkeys(row.judge for row in judged) if name not in (ALONE, SINGLE)]
    tables = {name: judges(judged_of[name], priced_of[name]).rows for name in cascades}
    by_cascade = {name: {line[0]: line[1:4] for line in rows} for name, rows in tables.items()}
    lines = [(judge, *(cell for name in cascades for cell in by_cascade[name][judge])) for judge in known]
    parts = [table_in_markdown(Table(header, tuple(lines), frozenset(header[:1])))]
    costs = {name: {line[0]: line[3] for line in prices(priced_of[name]).rows} for name in cascades}
    header = ("price of a call", *(f"{name}: USD per request, equal deadline" for name in cascades))
    lines = [(price, *(costs[name][price] for name in cascades)) for price in costs[cascades[0]]]
    parts.append(table_in_markdown(Table(header, tuple(lines), frozenset(header[:1]))))
    parts.append(
        "Ratios to the best single model: geometric mean over settings of trace and floor (least to largest). AUC 1 of "
        "right-or-wrong answers knows two scores only, so that a threshold sends on all wrong ones or none. SLO scale "
        "and p95 are served, on the other half of the requests; money is planned, with the cheapest plan whose p95 is "
        "that of the best single model on all GPUs, calls free unless a price is given."
    )
    parts.append(" ".join(answer(judged, found)))
    return "\n\n".join(parts)


def judges(judged: Sequence[Judged], priced: Sequence[Priced]) -> Table:
    """One line per judge."""
    header = (
        "judge",
        "SLO scale",
        "p95",
        "USD per request, equal deadline",
        "escalated",
        "judge calls",
        "a cascade in",
        "below the floor",
    )
    lines = []
    for name in dict.fromkeys(row.judge for row in judged):
        own = [row for row in judged if row.judge == name]
        costs = [row for row in priced if row.judge == name and row.price_usd == 0]
        lines.append(
            (
                name,
                *("1" if name == ALONE else _spread(_ratios(judged, field, name)) for field in ("scale95", "p95_s")),
                _spread([(row.setting, row.usd_per_1000 / row.alone_usd_per_1000) for row in costs]) if costs else "–",
                f"{100 * np.mean([row.escalated for row in own]):.0f} %",
                f"{np.mean([row.calls for row in own]):.2f}",
                f"{sum(row.models > 1 for row in own)} of {len(own)}",
                f"{sum((row.quality or 0.0) < row.setting.q_min for row in own)} of {len(own)}",
            )
        )
    return Table(header, tuple(lines), frozenset({"judge"}))


def prices(priced: Sequence[Priced]) -> Table:
    """What a call may cost: one line per price, over all settings."""
    header = ("price of a call", "USD per 1,000 requests, ours", "best single model", "ratio")
    lines = []
    for price_usd in sorted({row.price_usd for row in priced}):
        own = [row for row in priced if row.judge == AS_IN_THE_FILE and row.price_usd == price_usd]
        ours, alone = (
            _mean(log_mean_of([getattr(row, field) for row in own])) for field in ("usd_per_1000", "alone_usd_per_1000")
        )
        ratios = _spread([(row.setting, row.usd_per_1000 / row.alone_usd_per_1000) for row in own])
        lines.append((f"{price_usd:g} USD", ours, alone, ratios))
    return Table(header, tuple(lines), frozenset({"price of a call"}))


def settings(judged: Sequence[Judged], priced: Sequence[Priced], found: Sequence[BreakEven]) -> Table:
    """One line per trace and floor, with the judge of the file."""
    header = (
        "trace",
        "floor",
        "SLO scale",
        "best single model",
        "p95",
        "best single model's",
        "USD per 1,000",
        "single's",
        "escalated",
        "price that breaks even",
        "AUC: latency",
        "AUC: money",
    )
    lines = []
    for one in found:
        here = [row for row in judged if (row.setting.trace, row.setting.q_min) == (one.trace, one.q_min)]
        ours, alone = ([row for row in here if row.judge == name] for name in (AS_IN_THE_FILE, ALONE))
        costs = [
            row
            for row in priced
            if (row.setting.trace, row.setting.q_min) == (one.trace, one.q_min)
            and (row.judge, row.price_usd) == (AS_IN_THE_FILE, 0.0)
        ]
        pairs = [_known(rows, field) for field in ("scale95", "p95_s") for rows in (ours, alone)]
        lines.append(
            (
                one.trace,
                f"{one.q_min:g}",
                *(_mean(log_mean_of(values)) for values in pairs),
                _mean(log_mean_of([row.usd_per_1000 for row in costs])),
                _mean(log_mean_of([row.alone_usd_per_1000 for row in costs])),
                f"{100 * np.mean([row.escalated for row in ours]):.0f} %",
                _price(one.price_usd),
                _auc(one.auc_latency),
                _auc(one.auc_money),
            )
        )
    return Table(header, tuple(lines), frozenset({"trace"}))


def answer(judged: Sequence[Judged], found: Sequence[BreakEven]) -> Iterator[str]:
    """Say at which price and accuracy the cascade stops paying."""
    for cascade in dict.fromkeys(one.trace.split("_")[0] for one in found):
        own = [one for one in found if one.trace.startswith(cascade)]
        prices_usd = [float(np.mean(one.price_usd)) for one in own if one.price_usd]
        paying = [price for price in prices_usd if price > 0]
        text = f"{cascade}: within the same deadline a cascade is cheaper in {len(paying)} of {len(own)} settings"
        yield text + (f", as long as a call costs less than {_range(paying)} USD." if paying else ".")
        for what, field in (("faster (p95, planned)", "auc_latency"), ("cheaper, if calls are free,", "auc_money")):
            values = [getattr(one, field) for one in own]
            known = [value for value in values if value is not None]
            needed = [value for value in known if value >= GUESSES]
            parts = []
            if len(needed) < len(known):
                parts.append(f"in {len(known) - len(needed)} even with a judge that guesses")
            if needed:
                parts.append(f"in {len(needed)} with an AUC of at least {_range(needed)}")
            if len(known) < len(values):
                parts.append(f"in {len(values) - len(known)} with none")
            yield f"It is {what} {', '.join(parts)}."
        better = []
        for field in ("p95_s", "scale95"):
            ratios = _by_setting(_ratios([row for row in judged if row.setting.cascade == cascade], field))
            better.append(sum(ratio < 1 - LEAST_GAIN for ratio in ratios))
        yield (
            f"Served, with the judge of the file, its p95 is smaller in {better[0]} and its SLO scale in {better[1]}; "
            "it is planned for seconds."
        )


def _range(values: Sequence[float]) -> str:
    low, high = digits(min(values), 2), digits(max(values), 2)
    return low if low == high else f"{low} to {high}"


def _ratios(judged: Sequence[Judged], field: str, name: str = AS_IN_THE_FILE) -> list[tuple[Setting, float]]:
    """What a judge's plans come to, over the best single model."""
    base = {row.setting: getattr(row, field) for row in judged if row.judge == ALONE}
    pairs = [(row.setting, getattr(row, field), base[row.setting]) for row in judged if row.judge == name]
    return [(setting, own / alone) for setting, own, alone in pairs if own and alone]


def _by_setting(ratios: Sequence[tuple[Setting, float]]) -> list[float]:
    """Geometric means over drawings."""
    found: dict[tuple[str, float], list[float]] = {}
    for setting, ratio in ratios:
        found.setdefault((setting.trace, setting.q_min), []).append(ratio)
    return [mean.mean for values in found.values() if (mean := log_mean_of(values)) is not None]


def _spread(ratios: Sequence[tuple[Setting, float]]) -> str:
    """Geometric mean over settings, and the least and largest of them."""
    means = _by_setting(ratios)
    return f"{_mean(log_mean_of(means))} ({digits(min(means), 3)} to {digits(max(means), 3)})"


def _known(rows: Sequence[Judged], field: str) -> list[float]:
    return [value for row in rows if (value := getattr(row, field)) is not None]


def _mean(found: Mean | None) -> str:
    return "–" if found is None else digits(found.mean, 3)


def _price(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = float(np.mean(values))
    return "none" if mean == 0 else f"{digits(mean, 2)} USD"


def _auc(value: float | None) -> str:
    return "none" if value is None else "guessing" if value < GUESSES else f"{value:.2f}"
