"""The latency of replicas that share a station's load by capacity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from cascadia_fast.planning.capacity_program import TOLERANCE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

PRECISION = 1e-7  # relative, of the latency
SLOWEST_S = 1e12  # replicas that do not carry the load within this never do


def latency_of(
    capacities: Callable[[float], FloatArray], replicas: NDArray[np.int64], rate_per_s: float, guess_s: float = math.inf
) -> tuple[float, FloatArray]:
    """Return the least limit within which the replicas carry the load, and their capacities there.

    Parameters
    ----------
    capacities : for a limit in seconds the largest rate of one replica of each option, rising with the limit.
    replicas : how many there are of each option.
    rate_per_s : the load; without any the latency is 0.
    guess_s : where to begin; a limit just within which the load is carried saves time.
    """

    def missing(limit_s: float) -> tuple[float, FloatArray]:
        per_s = capacities(limit_s)
        return rate_per_s * (1 - TOLERANCE) - float(replicas @ per_s), per_s

    if rate_per_s == 0:
        return 0.0, capacities(math.inf)
    high_s = guess_s if math.isfinite(guess_s) else 1.0
    short, per_s = missing(high_s)
    while short > 0:
        if high_s > SLOWEST_S:
            return math.inf, per_s
        high_s *= 2
        short, per_s = missing(high_s)
    over = short
    step = 1 / 1024  # relative; the guess is good or useless
    low_s = high_s * (1 - step)
    while (lower := missing(low_s))[0] <= 0:
        step = min(2 * step, 0.5)
        (over, per_s), high_s, low_s = lower, low_s, low_s * (1 - step)
    under = lower[0]
    while high_s - low_s > PRECISION * high_s:
        # The Illinois rule: where the line between the ends crosses zero, weighing an end less the longer it stays.
        margin_s = PRECISION / 3 * high_s
        middle_s = low_s + (high_s - low_s) * under / (under - over)
        middle_s = min(max(middle_s, low_s + margin_s), high_s - margin_s)
        short, found = missing(middle_s)
        if short > 0:
            low_s, under, over = middle_s, short, over / 2
        else:
            high_s, per_s, over, under = middle_s, found, short, under / 2
    return high_s, per_s
