"""Numbers as people read them; units are humane in texts and nowhere else."""

from __future__ import annotations

import math

NOTHING = "–"

# What is minimised (or, the rate, maximised), and latencies that a deadline may count by.
OBJECTIVES = {
    "max_stage_p95": "p95 of the slowest stage",
    "end_to_end_p95": "end-to-end p95",
    "ttft_p95": "p95 of the final answer's first token",
    "min_cost": "cost",
    "max_rate": "rate",
    "min_gpus": "number of GPUs",
}


def duration(seconds: float | None, zeros: bool = False) -> str:
    """``135 s``, ``270 ms``, ``12.5 min``; None is what load never lets end.

    Parameters
    ----------
    seconds : the duration.
    zeros : keep trailing zeros, ``5.00 s``, for columns of numbers.
    """
    if seconds is None:
        return "unbounded"
    rounded = float(f"{seconds:.2e}")  # 999.6 ms are 1 s
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (600.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if rounded < limit:
            return f"{digits(seconds * scale, zeros=zeros)} {unit}"
    return f"{digits(seconds / 3600, zeros=zeros)} h"


def digits(value: float, places: int = 3, zeros: bool = False) -> str:
    """So many significant digits, never an exponent; whole numbers are not rounded."""
    rounded = abs(float(f"{value:.{places - 1}e}"))
    if rounded < 1e-12:
        return "0"
    decimals = max(0, places - 1 - math.floor(math.log10(rounded)))
    text = f"{value:,.{decimals}f}"
    return text if zeros or decimals == 0 else text.rstrip("0").rstrip(".")


def number(value: float) -> str:
    """Four significant digits."""
    return digits(value, places=4)


def percent(share: float) -> str:
    """Three significant digits, as a percentage."""
    return f"{digits(100 * share)} %"


def dollars(value: float | None) -> str:
    """An amount of money to the cent; a dash where it is unknown."""
    return NOTHING if value is None else f"{value:,.2f}"


def plain(value: float) -> str:
    """The shortest text of a number that an option takes, without an exponent."""
    return f"{value:.12f}".rstrip("0").rstrip(".")


def plural(count: int, noun: str) -> str:
    """A counted noun with a regular plural."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def objective_text(objective: str, value: float | None) -> str:
    """The value of an objective in its unit."""
    if objective not in ("min_cost", "max_rate", "min_gpus"):
        return duration(value)
    if value is None:
        return NOTHING
    if objective == "min_cost":
        return f"{dollars(value)} USD per hour"
    return f"{digits(value)} requests/s" if objective == "max_rate" else plural(round(value), "GPU")


def energy(joules: float) -> str:
    """``290 J``, ``11.1 kJ``, ``2.4 MJ``."""
    for limit, scale, unit in ((999.5, 1.0, "J"), (999.5e3, 1e-3, "kJ")):
        if joules < limit:
            return f"{digits(joules * scale)} {unit}"
    return f"{digits(joules * 1e-6)} MJ"
