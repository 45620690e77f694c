"""CascadeServe (Kossmann et al., arXiv 2406.14424): cascades that are switched with the load, on replicas that stay.

Offline it makes a *gear plan*: for every range of the request rate a cascade with thresholds, and one placement of
replicas for all of them. Online it measures the rate window by window and takes the gear of the range, except that a
gear for less load waits while the first model's queue is longer than what arrives in 1.25 windows (the paper: 8 times
the queue exceeds the rate per second, at windows of 100 ms). It knows the rates of the trace, window by window, and
mean times of each model by batch; not which lengths or how hard requests reach which model.

The paper's four sub-problems are solved in its loop, for a floor on quality. (1) Cascades and thresholds: all subsets
of the models and the whole grid of thresholds, of which the Pareto set of quality and throughput stays; the paper
samples. (2) Each range starts with the cheapest cascade, and the range of the least load is upgraded until the
requests' mean quality meets the floor; a range that turns out to be overloaded is downgraded again, and the others make
up for it. (3) Replicas make the largest utilisation over all models and ranges least. The paper solves a linear program
and prunes until memory fits, for models that share GPUs; engines of language models do not, which makes the optimum
computable. (4) The least batch whose throughput suffices. Engines here batch continuously and nothing waits for a batch
to fill, so the least batch is not enforced: it says how long requests take, and whether a range is overloaded.

Where the paper leaves a choice, what favours it was taken. The optimum of (3) for every set of models, and of those the
plan whose requests take least time at the 95th percentile, by its own means. Only utilisations above 1 count as
overload, not those above the cap that our plans keep. Cascades are judged by our judge, with its scores and its delay.
Times by batch are those of all scored requests, not of a few profiled ones. Windows hold 20, 100 or 400 requests at the
mean rate, whichever has the least p95 when all are simulated on the planning half; the paper's 100 ms would hold less
than one. Which requests a gear serves, and at what rate, is counted as switching will have it, one window late. There
are up to 8 ranges, which serve about equally many requests; neighbours that are not followed by a higher rate the
higher they are say nothing of the load to come, and are one. Thresholds lie in the middle of the interval that routes
alike.

`cascadeserve` has for each model the smallest tensor parallelism that holds it and the KV cache of 64 requests of mean
length; `cascadeserve-tuned` the engine with the least mean time when the model alone serves everything on all GPUs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.gear_plan import RateRanges
from cascadia_fast.baselines.gear_profile import Profile, on_all_requests, profile, smallest_that_fits, tuned_alone
from cascadia_fast.baselines.gear_search import GearPlan, best_plan, gear_plans
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.trying import simulated_p95_s
from cascadia_fast.blueprint import Gear, Plan, Routing, Switching
from cascadia_fast.errors import NoPlanError, PoolTooSmallError
from cascadia_fast.planning.plan_parts import spec_of
from cascadia_fast.planning.subsets import Subset
from cascadia_fast.routing import middle_thresholds, routing_grid
from cascadia_fast.simulation.paths import accepting_stages, held_back, paths
from cascadia_fast.simulation.traffic import arrival_times

FloatArray = NDArray[np.float64]

LEAST_WINDOW_S = 0.1
# None is always the best one: over six seeds, SLO scales with 20 came to 0.7 to 2.5 times those with 100, at three
# floors of the most bursty DeepSeek trace.
REQUESTS_PER_WINDOW = (20, 100, 400)
MOST_RANGES = 8
# The paper's 8 per second at windows of 100 ms: a queue as long as what arrives in 1.25 windows.
QUEUE_FACTOR_TIMES_WINDOW = 0.8
DRAWN_ARRIVALS = 20_000  # of a workload that has only a rate


def plan_cascadeserve(case: Case) -> Plan:
    """Plan with the smallest engine of each model that fits.

    Raises
    ------
    NoPlanError
        No engine of a model holds its longest request, or no model's engine fits the GPUs.
    """
    return _plan(case, "cascadeserve", smallest_that_fits)


def plan_cascadeserve_tuned(case: Case) -> Plan:
    """Plan with the engine of each model that was tuned once; raises as `plan_cascadeserve`."""
    return _plan(case, "cascadeserve-tuned", lambda found: tuned_alone(found, case.rate_per_s, case.gpus))


def _plan(case: Case, name: str, choose: Callable[[Sequence[Profile]], Profile]) -> Plan:
    started_s = time.perf_counter()
    cascades = _Cascades.of(case)
    profiles = [choose(found) for found in _profiles(case)]
    plans = [_with_windows(case, name, cascades, profiles, requests, started_s) for requests in REQUESTS_PER_WINDOW]
    if all(len(plan.routing.gears) == 1 for plan in plans):
        return plans[0]  # nothing switches: any window will do
    return min(plans, key=lambda plan: (shortfall(case, plan), simulated_p95_s(case, plan)))


def shortfall(case: Case, plan: Plan) -> float:
    """Return by how much the mean quality misses the floor."""
    return 0.0 if case.meets(plan.predicted.quality) else case.q_min - plan.predicted.quality


def _with_windows(
    case: Case,
    name: str,
    cascades: _Cascades,
    profiles: Sequence[Profile],
    requests_per_window: int,
    started_s: float,
) -> Plan:
    window_s = max(LEAST_WINDOW_S, requests_per_window / case.problem.workload.arrivals.rate_per_s)
    ranges = RateRanges.of_times(_arrivals(case), window_s, MOST_RANGES)
    plans = list(
        gear_plans(ranges, cascades.quality, cascades.visits, profiles, case.gpus, case.q_min, models=case.models)
    )
    if not plans:
        needed = min(profile.gpus for profile in profiles[: case.models])
        raise PoolTooSmallError(
            f"CascadeServe's smallest engine takes {needed} GPUs and there are {case.gpus}; add {needed - case.gpus}",
            gpus_needed=needed,
        )
    found = best_plan(plans)
    models = [model for model in range(case.models) if found.replicas[model]]
    routing, shares = _routing(ranges, cascades, found, models, window_s)
    loads, quality = _expected(case, models, routing, shares)
    choices = {
        station: loads.choice(station, profiles[station].option, int(found.replicas[station]))
        for station in loads.models
    }
    return draw_plan(
        case,
        name,
        loads,
        choices,
        routing,
        quality=quality,
        note=f"CascadeServe's gear plan, a heuristic (gears: {len(routing.gears)}; ranges of the rate over windows of "
        f"{window_s:.3g} s: {ranges.share.size}; cascades to choose from: {cascades.quality.size:,})",
        started_s=started_s,
        evaluated=len(plans),
    )


def _arrivals(case: Case) -> FloatArray:
    workload = case.problem.workload
    if workload.arrivals.times_s is not None:
        return workload.arrivals.times_s
    return arrival_times(workload, "gamma", workload.arrivals.rate_per_s, DRAWN_ARRIVALS, case.seed)


@dataclass(frozen=True, eq=False)
class _Cascades:
    """All P cascades with thresholds: quality (P,), visits per request of each station (S, P), and what they are."""

    quality: FloatArray
    visits: FloatArray
    source: tuple[tuple[Subset, int], ...]

    @classmethod
    def of(cls, case: Case) -> _Cascades:
        quality, visits, source = [], [], []
        for size in range(1, case.models + 1):
            for chosen in itertools.combinations(range(case.models), size):
                part = case.requests.of_models(chosen)
                grid = routing_grid(part, None, tuple(case.cells[model] for model in chosen))
                subset = Subset(chosen, part, grid, skipping=True)
                complete = np.flatnonzero((subset.reach > 0).all(axis=0))
                each = np.zeros((len(case.fleet), complete.size))
                each[list(chosen)] = subset.reach[:, complete]
                each[case.models :] = subset.calls[complete]
                quality.append(subset.quality[complete])
                visits.append(each)
                source += [(subset, int(routing)) for routing in complete]
        return cls(np.concatenate(quality), np.concatenate(visits, axis=1), tuple(source))

    def thresholds(self, cascade: int) -> tuple[float, ...]:
        subset, routing = self.source[cascade]
        return middle_thresholds(subset.requests, subset.grid.thresholds(routing))


def _profiles(case: Case) -> list[tuple[Profile, ...]]:
    """Each station's candidate engines; a hosted judge's last, which reads the answers of all models but the last."""
    weight = case.requests.weight
    shares = [on_all_requests(cells, weight) for cells in case.cells]
    lengths = [(cells.tokens_in, cells.tokens_out) for cells in case.cells]
    if len(case.fleet) > case.models:
        into, out, _ = case.problem.judge.cells(case.cells)
        lengths.append((into, out))
        judged = [share if model < case.models - 1 else np.zeros_like(share) for model, share in enumerate(shares)]
        shares.append(np.concatenate(judged))
    batch = case.problem.max_num_seqs
    found = [
        profile(stage.replicas, into, out, share, batch)
        for stage, (into, out), share in zip(case.fleet, lengths, shares, strict=True)
    ]
    if not all(found):
        raise NoPlanError(
            f"no engine of {spec_of(case.problem, found.index(())).name} holds the KV cache of its longest request; "
            "allow larger memory_utilization, use a smaller kv_dtype, or drop the longest requests"
        )
    return found


def _routing(
    ranges: RateRanges, cascades: _Cascades, found: GearPlan, models: list[int], window_s: float
) -> tuple[Routing, FloatArray]:
    """The gears, one for neighbouring ranges of one cascade, and the share of the requests that each serves."""
    ends = np.flatnonzero(np.append(found.cascade[1:] != found.cascade[:-1], True))
    gears = tuple(
        Gear(
            None if end == ends[-1] else float(ranges.up_to_per_s[end]),
            tuple(models.index(model) for model in cascades.source[found.cascade[end]][0].indexes),
            cascades.thresholds(found.cascade[end]),
        )
        for end in ends
    )
    shares = np.add.reduceat(ranges.share, np.concatenate(([0], ends[:-1] + 1)))
    return Routing(
        "gears", (), (), gears=gears, switching=Switching(window_s, QUEUE_FACTOR_TIMES_WINDOW / window_s)
    ), shares


def _expected(case: Case, models: list[int], routing: Routing, shares: FloatArray) -> tuple[StationLoads, FloatArray]:
    """The loads that the gears make together, each for its share of the requests, and each request's mean quality."""
    requests = case.requests.of_models(models)
    path = paths(routing, requests)
    bits = np.arange(len(models))[:, None, None]
    visited = (path >> bits) & 1
    held = (held_back(routing, len(models))[:, None] >> bits) & 1
    visits, judged = np.zeros((2, case.models, requests.size))
    visits[models] = np.einsum("g,sgn->sn", shares, visited)
    judged[models] = np.einsum("g,sgn->sn", shares, visited & held)
    served = requests.quality[accepting_stages(path), np.arange(requests.size)]
    return StationLoads(case, visits, judged=judged), shares @ served
