"""What the proof of a plan says, and of what, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascadia_fast.summary_units import OBJECTIVES, duration, number, objective_text, percent, plural

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan

_FAMILIES = {
    "homogeneous": "every station in any number of equal replicas of one shape",
    "mixed": "every station in any numbers of replicas of up to two shapes",
    "pooled": "every station in any numbers of replicas of any shapes on any of its pools",
}
_ONE_BY_ONE = 1e-6  # a smaller gap is rounding


def certificate_words(plan: Plan) -> tuple[str, ...]:
    """Sentences: what is proved, of which plans, by what, and what it rests on."""
    return tuple(_sentence(text) for text in (_claim(plan), _kind(plan), *_work(plan), *_check(plan), _rests_on(plan)))


def _claim(plan: Plan) -> str:
    solver = plan.solver
    what = OBJECTIVES[plan.objective]
    if solver.method == "alternating":
        return (
            "not proved: the alternating method is a heuristic, and how far the best plan is from this one is unknown"
        )
    if solver.simulated is not None:
        return (
            "not proved: latencies come from simulation, and only plans that the formula holds promising were simulated"
        )
    if solver.bound is None or solver.gap is None:
        return f"not proved: {_stopped(plan)}nothing is known of what better plans there may be"
    better = "larger" if plan.objective == "max_rate" else "smaller"
    if solver.complete and solver.gap <= _ONE_BY_ONE:
        return f"proved: no plan of this kind has a {better} {what}"
    bound = objective_text(plan.objective, solver.bound)
    bounded = f"no plan of this kind has a {better} {what} than {bound}, {percent(solver.gap)} from this one"
    if solver.complete:
        return f"proved within a tolerance: {bounded}"
    return f"not proved to the end: {_stopped(plan)}but {bounded}"


def _stopped(plan: Plan) -> str:
    if plan.solver.complete:
        return ""
    limit_s = plan.solver.time_limit_s
    return f"the search was stopped{'' if limit_s is None else f' after {duration(limit_s)}'}, "


def _kind(plan: Plan) -> str:
    solver = plan.solver
    models = len(plan.stages) + len(plan.skipped_models)
    if solver.subsets > 1:
        cascades = f"any of the {solver.subsets:,} cascades that {plural(models, 'model')} can form"
    else:
        cascades = f"the cascade of {'all ' if models > 1 else ''}{plural(models, 'model')}"
    levels = " × ".join(f"{count:,}" for count in solver.levels)
    grid = f", thresholds on a grid of {levels} levels" if solver.levels else ""
    return (
        f"of this kind means {cascades}{grid} ({plural(solver.distinct_routings, 'distinct routing')} of the scored "
        f"requests), and {_FAMILIES[solver.family]}"
    )


def _work(plan: Plan) -> list[str]:
    solver = plan.solver
    if solver.method == "alternating" or solver.simulated is not None:
        return []
    return [
        f"{plural(solver.evaluated, 'routing')} had to be worked out in {duration(solver.seconds)}; bounds on load, "
        f"GPUs and latency ruled out {solver.pruned:,}"
    ]


def _check(plan: Plan) -> list[str]:
    proof = plan.solver.highs
    if proof is None or proof.objective is None:
        return []
    found = objective_text(plan.objective, proof.objective)
    return [f"HiGHS, an independent solver, allocates the GPUs for this routing at {found} (status {proof.status})"]


def _rests_on(plan: Plan) -> str:
    low, high = plan.predicted.quality_ci95
    source = "simulation" if plan.solver.simulated is not None else "the latency model"
    requests = plural(plan.workload.scored_requests, "scored request")
    return (
        f"all of it holds for {source} with step times that are {plan.calibration.status} (profile "
        f"{plan.calibration.profile}) and for these {requests}; with others, quality may lie anywhere from "
        f"{number(low)} to {number(high)} (95 % interval)"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
