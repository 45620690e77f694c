"""Scales of a front's pictures: round ticks in humane units, logarithmic where values differ much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cascadia_fast.pareto.front import Axis
from cascadia_fast.timeline.series import round_number

# From this ratio of the largest to the smallest value on, latencies and costs are drawn by orders of magnitude.
_MANY_TIMES = 12.0
_STEPS = 5
_MARGIN = 0.05
_TIMES = ((7200.0, 3600.0, "h"), (600.0, 60.0, "min"), (1.0, 1.0, "s"), (0.0, 1e-3, "ms"))


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` along one axis; `ticks` are places from 0 to 1 with their labels."""

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[tuple[float, str], ...]
    unit: str

    def at(self, value: float | None) -> float:
        """Place of a value, from 0 to 1."""
        return _share(value or 0.0, self.low, self.high, self.logarithmic)


def scale_of(axis: Axis, values: Sequence[float]) -> Scale:
    """Return a scale for values of an axis, with some room around them."""
    low, high = min(values), max(values)
    per_unit, unit = _unit(axis, high)
    logarithmic = axis != "quality" and 0 < low * _MANY_TIMES <= high
    if logarithmic:
        room = (high / low) ** _MARGIN
        low, high = low / room, high * room
        ticks = _decades(low / per_unit, high / per_unit)
    else:
        room = _MARGIN * (high - low) or 0.5 * abs(high) or 1.0
        bottom = -math.inf if axis == "quality" else 0.0
        low, high = max(low - room, bottom), high + room
        ticks = _multiples(low / per_unit, high / per_unit)
    labelled = tuple((_share(tick * per_unit, low, high, logarithmic), f"{tick:,.6g}") for tick in ticks)
    return Scale(low, high, logarithmic, labelled, unit)


def _unit(axis: Axis, high: float) -> tuple[float, str]:
    if axis == "latency":
        return next((scale_s, unit) for least_s, scale_s, unit in _TIMES if high >= least_s)
    return (1.0, "0 to 100") if axis == "quality" else (1.0, "USD per hour")


def _share(value: float, low: float, high: float, logarithmic: bool) -> float:
    if logarithmic:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _multiples(low: float, high: float) -> list[float]:
    step = round_number((high - low) / _STEPS)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only the powers where those would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= _STEPS else (1,)
    return [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]
