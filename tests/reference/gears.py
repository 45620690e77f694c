"""Gears once more, from their rule alone: every arrival is kept, and the rate of a window is counted anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gears:
    """The arguments of `_core.Gears`."""

    up_to_per_s: Sequence[float]
    window_s: float
    queue_factor: float
    first_station: Sequence[int]


@dataclass
class Gearbox:
    """Which gear each arrival takes."""

    gears: Gears
    gear: int = 0
    arrived_s: list[float] = field(default_factory=list)

    def take(self, now_s: float, waiting: Callable[[int], int]) -> int:
        """Return the gear of a request that arrives now; `waiting` counts visits at a station, not yet admitted."""
        last_s = self.arrived_s[-1] if self.arrived_s else 0.0
        if self._window(now_s) != self._window(last_s):
            ended = self._window(now_s) - 1
            rate_per_s = sum(self._window(at_s) == ended for at_s in self.arrived_s) / self.gears.window_s
            wanted = sum(limit_per_s < rate_per_s for limit_per_s in self.gears.up_to_per_s)
            backlog = waiting(self.gears.first_station[self.gear])
            if not (wanted < self.gear and rate_per_s < self.gears.queue_factor * backlog):
                self.gear = wanted
        self.arrived_s.append(now_s)
        return self.gear

    def _window(self, at_s: float) -> int:
        return math.floor(at_s / self.gears.window_s)
