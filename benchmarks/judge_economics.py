"""What the judge may cost: the cascade against the best single model, whatever the judge's delay, price and accuracy.

    python -m benchmarks.judge_economics [--seeds 5] [--json FILE]

The traces of both cascades at their own rates, each under its highest floor and its third. Plans are made from one half
of the requests and serve the other. `ours` is planned with one judge after another, and once restricted to single
models, which ask none; `single` is the paper's. Money is that of plans: the cheapest within the deadline that the best
single model reaches on all GPUs, which is its own p95 by the same formula.

The judge of the problem file takes 0.27 s and answers as in the table (Llama: simulated, AUC 0.85); others differ from
it in one thing. A hosted one is llama-3.1-8b in fp8 on GPUs of the cluster; it is taken to judge as well.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.drift_plans import single_models
from benchmarks.judge_economics_report import (
    ALONE,
    AS_IN_THE_FILE,
    LEAST_GAIN,
    SINGLE,
    BreakEven,
    Judged,
    Priced,
    Setting,
    brief,
    markdown,
)
from benchmarks.paper_cases import DEEPSEEK, LLAMA, case, floors
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.relaxing import plan_anyway
from cascadia_fast.baselines.systems import system_named
from cascadia_fast.blueprint import OURS, Plan
from cascadia_fast.comparison.measuring import measured
from cascadia_fast.comparison.splitting import rotated, split
from cascadia_fast.comparison.trial import reference_s
from cascadia_fast.errors import NoPlanError
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.samples import with_simulated_scores
from cascadia_fast.simulation import simulate
from cascadia_fast.workload import ScoredRequests, Workload

FLOORS = (0, 2)  # of the four that stand for the paper's
SEEDS = 5
REQUESTS = 20_000
AUCS = (0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
PRICES_USD = (0.0, 0.0005, 0.002, 0.005)
INSTANT, HOSTED = "free and instant", "hosted"
# A judge that guesses, nearly: an AUC must be above one half. The best one that is looked at is nearly perfect: a
# perfect judge of answers that are right or wrong has two scores, and no threshold between them but one.
GUESSING, NEARLY_PERFECT = 0.505, 0.99
BISECTIONS = 6
NEWTON_STEPS = 30
LEAST_USD = 1e-7
MOST_USD = 10.0
TOLERANCE = 1e-4


class Trials:
    """Plans and simulations of one trace; engines are built once, and once more with those of a hosted judge."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problem = case(name)
        self.planner = Planner(self.problem, threads=1)

    @cached_property
    def hosting(self) -> Planner:
        """With a judge on GPUs of the cluster."""
        return Planner(self.problem.replace(judge_latency_s=0.0, judge_model="llama-3.1-8b", judge_weights="fp8"), 1)

    @cached_property
    def floors(self) -> tuple[int, ...]:
        return floors(self.planner)

    def judged(self, auc: float | None) -> ScoredRequests:
        """Return the requests with the scores of the file, or of a judge of another accuracy."""
        requests = self.problem.workload.requests
        return requests if auc is None else with_simulated_scores(requests, auc, self.problem.judge.seed)


class Drawing:
    """One trace under one floor with one seed: what is planned for, what is served, and the best single model."""

    def __init__(self, trials: Trials, q_min: float, seed: int) -> None:
        self.trials, self.q_min, self.seed = trials, q_min, seed
        self.setting = Setting(trials.name, q_min, seed)
        self._requests: dict[float | None, tuple[ScoredRequests, ScoredRequests]] = {}

    def case(self, auc: float | None = None, planner: Planner | None = None, **changes: Any) -> Case:
        """Return what systems plan for; `changes` are those of `Problem.replace`."""
        return Case.of(self._problem(auc, planner, 0, **changes), planner or self.trials.planner, seed=self.seed)

    def _problem(self, auc: float | None, planner: Planner | None, half: int, **changes: Any) -> Problem:
        if auc not in self._requests:
            halves = split(self.trials.judged(auc), self.seed)
            self._requests[auc] = halves.planning, halves.test
        base = self.trials.problem if planner is None else planner.problem
        arrivals = self.trials.problem.workload.arrivals
        workload = Workload.build(self._requests[auc][half], rotated(arrivals, self.seed) if half else arrivals)
        return base.replace(workload=workload, q_min=self.q_min, **changes)

    def served(
        self, plan: Plan, auc: float | None = None, planner: Planner | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Return what a plan does on the test half, as `comparison.measuring` says."""
        problem = self._problem(auc, planner, 1, **changes)
        run = simulate(plan, problem, requests=REQUESTS, seed=self.seed)
        return measured(run, reference_s(problem, self.trials.planner.fleet, problem.workload.requests))

    @cached_property
    def alone(self) -> Plan:
        """The best single model on all GPUs."""
        return plan_anyway(self.case(), OURS, lambda eased: eased.planner(cascades=single_models).plan())

    @cached_property
    def deadline_s(self) -> float | None:
        """What it reaches by the formula; None in overload."""
        found = self.alone.predicted.end_to_end_p95_s
        return None if found is None else found * (1 + 1e-9)

    @cached_property
    def alone_usd_per_hour(self) -> float | None:
        """What the cheapest single model within the deadline costs."""
        return self.cheapest_usd_per_hour(self.case(), cascades=single_models)

    def cheapest_usd_per_hour(self, asked: Case, **options: Any) -> float | None:
        """Return the price of the cheapest plan within the deadline; None where there is none."""
        found = self._cheapest(asked, **options)
        return None if found is None else found.predicted.cost_usd_per_hour

    def _cheapest(self, asked: Case, **options: Any) -> Plan | None:
        try:
            return asked.replace(objective="min_cost", slo_s=self.deadline_s).planner(**options).plan()
        except NoPlanError:
            return None

    def break_even_usd(self) -> float | None:
        """Return the price of a call at which the cheapest cascade costs what the best single model does.

        The plan that is cheapest at some price breaks even at another one, above it; the cheapest one there breaks even
        higher still, until none does: Newton's steps on a concave function, which end at its zero.
        """
        alone_usd = self.alone_usd_per_hour
        if alone_usd is None:
            return None
        price_usd = LEAST_USD
        for _ in range(NEWTON_STEPS):
            plan = self._cheapest(self.case(judge_usd_per_call=price_usd))
            if plan is None or plan.predicted.cost_usd_per_hour is None:
                return None
            gpus_usd = plan.gpus * (self.trials.problem.price_usd_per_hour or 0.0)
            calls_per_hour = (plan.predicted.cost_usd_per_hour - gpus_usd) / price_usd
            if calls_per_hour <= 0 or plan.predicted.cost_usd_per_hour >= alone_usd * (1 - TOLERANCE):
                return price_usd if price_usd > LEAST_USD else 0.0
            price_usd = min((alone_usd - gpus_usd) / calls_per_hour, MOST_USD)
        return price_usd


def drawings(names: Sequence[str], seeds: int) -> Iterator[Drawing]:
    """Return every trace under both floors with every seed."""
    for name in names:
        trials = Trials(name)
        for level in FLOORS:
            for seed in range(seeds):
                yield Drawing(trials, float(trials.floors[level]), seed)


def judged(drawing: Drawing) -> Iterator[Judged]:
    """Serve the plans for every judge, and those that ask none."""
    alone = drawing.alone
    yield _judged(drawing, ALONE, alone, drawing.served(alone))
    single = system_named(SINGLE).plan(drawing.case())
    yield _judged(drawing, SINGLE, single, drawing.served(single))
    hosting = drawing.trials.hosting
    variants: list[tuple[str, dict[str, Any]]] = [
        (AS_IN_THE_FILE, {}),
        (INSTANT, {"judge_latency_s": 0.0}),
        (HOSTED, {"planner": hosting}),
        *((f"AUC {auc:g}", {"auc": auc}) for auc in AUCS),
    ]
    for name, changes in variants:
        plan = plan_anyway(drawing.case(**changes), OURS, lambda eased: eased.planner().plan())
        yield _judged(drawing, name, plan, drawing.served(plan, **changes))


def _judged(drawing: Drawing, judge: str, plan: Plan, found: dict[str, Any]) -> Judged:
    reach = [found["reach"][stage.index] for stage in plan.stages]
    return Judged(
        setting=drawing.setting,
        judge=judge,
        scale95=found["scale95"],
        p95_s=found["p95_s"],
        quality=found["quality"],
        models=len(plan.stages),
        # Whom the first model's answer does not satisfy.
        escalated=reach[1] if len(reach) > 1 else 0.0,
        calls=found["judge_calls"],
    )


def priced(drawing: Drawing) -> Iterator[Priced]:
    """Return what the cheapest plan costs within the deadline of the best single model, for every judge and price."""
    per_thousand = 1000 / 3600 / drawing.case().rate_per_s
    if drawing.deadline_s is None or drawing.alone_usd_per_hour is None:
        return
    asked: list[tuple[str, float, Case]] = [
        *((AS_IN_THE_FILE, price, drawing.case(judge_usd_per_call=price)) for price in PRICES_USD),
        (INSTANT, 0.0, drawing.case(judge_latency_s=0.0)),
        (HOSTED, 0.0, drawing.case(planner=drawing.trials.hosting)),
        *((f"AUC {auc:g}", 0.0, drawing.case(auc=auc)) for auc in AUCS),
    ]
    for judge, price_usd, case_of in asked:
        usd = drawing.cheapest_usd_per_hour(case_of)
        if usd is not None:
            alone_usd = drawing.alone_usd_per_hour * per_thousand
            yield Priced(drawing.setting, judge, price_usd, usd * per_thousand, alone_usd)


def break_evens(same: Sequence[Drawing]) -> BreakEven:
    """Return where the cascade stops paying, for one trace and floor in all its drawings."""
    prices = [found for drawing in same if (found := drawing.break_even_usd()) is not None]

    def gain_in_latency(auc: float) -> float:
        planned = [plan_anyway(one.case(auc=auc), OURS, lambda eased: eased.planner().plan()) for one in same]
        pairs = [
            (plan.predicted.end_to_end_p95_s, one.alone.predicted.end_to_end_p95_s)
            for plan, one in zip(planned, same, strict=True)
        ]
        return _mean_gain(pairs)

    def gain_in_money(auc: float) -> float:
        return _mean_gain([(one.cheapest_usd_per_hour(one.case(auc=auc)), one.alone_usd_per_hour) for one in same])

    setting = same[0].setting
    return BreakEven(
        trace=setting.trace,
        q_min=setting.q_min,
        price_usd=tuple(prices),
        auc_latency=least_auc(gain_in_latency),
        auc_money=least_auc(gain_in_money),
    )


def _mean_gain(pairs: Sequence[tuple[float | None, float | None]]) -> float:
    """Geometric mean of how much smaller the first of each pair is, less 1; where one is unknown nothing is gained."""
    ratios = [1.0 if ours is None or alone is None else alone / ours for ours, alone in pairs]
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) - 1


def least_auc(gain: Callable[[float], float]) -> float | None:
    """Return the accuracy from which on there is a gain, by bisection; None where there is none at any."""
    low, high = GUESSING, NEARLY_PERFECT
    if gain(high) < LEAST_GAIN:
        return None
    if gain(low) >= LEAST_GAIN:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) >= LEAST_GAIN else (middle, high)
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="drawings of the requests' halves")
    parser.add_argument("--all", action="store_true", help="print every table")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    all_judged: list[Judged] = []
    all_priced: list[Priced] = []
    all_break_evens: list[BreakEven] = []
    for name in (*DEEPSEEK, *LLAMA):
        found = list(drawings([name], options.seeds))
        for place in range(0, len(found), options.seeds):
            same = found[place : place + options.seeds]
            all_judged += [row for drawing in same for row in judged(drawing)]
            all_priced += [row for drawing in same for row in priced(drawing)]
            all_break_evens.append(break_evens(same))
    shown = markdown if options.all else brief
    print(shown(all_judged, all_priced, all_break_evens))
    if options.json:
        parts: dict[str, Sequence[Any]] = {
            "judged": all_judged,
            "priced": all_priced,
            "break_even": all_break_evens,
        }
        rows = {part: [asdict(row) for row in found] for part, found in parts.items()}
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
