"""Numbers and settings as this page says them."""

from __future__ import annotations

from cascadia_fast.report.results import Group, Interval, Setting
from cascadia_fast.summary_units import digits, number

# Latencies so close, relatively, are said to be equal.
EQUAL = 0.02


def floor_text(q_min: float) -> str:
    """A floor of quality."""
    return f"q {number(q_min)}"


def rate_text(rate_per_s: float) -> str:
    """A rate of arrivals."""
    said = digits(rate_per_s, places=4)
    return f"{said} request/s" if said == "1" else f"{said} requests/s"


def setting_text(setting: Setting) -> str:
    """What systems are compared in."""
    return f"{setting.case}, {floor_text(setting.q_min)}, {rate_text(setting.rate_per_s)}"


def times(ratio: float) -> str:
    """A ratio, to three digits."""
    return f"{digits(ratio, zeros=True)}×"


def deadline_text(ratio: float) -> str:
    """What deadline a system needs whose scale is so many times ours, as a predicate."""
    if abs(ratio - 1) <= EQUAL:
        return f"needs the same deadline as ours, {times(ratio)}"
    if ratio > 1:
        return f"needs a deadline {digits(ratio, zeros=True)} times as long as ours"
    return f"meets a deadline {digits(1 / ratio, zeros=True)} times tighter than ours"


def range_text(interval: Interval, zeros: bool = True) -> str:
    """The ends of an interval; nothing where there is none."""
    if interval["low"] is None or interval["high"] is None:
        return ""
    low, high = (digits(end, zeros=zeros) for end in (interval["low"], interval["high"]))
    return f"{low} to {high}" if interval["low"] < 0 else f"{low}–{high}"


def listed(texts: list[str]) -> str:
    """One, two and three."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def meets_mark(group: Group) -> str:
    """Whether the floor of quality is met, as a sign that the page's key explains."""
    signs = {"yes": "✓", "unsure": "?", "no": "✗"}
    meets = group["meets"]
    return "" if meets is None else f'<span class="{meets}">{signs[meets]}</span>'
