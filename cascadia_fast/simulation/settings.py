"""How a simulation is asked for, and what it refuses."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cascadia_fast.errors import InputError, did_you_mean
from cascadia_fast.simulation.traffic import ARRIVALS, MAX_REQUESTS
from cascadia_fast.workload import MAX_RATE_PER_S, MIN_RATE_PER_S

DISPATCH = ("capacity_weighted", "least_outstanding", "power_of_two", "round_robin", "random")
BATCHING = ("chunked", "prompts_first")
ADMISSION = ("fcfs", "shortest_first")


@dataclass(frozen=True)
class Settings:
    """How a run was asked for.

    `rate_per_s` is the mean rate of the arrivals and `arrivals` their kind; both are None in a closed loop, where
    `concurrency` clients each send a request once the one before is done. Without a timeout or a deadline (`slo_s`)
    those are None.
    """

    requests: int
    seed: int
    rate_per_s: float | None
    arrivals: str | None
    concurrency: int | None
    dispatch: str
    batching: str
    admission: str
    prefix_hit_share: float
    timeout_s: float | None
    slo_s: float | None
    judge_cv: float

    def __post_init__(self) -> None:
        require_whole("requests", self.requests, 1, MAX_REQUESTS)
        require_whole("seed", self.seed, 0, 2**63 - 1)
        if self.concurrency is not None:
            require_whole("concurrency", self.concurrency, 1, MAX_REQUESTS)
        if self.rate_per_s is not None:
            require_number("rate_per_s", self.rate_per_s, MIN_RATE_PER_S, MAX_RATE_PER_S)
        if self.arrivals is not None:
            require_one_of("arrivals", self.arrivals, ARRIVALS)
        require_one_of("dispatch", self.dispatch, DISPATCH)
        require_one_of("batching", self.batching, BATCHING)
        require_one_of("admission", self.admission, ADMISSION)
        require_number("prefix_hit_share", self.prefix_hit_share, 0, 1)
        require_number("judge_cv", self.judge_cv, 0, 100)
        for name in ("timeout_s", "slo_s"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            require_number(name, seconds, -math.inf, math.inf)
            if not (math.isfinite(seconds) and seconds > 0):
                raise InputError(f"{name} is {seconds:g}; it must be a positive number of seconds")


def require_whole(name: str, value: Any, least: int, most: int) -> None:
    """Raise an `InputError` unless the value is a whole number in a range."""
    try:
        whole = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; give a whole number") from None
    if isinstance(value, bool) or not least <= whole <= most:
        raise InputError(f"{name} is {value}; it must be a whole number from {least:,} to {most:,}")


def require_number(name: str, value: float, least: float, most: float) -> None:
    """Raise an `InputError` unless the value is a number in a range."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise InputError(f"{name} is {value!r}; give a number")
    if not least <= value <= most:  # false for NaN
        raise InputError(f"{name} is {value:g}; it must be a number from {least:g} to {most:g}")


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise an `InputError` unless the word is known; the nearest known one is named."""
    if value not in known:
        hint = did_you_mean(str(value), known) or f"; use one of {', '.join(known)}"
        raise InputError(f"{name} is {value!r}{hint}")
