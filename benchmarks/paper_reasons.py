"""Why our figures differ from the paper's: every sentence is made from a computation on the cases.

They plan on all requests of a case, without simulation, so that they say what the data and the latency model allow and
not what one run came to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import geometric_mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper_cases import DEEPSEEK, case, floors
from benchmarks.paper_figures import Factor, Results
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.routellm import ROUTER_AUC
from cascadia_fast.errors import NoPlanError
from cascadia_fast.planner import Planner

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """At one floor, the rate that the GPUs carry by the best cascade over that of the smallest model that meets it."""

    case: str
    q_min: float
    single: str
    largest_alone: bool
    times: float


def gains(names: Iterable[str], own_judge: bool = False) -> list[Gain]:
    """Return the gains in capacity at every floor; with `own_judge` quality is what the routing judge says."""
    return [gain for name in names for gain in _gains_of(name, own_judge)]


@cache
def _gains_of(name: str, own_judge: bool) -> tuple[Gain, ...]:
    problem = case(name)
    requests = problem.workload.requests
    if own_judge:
        requests = dataclasses.replace(requests, quality=requests.score)
        problem = problem.replace(workload=problem.workload.replace(requests=requests))
    planner = Planner(problem)
    fixed = Case.of(problem, planner)
    found = []
    for floor in floors(planner):
        model = single_model(fixed, floor)
        best = planner.plan(q_min=floor, objective="max_rate").predicted.max_rate_per_s
        last = len(requests.models) - 1
        times = best / alone_per_s(fixed, model)
        found.append(Gain(name, floor, requests.models[model], model == last, times))
    return tuple(found)


def single_model(fixed: Case, q_min: float) -> int:
    """Return the smallest model that meets a floor alone; the best one where none does."""
    meeting = np.flatnonzero(fixed.mean_quality >= q_min)
    return int(meeting[0]) if meeting.size else int(np.argmax(fixed.mean_quality))


def alone_per_s(fixed: Case, model: int) -> float:
    """Return the largest rate of one model on all GPUs, within the goal's cap on utilisation."""
    visits = np.zeros((fixed.models, fixed.requests.size))
    visits[model] = 1
    engines_per_s = StationLoads(fixed, visits).capacity_per_s(model)
    gpus = [replica.shape.gpus for replica in fixed.fleet[model].replicas]
    most_per_s = max(per_s * (fixed.gpus // each) for per_s, each in zip(engines_per_s, gpus, strict=True))
    return float(most_per_s * fixed.problem.goal.max_utilization)


def capacity_reason(names: Sequence[str]) -> str:
    """Against a single model: how much more traffic the same GPUs can carry at all."""
    found = [gain.times for gain in gains(names)]
    text = (
        f"By the latency model the same GPUs carry {geometric_mean(found):.2f} times what the single model carries in "
        f"the mean of the floors, and {max(found):.2f} times at most"
    )
    if not set(names) <= set(DEEPSEEK):
        return f"{text}."
    flattered = [gain.times for gain in gains(names, own_judge=True)]
    return (
        f"{text}; if answers counted as the judge scores them that also routes (one judge for both), "
        f"it would be {geometric_mean(flattered):.2f} and {max(flattered):.2f}."
    )


def same_model_reason(names: Sequence[str]) -> str:
    """Against a single model: at how many floors a smaller one will do."""
    found = gains(names)
    small = [gain for gain in found if not gain.largest_alone]
    return (
        f"At {len(small)} of the {len(found)} floors {small[0].single if small else 'no smaller model'} alone will do, "
        "and a cascade has little to add."
    )


def first_model_reason(name: str, q_min: float) -> str:
    """Why the smallest model is left out where the paper keeps it: what keeping it would cost."""
    problem = case(name)
    smallest = problem.stages[0].name
    ours = Planner(problem).plan(q_min=q_min)
    try:
        kept = Planner(problem.replace(models={smallest: {"min_replicas": 1}})).plan(q_min=q_min)
    except NoPlanError:
        return f"With {smallest} in front no plan meets the floor at this rate."
    times = (kept.predicted.end_to_end_p95_s or math.inf) / (ours.predicted.end_to_end_p95_s or math.nan)
    return (
        f"Planned on all requests with {smallest} in front, the p95 would be {times:.2f} times as long: its scores let "
        f"it keep {100 * (1 - kept.stages[1].reach):.0f} % of the requests."
    )


def router_reason(names: Sequence[str]) -> str:
    """What the router is given, beside what the judge's scores say of the same thing."""
    told = []
    for name in names:
        requests = case(name).workload.requests
        gain = requests.quality[-1] - requests.quality[0]
        told.append(f"{auc(-requests.score[0], gain, requests.weight):.2f}")
    return (
        f"Of two requests its router is given to tell, before any answer and at no cost, which gains more from the "
        f"largest model with AUC {ROUTER_AUC:g}; the judge tells that from the smallest model's answer, once it is "
        f"written, with AUC {', '.join(told[:-1])} and {told[-1]} on the traces."
    )


def auc(value: FloatArray, gain: FloatArray, weight: FloatArray) -> float:
    """Return the chance that, of two requests of unequal gain drawn by weight, the larger gain has the larger value.

    Equal values count half.
    """
    larger = weight[:, None] * weight[None, :] * (gain[:, None] > gain[None, :])
    ahead = (np.sign(value[:, None] - value[None, :]) + 1) / 2
    return float((larger * ahead).sum() / larger.sum())


def load_reason(name: str, q_min: float) -> str:
    """The load behind a figure that depends on it more than on anything else."""
    problem = case(name)
    rate_per_s = problem.workload.rate_per_s
    most = Planner(problem).plan(q_min=q_min, objective="max_rate").predicted.max_rate_per_s
    return (
        f"The paper states no rates; here {rate_per_s:g} requests/s are {100 * rate_per_s / most:.0f} % of what fits."
    )


def sample_reason(results: Results, system: str) -> str:
    """What planning on half of the requests costs in quality on the other half."""
    pairs = [
        (cell["plan"]["predicted_quality"], cell["measured"]["quality"])
        for cell in results["cells"]
        if cell["system"] == system and cell["purpose"] == "main" and cell["plan"] is not None
    ]
    planned, measured = np.mean(pairs, axis=0)
    fewest = min(one["independent_requests"] for one in results["cases"])
    return (
        f"Plans are made on one half of tables worth {fewest:,.0f} requests or more and expect {planned:.1f} in the "
        f"mean; the other half comes to {measured:.1f}."
    )


def step_reason(name: str) -> str:
    """In which steps GPUs can be saved at all."""
    planner = Planner(case(name))
    least = min(replica.shape.gpus for replica in planner.fleet[-1].replicas)
    return (
        f"{planner.problem.stages[-1].name} runs on no fewer than {least} GPUs, which are "
        f"{100 * least / planner.problem.gpus:.0f} % of all: cost falls in such steps."
    )


def tuning_reason(fixed: Factor, tuned: Factor) -> str:
    """What parallelism is worth to CascadeServe, which plans with all the rest that ours plans with."""
    if fixed.mean is None or tuned.mean is None:
        return ""
    return (
        "It is given our judge's scores and our latency model to plan with; with its TP tuned once its scale is "
        f"{tuned.mean:.2f} times ours, without {fixed.mean:.2f}."
    )


def shape_reason(name: str) -> str:
    """What the one shape of uniform parallelism carries of what the best shapes carry."""
    planner = Planner(case(name))
    fixed = Case.of(planner.problem, planner)
    widest = [max((engine.shape.tp, -engine.shape.pp) for engine in stage.replicas) for stage in fixed.fleet]
    forced = fixed.keeping(lambda model, engine: (engine.shape.tp, -engine.shape.pp) == widest[model])
    shares = [
        f"{stage.name} carries {100 * alone_per_s(forced, model) / alone_per_s(fixed, model):.0f} % on "
        f"TP{widest[model][0]}"
        for model, stage in enumerate(planner.problem.stages)
    ]
    return f"Of what it carries in the best shape, {', '.join(shares)} ({name})."


def skipped_reason(results: Results) -> str:
    """How many models ours runs: with one there is nothing to allocate."""
    counts = [len(plan["stages"]) for plan in _plans_of_ours(results)]
    one, two = (100 * counts.count(number) / len(counts) for number in (1, 2))
    return (
        f"Ours runs a single model in {one:.0f} % of the trials and two in {two:.0f} %, which leaves less to allocate."
    )


def _plans_of_ours(results: Results) -> list[dict[str, Any]]:
    return [
        cell["plan"]
        for cell in results["cells"]
        if cell["system"] == "ours" and cell["purpose"] == "main" and cell["plan"] is not None
    ]
