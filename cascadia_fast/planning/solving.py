"""The optimum over all cascades: one question, asked until nothing is left that could be better.

Whether a routing can be served with at most these GPUs, within these latencies, at this rate, is decided natively. The
objective says which of the three is pushed: a latency or the spend (natively, routing by routing, against the best
plan so far), or the rate (by bisection).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.errors import UnsupportedError
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.subsets import Subset, budget_gpus
from cascadia_fast.workload import MAX_RATE_PER_S, MIN_RATE_PER_S

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan

Minimise = Literal["latency", "spend", "any"]
FloatArray = NDArray[np.float64]

# Over several pools, better plans than by this are looked for, relatively.
POOLED_GAP = 1e-3
# The largest rate is found to this, relatively: far below what any forecast of traffic is worth.
RATE_GAP = 1e-4
FREE_USD_PER_HOUR = 1e-9
# What a native search is given at least, so that one that begins at the deadline ends with an answer.
LEAST_TIME_S = 1e-3


@dataclass(frozen=True, slots=True)
class Group:
    """Equal replicas of one candidate engine; `rate_per_s` of one is None where the native search shares them out."""

    option: int
    replicas: int
    rate_per_s: float | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """A plan that was found.

    Parameters
    ----------
    subset, search, routing
        The cascade, its search at the rate served, and the routing.
    stations
        The groups of every station.
    value
        What was minimised; for the rate, the rate.
    rate_per_s
        The rate served.
    worst_s
        p95s of the stations, worst first, by which equal values are told apart.
    gpus
        GPUs in use.
    choices
        The stations as the native search returned them; None where they have more than two groups.
    """

    subset: Subset
    search: _core.CascadeSearch
    routing: int
    stations: tuple[tuple[Group, ...], ...]
    value: float
    rate_per_s: float
    worst_s: tuple[float, ...]
    gpus: int
    choices: tuple[_core.Choice, ...] | None = None

    @property
    def quality(self) -> float:
        """Mean quality of the routing."""
        return float(self.subset.quality[self.routing])


@dataclass
class Effort:
    """What the search did, over all subsets.

    `bound` is what no plan is better than, `tolerance` how far from it, relatively, the search was content to stop.
    """

    candidates: int = 0
    distinct: int = 0
    evaluated: int = 0
    pruned: int = 0
    subsets: int = 0
    complete: bool = True
    bound: float = math.inf
    tolerance: float = 0.0

    def add(self, result: _core.ExactResult) -> None:
        """Count what one native search did."""
        self.evaluated += result.evaluated
        self.pruned += result.pruned_by_load + result.pruned_by_need + result.pruned_by_latency
        if not result.complete:
            self.complete = False
            self.bound = min(self.bound, result.bound)


class Solver:
    """Solves one task on the native searches of its subsets.

    Parameters
    ----------
    searches
        The searches, with problem and task.
    subsets
        The cascades that count.
    quality
        Per subset, what is held against the floor; None: the mean quality.
    previous
        A plan in force, to which equally good plans should be close.
    deadline_s
        On the clock of `time.perf_counter`: when to stop and return the best so far.
    """

    def __init__(
        self,
        searches: Searches,
        subsets: Sequence[Subset],
        quality: Sequence[FloatArray] | None = None,
        previous: Plan | None = None,
        deadline_s: float = math.inf,
    ) -> None:
        self.searches = searches
        self.task = searches.task
        self.deadline_s = deadline_s
        self.effort = Effort(subsets=len(subsets), distinct=sum(subset.grid.distinct for subset in subsets))
        self._previous = previous
        floors = [None] * len(subsets) if quality is None else quality
        pairs = [
            (subset, subset.candidates(self.task.goal.q_min, floor))
            for subset, floor in zip(subsets, floors, strict=True)
        ]
        # Small cascades first: they take microseconds, and what they reach prunes the large ones.
        self._candidates = sorted((pair for pair in pairs if pair[1].size), key=lambda pair: len(pair[0].indexes))
        self.effort.candidates = sum(candidates.size for _, candidates in pairs)

    @property
    def pooled(self) -> bool:
        """Whether stages may be spread over several pools, which is HiGHS's to decide."""
        return len(self.task.pools) > 1 and not self.task.by_path

    def solve(self) -> Found | None:
        """Return the best plan, or None where there is none."""
        objective = self.task.goal.objective
        if objective == "max_rate":
            return self._largest_rate()
        return self.best("spend" if objective in ("min_cost", "min_gpus") else "latency")

    def best(self, minimise: Minimise, rate_per_s: float | None = None) -> Found | None:
        """Return the best plan over all subsets at the planned rate or another; with "any", the first one found."""
        best: Found | None = None
        for subset, candidates in self._candidates:
            found = self.best_of(subset, candidates, minimise, math.inf if best is None else best.value, rate_per_s)
            if found is not None and (best is None or self._key(found) < self._key(best)):
                best = found
            if best is not None and minimise == "any":
                break
        if best is not None:
            self.effort.bound = min(self.effort.bound, best.value)
        return best

    def best_of(
        self,
        subset: Subset,
        candidates: NDArray[np.int64],
        minimise: Minimise,
        beat: float = math.inf,
        rate_per_s: float | None = None,
    ) -> Found | None:
        """Return the best plan among some routings of one subset, if it is no worse than `beat`."""
        rate = self.task.workload.rate_per_s if rate_per_s is None else rate_per_s
        search = self.searches.at(subset, rate)
        if self.pooled:
            return self._pooled(subset, search, candidates, minimise, beat, rate)
        ask = self._question(subset, candidates, minimise, rate)
        native = self.searches.paths(subset, search) if self.task.by_path else search
        result = native.exact(**ask, beat=beat, previous_gpus=self.previous_gpus(subset), time_limit_s=self._left_s())
        self.effort.add(result)
        return None if result.routing < 0 else self._found(subset, search, result, rate)

    def front(self, subset: Subset, candidates: NDArray[np.int64], minimise: Minimise) -> list[Found]:
        """Return every routing, of those given best quality first, that improves on all before it."""
        search = self.searches.of(subset)
        rate = self.task.workload.rate_per_s
        native = self.searches.paths(subset, search) if self.task.by_path else search
        results = native.front(**self._question(subset, candidates, minimise, rate))
        return [self._found(subset, search, result, rate) for result in results]

    def _question(
        self, subset: Subset, candidates: NDArray[np.int64], minimise: Minimise, rate_per_s: float
    ) -> dict[str, Any]:
        task, goal = self.task, self.task.goal
        if task.by_path and len(task.pools) > 1 and goal.objective == "min_gpus" and goal.budget_usd_per_hour:
            raise UnsupportedError(
                "objective min_gpus with budget_usd_per_hour and a deadline on whole paths is planned on one pool "
                "only; drop the budget, or use objective min_cost"
            )
        fixed_usd = self.searches.fixed_usd_per_hour(subset, candidates, rate_per_s)
        # Without a price nothing is paid for, and free GPUs still count a little, so that fewer are better.
        prices = [pool.price_usd_per_hour or FREE_USD_PER_HOUR for pool in task.pools]
        budget = math.inf if goal.budget_usd_per_hour is None else goal.budget_usd_per_hour
        counts = goal.objective == "min_gpus"
        ask: dict[str, Any] = {"candidates": candidates, "minimise": minimise}
        if task.by_path:
            most = np.tile(np.array([pool.gpus for pool in task.pools], np.int32), (candidates.size, 1))
            if len(task.pools) == 1:
                most[:, 0] = budget_gpus(budget, prices[0], fixed_usd, task.gpus)
                budget = math.inf
            ask |= {
                "metric": task.metric,
                "limits_s": tuple(task.ceiling_s(metric) for metric in ("max_stage_p95", "end_to_end_p95", "ttft_p95")),
                "gpus": most,
                "usd_per_gpu": [1.0] * len(prices) if counts else prices,
                "budget_usd": budget,
                "threads": self.searches.threads,
            }
        else:
            ask |= {
                "gpus": budget_gpus(budget, prices[0], fixed_usd, task.gpus),
                "limit_s": task.ceiling_s("max_stage_p95"),
                "usd_per_gpu": 1.0 if counts else prices[0],
                "threads": self.searches.threads,
            }
        return ask | {"fixed_usd": np.zeros_like(fixed_usd) if counts else fixed_usd}

    def _pooled(
        self,
        subset: Subset,
        search: _core.CascadeSearch,
        candidates: NDArray[np.int64],
        minimise: Minimise,
        beat: float,
        rate_per_s: float,
    ) -> Found | None:
        from cascadia_fast.planning.heterogeneous import PoolSupply, plan_pools

        task, goal = self.task, self.task.goal
        counts = minimise == "spend" and goal.objective == "min_gpus"
        answer = plan_pools(
            search,
            self.searches.pooled_stations(subset, candidates, rate_per_s),
            [PoolSupply(pool.gpus, pool.price_usd_per_hour or 0.0) for pool in task.pools],
            minimise="gpus" if counts else minimise,
            limit_s=task.ceiling_s("max_stage_p95"),
            fixed_usd=self.searches.fixed_usd_per_hour(subset, candidates, rate_per_s),
            budget_usd=math.inf if goal.budget_usd_per_hour is None else goal.budget_usd_per_hour,
            beat=beat,
            gap=POOLED_GAP,
            time_limit_s=self._left_s(),
            threads=self.searches.threads,
        )
        self.effort.evaluated += answer.evaluated
        self.effort.pruned += answer.pruned
        self.effort.tolerance = POOLED_GAP
        self.effort.bound = min(self.effort.bound, answer.bound)
        self.effort.complete &= answer.status != "time_limit"
        if answer.routing < 0:
            return None
        stations = tuple(
            tuple(Group(group.option, group.replicas, group.rate_per_s) for group in groups)
            for groups in answer.stations
        )
        return Found(
            subset=subset,
            search=search,
            routing=int(candidates[answer.routing]),
            stations=stations,
            value=answer.value,
            rate_per_s=rate_per_s,
            worst_s=tuple(sorted(answer.latency_s, reverse=True)),
            gpus=int(self.searches.gpus_of(subset, stations).sum()),
        )

    def _largest_rate(self) -> Found | None:
        """Bisect on the rate: whatever carries a rate carries every smaller one."""
        low, high = 0.0, math.inf
        known: Found | None = None
        rate = self.task.workload.rate_per_s
        while high - low > RATE_GAP * high or high == math.inf:
            found = self.best("any", rate)
            if found is not None:
                known, low = found, rate
            elif self.effort.complete:
                high = rate
            else:  # out of time: nothing is known of this rate
                break
            if high < MIN_RATE_PER_S or low > MAX_RATE_PER_S:
                break
            rate = low * 2 if high == math.inf else high / 2 if low == 0 else math.sqrt(low * high)
        if known is None:
            return None
        self.effort.evaluated = self.effort.pruned = 0  # of the last question: the others asked the same of other rates
        best = self.best("latency", low) or known
        self.effort.bound = high
        return replace(best, value=low)

    def _found(
        self, subset: Subset, search: _core.CascadeSearch, result: _core.ExactResult, rate_per_s: float
    ) -> Found:
        choices = tuple(result.stages)
        return Found(
            subset=subset,
            search=search,
            routing=result.routing,
            stations=tuple(_groups(choice) for choice in choices),
            value=result.value,
            rate_per_s=rate_per_s,
            worst_s=tuple(result.worst_s),
            gpus=sum(choice.gpus for choice in choices),
            choices=choices,
        )

    def _key(self, found: Found) -> tuple[float, tuple[float, ...], float, int, int]:
        before = self.previous_gpus(found.subset)
        moved = sum(abs(choice.gpus - was) for choice, was in zip(found.choices or (), before, strict=False))
        return found.value, found.worst_s, -found.quality, found.gpus, moved

    def previous_gpus(self, subset: Subset) -> list[int]:
        """Return the GPUs that each station of a subset has in the plan in force."""
        if self._previous is None:
            return []
        gpus = {stage.index: stage.gpus for stage in self._previous.stages}
        gpus[len(self.searches.problem.stages)] = self._previous.judge.gpus
        return [gpus.get(model, 0) for model in self.searches.stations(subset)]

    def _left_s(self) -> float:
        return max(self.deadline_s - time.perf_counter(), LEAST_TIME_S)


def found_of(searches: Searches, subset: Subset, routing: int, choices: Sequence[_core.Choice]) -> Found:
    """Return a plan that another method found, at the planned rate."""
    worst_s = tuple(sorted((choice.latency_s for choice in choices), reverse=True))
    return Found(
        subset=subset,
        search=searches.of(subset),
        routing=routing,
        stations=tuple(_groups(choice) for choice in choices),
        value=worst_s[0],
        rate_per_s=searches.task.workload.rate_per_s,
        worst_s=worst_s,
        gpus=sum(choice.gpus for choice in choices),
        choices=tuple(choices),
    )


def _groups(choice: _core.Choice) -> tuple[Group, ...]:
    groups = [Group(choice.shape, choice.replicas)] if choice.replicas else []
    if choice.fill_replicas:
        groups.append(Group(choice.fill_shape, choice.fill_replicas))
    return tuple(groups)
