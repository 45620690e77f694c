"""The best routing and replica counts on several pools of GPUs: types, node sizes and prices may differ.

Every routing asks the same question: are there counts that stay within a limit of latency, the pools and the budget
(`capacity_program`)? Few routings are asked. Shadow prices rule most of them out at a limit just below the best known
value (`capacity_bounds`); of the others the most promising is asked first, and where it succeeds, its least latency is
found by bisection and the limit drops. Capacities depend on the limit and are the dear part, so they are computed for
the routings that are about to be asked, the stations that few routings tell apart first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cascadia_fast.planning.capacity_bounds import Capacities, PooledStation
from cascadia_fast.planning.pooled_search import (
    Minimise,
    PooledAnswer,
    PooledGroup,
    PooledSearch,
    PooledTask,
    PoolSupply,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PoolSupply", "PooledAnswer", "PooledGroup", "PooledStation", "plan_pools"]


def plan_pools(
    search: Capacities,
    stations: Sequence[PooledStation],
    pools: Sequence[PoolSupply],
    *,
    minimise: Minimise = "latency",
    limit_s: float = math.inf,
    fixed_usd: NDArray[np.float64] | None = None,
    budget_usd: float = math.inf,
    first: Sequence[int] = (),
    beat: float = math.inf,
    gap: float = 1e-3,
    time_limit_s: float = math.inf,
    threads: int = 1,
) -> PooledAnswer:
    """Return the best routing and replica counts.

    Parameters
    ----------
    search
        Knows the capacities of the stations' options.
    stations
        In the order of the search.
    pools
        What the options' pools have.
    minimise
        ``latency``: p95 of the slowest station; of the fastest deployments of a routing the cheapest. ``spend``: USD
        per hour. ``gpus``: GPUs. ``any``: the first plan found.
    limit_s
        Ceiling on the p95 of every station.
    fixed_usd
        Shape (R,): spend per hour of each candidate besides GPUs.
    budget_usd
        The most a plan may spend per hour.
    first
        Candidates to try first; a good one saves time.
    beat
        Only plans of at most this value are of interest.
    gap
        Relative gap at which a value counts as optimal.
    time_limit_s
        Stop after about this long, with the best plan found and a bound.
    threads
        Threads for capacities.
    """
    work = PooledSearch(
        PooledTask(search, stations, pools, minimise, limit_s, fixed_usd, budget_usd, beat, gap, time_limit_s, threads)
    )
    for candidate in first:
        if work.may_try(candidate):
            work.try_out(candidate)
    while (candidate := work.next_candidate()) >= 0:
        work.try_out(candidate)
    return work.answer()
