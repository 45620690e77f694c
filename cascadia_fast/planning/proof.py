"""HiGHS on the allocation that the search found: a second opinion, by the paper's program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import CascadiaError
from cascadia_fast.planning.allocation import Allocation, paper_milp, pruned_milp
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.solving import Found
from cascadia_fast.planning.subsets import budget_gpus

Columns = tuple[NDArray[np.int64], NDArray[np.float64]]

# Two routes to one optimum: what HiGHS and the search may differ by is its feasibility tolerance.
AGREEMENT = 1e-6
# Up to here HiGHS sees every GPU count, each p95 evaluated without the search: a few milliseconds. Beyond, only the
# counts that the search says can matter.
WHOLE_TABLE_GPUS = 128


def prove(searches: Searches, found: Found, simulated: Sequence[Columns] | None = None) -> Allocation | None:
    """Let HiGHS solve the allocation of the routing found, where the slowest stage on one pool is what was minimised.

    Parameters
    ----------
    searches, found
        The plan.
    simulated
        Per stage the GPU counts and p95s that were simulated, where latencies come from simulation.

    Raises
    ------
    CascadiaError
        HiGHS and the search disagree.
    """
    task = searches.task
    if task.by_path or len(task.pools) > 1 or not task.minimises_latency or task.goal.survive != "none":
        return None
    gpus, limit_s = _affordable(searches, found), found.value * (1 + AGREEMENT)
    if simulated is not None:
        return _agreed(pruned_milp(simulated, gpus, limit_s), found.value)
    stages = range(len(found.stations))
    if task.goal.paper_strict:
        tables = [_table(searches, found, stage, gpus) for stage in stages]
        return _agreed(paper_milp([latency_s for _, latency_s in tables], gpus, exact_sum=True), found.value)
    if gpus <= WHOLE_TABLE_GPUS and not task.mixed:
        return _agreed(
            pruned_milp([_table(searches, found, stage, gpus) for stage in stages], gpus, limit_s), found.value
        )
    columns = found.search.columns(found.routing, limit_s, gpus)
    pairs = [
        (np.array([choice.gpus for choice in stage], np.int64), np.array([choice.latency_s for choice in stage]))
        for stage in columns
    ]
    return _agreed(pruned_milp(pairs, gpus, limit_s), found.value)


def _affordable(searches: Searches, found: Found) -> int:
    """GPUs of the pool that the budget pays beside the judge's calls."""
    pool, budget = searches.task.pools[0], searches.task.goal.budget_usd_per_hour
    if budget is None:
        return pool.gpus
    fixed_usd = searches.fixed_usd_per_hour(found.subset, np.array([found.routing]), found.rate_per_s)
    return int(budget_gpus(budget, pool.price_usd_per_hour or 0.0, fixed_usd, pool.gpus)[0])


def _table(searches: Searches, found: Found, stage: int, gpus: int) -> Columns:
    return np.arange(gpus + 1), found.search.table(found.routing, stage, gpus, searches.threads)[0]


def _agreed(proof: Allocation, latency_s: float) -> Allocation:
    if proof.status == "optimal" and abs(proof.latency_s - latency_s) > AGREEMENT * latency_s:
        raise CascadiaError(
            f"HiGHS allocates for {proof.latency_s:.9g} s and the search for {latency_s:.9g} s; this is a defect, "
            "please report it with the problem file"
        )
    return proof
