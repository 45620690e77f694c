"""How arrivals vary from window to window: indexes of dispersion, and quantiles of the counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

# The slowest swings matter most near saturation, and a trace holds few of them: four say more than none.
MIN_SWINGS = 4

FloatArray = NDArray[np.float64]


def swings_of(times: FloatArray) -> FloatArray:
    """Return the index of dispersion over windows of 1, 2, 4 … time units; windows overlap by seven eighths.

    Parameters
    ----------
    times
        Ascending arrival times from 0, in units of the mean time between arrivals.
    """
    length = int(times[-1])
    upto = np.concatenate([[0], np.cumsum(np.bincount(times.astype(np.int64), minlength=length + 1)[:length])])
    found: list[float] = []
    while (window := 1 << len(found)) * MIN_SWINGS <= length:
        step = max(1, window >> 3)
        counts = upto[window::step] - upto[: length + 1 - window : step]
        # Windows that lie in one trace share its mean: their variance is too small by its own share of it.
        found.append(counts.var() / counts.mean() / (1 - window / length))
    return np.array(found)


@dataclass(frozen=True)
class Windows:
    """Arrivals per window; only occupied windows are kept, since a stretched trace has billions of empty ones."""

    occupied: NDArray[np.int64]  # arrivals of each occupied window, ascending
    count: int  # windows, empty ones included

    @classmethod
    def of(cls, times_s: FloatArray, window_s: float) -> Self:
        """Count arrivals in the whole windows that start at the first arrival."""
        count = int((times_s[-1] - times_s[0]) / window_s)
        index = np.floor((times_s - times_s[0]) / window_s)
        _, arrivals = np.unique(index[index < count], return_counts=True)
        return cls(np.sort(arrivals).astype(np.int64), count)

    def dispersion(self) -> float:
        """Return the variance of the counts (ddof 1) over their mean."""
        mean = float(self.occupied.sum()) / self.count
        squares = float((self.occupied.astype(np.float64) ** 2).sum())
        return (squares - self.count * mean * mean) / (self.count - 1) / mean

    def quantile(self, q: float) -> float:
        """Return a quantile of the counts, linear between neighbours."""
        empty = self.count - self.occupied.size
        place = q * (self.count - 1)
        low, high = (self._at(int(index) - empty) for index in (math.floor(place), math.ceil(place)))
        return low + (high - low) * (place - math.floor(place))

    def _at(self, index: int) -> float:
        return float(self.occupied[index]) if index >= 0 else 0.0
