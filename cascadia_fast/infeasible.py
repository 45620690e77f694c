"""Why there is no plan: the binding constraint, and what would lift it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cascadia_fast import _core
from cascadia_fast.errors import NoPlanError, PoolTooSmallError, QualityUnreachableError, RateTooHighError
from cascadia_fast.routing import QUALITY_SLACK, RoutingGrid
from cascadia_fast.schema import MAX_GPUS


def check_floor(grid: RoutingGrid, q_min: float) -> None:
    """Raise `QualityUnreachableError` when no routing reaches the floor of quality."""
    quality = grid.quality[grid.combinations]
    best = int(np.argmax(quality))
    best_quality = float(quality[best])
    if best_quality >= q_min - QUALITY_SLACK:
        return
    thresholds = grid.thresholds(best)
    route = f" (thresholds {describe(thresholds)})" if thresholds else ""
    raise QualityUnreachableError(
        f"q_min is {q_min:g}, but no routing of these requests reaches more than {best_quality:.2f}{route}; "
        "lower q_min or use better models",
        best_quality=best_quality,
        thresholds=thresholds,
    )


def no_allocation(
    search: _core.CascadeSearch, gpus: int, q_min: float, rate_per_s: float, models: Sequence[str]
) -> NoPlanError:
    """Return the error for a floor that some routing meets, but no allocation of the GPUs can serve."""
    enough = search.least_gpus(q_min)
    if math.isinf(enough):
        unfit = next(model for stage, model in enumerate(models) if search.smallest_engine(stage) == 0)
        return NoPlanError(
            f"no shape of {unfit} holds the KV cache of its longest request; allow larger "
            "memory_utilization, use a smaller kv_dtype, or drop the longest requests"
        )
    max_rate_per_s = search.max_rate_per_s(gpus, q_min)
    advice = f"{gpus_text(int(enough))} would be enough" if enough <= MAX_GPUS else f"not even {MAX_GPUS:,} are enough"
    if max_rate_per_s <= 0:
        return PoolTooSmallError(
            f"{gpus_text(gpus)} cannot hold a cascade that meets q_min {q_min:g} at any rate; {advice} for "
            f"{rate_per_s:g} requests/s",
            gpus_needed=int(enough),
        )
    return RateTooHighError(
        f"no allocation of {gpus_text(gpus)} carries {rate_per_s:g} requests/s at q_min {q_min:g} under the "
        f"utilisation cap; the largest rate is {floor_digits(max_rate_per_s):g}, and {advice}",
        max_rate_per_s=max_rate_per_s,
    )


def gpus_text(gpus: int) -> str:
    """Return a number of GPUs as people write it."""
    return f"{gpus:,} GPU" if gpus == 1 else f"{gpus:,} GPUs"


def describe(thresholds: Sequence[float]) -> str:
    """Return thresholds as people write them."""
    return " / ".join("never" if math.isinf(value) else f"{value:g}" for value in thresholds)


def floor_digits(value: float, digits: int = 4) -> float:
    """Round down to significant digits, so that the printed rate is one that can be carried."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.floor(value / unit) * unit
