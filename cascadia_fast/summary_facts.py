"""What a plan's summary says line by line: thresholds, quality, load, latency, money, energy, judge and proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cascadia_fast.blueprint_routing import OURS
from cascadia_fast.summary_routing import routing_facts
from cascadia_fast.summary_units import (
    OBJECTIVES,
    digits,
    dollars,
    duration,
    energy,
    number,
    objective_text,
    percent,
    plural,
)

if TYPE_CHECKING:
    from cascadia_fast.blueprint import HighsProof, Plan, SimulatedLatency, SolverReport


def facts_of(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Every line with its label; lines that belong to the one before have none."""
    facts = [
        *routing_facts(plan),
        *_batching_facts(plan),
        ("quality", _quality(plan)),
        ("rate", _rate(plan)),
        ("latency", _latency(plan)),
        *_constraint_facts(plan),
    ]
    if plan.solver.simulated is not None:
        facts.append(("simulated", _simulated(plan, plan.solver.simulated)))
    facts += [("GPUs", _gpus(plan)), ("cost", _cost(plan)), ("work", _work(plan))]
    if plan.skipped_models:
        facts.append(("not used", _skipped(plan)))
    if plan.routing.asks_judge:
        facts.append(("judge", _judge(plan)))
    facts.append(("solver", _solver(plan)))
    if plan.solver.highs is not None:
        facts.append(("check", _check(plan, plan.solver.highs)))
    facts.append(("calibration", _calibration(plan)))
    return (*facts, *(("warning", warning) for warning in plan.warnings))


def _batching_facts(plan: Plan) -> list[tuple[str, str]]:
    if plan.batching == "chunked":
        return []
    return [("batching", "whole prompts first: a step reads prompts or decodes, never both")]


def _quality(plan: Plan) -> str:
    predicted, workload = plan.predicted, plan.workload
    low, high = predicted.quality_ci95
    text = f"{number(predicted.quality)}, floor {number(plan.q_min)}"
    if plan.q_confidence is not None and predicted.quality_lower is not None:
        text += f" met with {percent(plan.q_confidence)} confidence: {number(predicted.quality_lower)} or more"
    text += f"; 95 % interval {number(low)} to {number(high)} from {plural(workload.scored_requests, 'scored request')}"
    if workload.effective_size < 0.995 * workload.scored_requests:
        text += f" (worth {digits(workload.effective_size)} after reweighting)"
    return text


def _rate(plan: Plan) -> str:
    workload = plan.workload
    most = f"{digits(plan.predicted.max_rate_per_s)} within the utilisation cap of {percent(plan.max_utilization)}"
    if plan.objective == "max_rate":
        rate = digits(workload.rate_per_s)
        largest = "the largest that meets" if plan.status == "optimal" else "the largest found that meets"
        return f"{rate} requests/s is {largest} every constraint; this plan carries at most {most}"
    headroom = f", headroom × {number(workload.headroom)}" if workload.headroom != 1 else ""
    return (
        f"{digits(workload.rate_per_s)} requests/s planned ({workload.rate_from}{headroom}); this plan carries at "
        f"most {most}"
    )


def _latency(plan: Plan) -> str:
    predicted = plan.predicted
    first = "first token"
    before = ""
    if len(plan.stages) > 1:
        held = "stages and judge" if plan.routing.asks_judge else "stages"
        first, before = "first token of the final answer", f" (earlier {held} included)"
    return (
        f"predicted end to end p50 {duration(predicted.end_to_end_p50_s)}, p95 {duration(predicted.end_to_end_p95_s)}; "
        f"slowest stage p95 {duration(predicted.max_stage_p95_s)}; {first} p95 {duration(predicted.ttft_p95_s)}{before}"
    )


def _constraint_facts(plan: Plan) -> list[tuple[str, str]]:
    """Deadline, budget and losses: whether they are met, and what is left."""
    facts = []
    if plan.slo_s is not None and plan.slo_metric is not None:
        reached_s = getattr(plan.predicted, f"{plan.slo_metric}_s")
        facts.append(
            (
                "deadline",
                f"{OBJECTIVES[plan.slo_metric]} of at most {duration(plan.slo_s)}: "
                f"{_left(reached_s, plan.slo_s, duration)}",
            )
        )
    if plan.budget_usd_per_hour is not None:
        budget = plan.budget_usd_per_hour
        facts.append(
            (
                "budget",
                f"at most {dollars(budget)} USD per hour: {_left(plan.predicted.cost_usd_per_hour, budget, dollars)}",
            )
        )
    if plan.survive != "none":
        still = "its deadline is still met" if plan.slo_s is not None else "the others still carry the load"
        facts.append(("survives", f"the loss of any one {plan.survive}: {still}"))
    return facts


def _left(reached: float | None, limit: float, text: Callable[[float | None], str]) -> str:
    if reached is None:
        return "not met, because nothing bounds it"
    if reached > limit:
        return f"missed with {text(reached)}, {text(reached - limit)} too much"
    return f"met with {text(reached)}, {text(limit - reached)} ({percent(1 - reached / limit)}) left"


def _simulated(plan: Plan, simulated: SimulatedLatency) -> str:
    """Where the latencies come from, and what the formula says of the one that was minimised."""
    return (
        f"{plural(simulated.requests, 'request')} of the whole cascade (seed {simulated.seed}), after "
        f"{plural(simulated.runs, 'run')} of a stage alone; slowest stage alone p95 {duration(plan.latency_s)}, by "
        f"formula {duration(simulated.formula_latency_s)}"
    )


def _gpus(plan: Plan) -> str:
    idle = plan.pool_gpus - plan.gpus
    text = f"{plan.gpus:,} of {plan.pool_gpus:,} used"
    if len(plan.pools) > 1:
        used = {pool.name: 0 for pool in plan.pools}
        for group in plan.groups:
            used[group.pool] += group.count * group.tp * group.pp
        text += f" ({', '.join(f'{used[pool.name]:,} of {pool.gpus:,} {pool.name}' for pool in plan.pools)})"
    why = ", because more would not improve the plan" if plan.system == OURS else ""
    return text + (f"; {idle:,} idle{why}" if idle else "")


def _cost(plan: Plan) -> str:
    predicted = plan.predicted
    texts = []
    if predicted.cost_usd_per_hour is None:
        texts.append("unknown, as not every pool has a price")
    else:
        texts.append(f"{dollars(predicted.cost_usd_per_hour)} USD per hour")
    if predicted.usd_per_request is not None:
        texts[0] += f", {digits(1000 * predicted.usd_per_request)} USD per 1,000 requests"
    if predicted.energy_j_per_request is not None:
        texts.append(
            f"energy at most {energy(predicted.energy_j_per_request)} per request (board power of busy GPUs; what they "
            "draw while idle is not counted)"
        )
    return "; ".join(texts)


def _work(plan: Plan) -> str:
    """Where the GPUs go: how many are busy, where most of them are, and what one request costs at each stage."""
    stations = [(f"stage {stage.index + 1}", stage.utilization * stage.gpus, stage.rate_per_s) for stage in plan.stages]
    if plan.judge.gpus:
        stations.append(("the judge", (plan.judge.utilization or 0.0) * plan.judge.gpus, plan.judge.rate_per_s or 0.0))
    busy = sum(work for _, work, _ in stations)
    text = f"{digits(busy)} of {plural(plan.gpus, 'GPU')} busy on average"
    visits = [f"{digits(work / rate)} GPU-s at {name}" for name, work, rate in stations if rate > 0]
    if len(visits) > 1 and busy > 0:
        name, heaviest, _ = max(stations, key=lambda station: station[1])
        text += f", {percent(heaviest / busy)} of them at {name}"
    return f"{text} (per request: {', '.join(visits)})" if visits else text


def _skipped(plan: Plan) -> str:
    names = ", ".join(plan.skipped_models)
    if plan.system != OURS:
        return f"{names}: {plan.system} does without"
    if plan.solver.subsets > 1 and plan.status != "optimal":
        return f"{names}: the best plan found does without"
    if plan.solver.subsets > 1:
        return f"{names}: no plan with {'it' if len(plan.skipped_models) == 1 else 'any of them'} is better"
    return f"{names}: no request has to go there to meet the floor"


def _judge(plan: Plan) -> str:
    judge = plan.judge
    auc = "" if judge.simulated_auc is None else f" with AUC {number(judge.simulated_auc)}"
    price = f", {digits(judge.usd_per_call)} USD per call" if judge.usd_per_call else ""
    if judge.kind != "hosted":
        each = f"{duration(judge.latency_s)} per call" if judge.latency_s else "instant"
        return f"{judge.kind}{auc}, {each}{price}"
    beside = f" and {duration(judge.latency_s)} beside it" if judge.latency_s else ""
    calls = f"{digits(judge.rate_per_s or 0.0)} calls/s, {duration(judge.p95_s)} per call (p95){beside}"
    return f"hosted, {judge.model} ({judge.weights}){auc}: {calls}{price}"


def _solver(plan: Plan) -> str:
    solver = plan.solver
    work = f"{solver.evaluated:,} evaluated, {solver.pruned:,} pruned"
    certificate = solver.certificate
    if solver.trace:
        work = plural(len(solver.trace), "round")
        certificate = certificate.removesuffix(f"; {work}")
    parts = [f"{solver.method}, {certificate}", *_gap(plan, solver), f"{work}, {duration(solver.seconds)}"]
    return "; ".join(parts)


def _gap(plan: Plan, solver: SolverReport) -> list[str]:
    """How far from proved, where the search was stopped or something is left."""
    if solver.bound is None or solver.gap is None:
        return [] if solver.complete else ["stopped at its time limit, and nothing is known of better plans"]
    if solver.gap == 0:
        return []
    bound = objective_text(plan.objective, solver.bound)
    return [f"no plan has {_beyond(plan.objective, bound)}, {percent(solver.gap)} from this one"]


def _beyond(objective: str, bound: str) -> str:
    return f"a {OBJECTIVES[objective]} {'above' if objective == 'max_rate' else 'below'} {bound}"


def _check(plan: Plan, proof: HighsProof) -> str:
    """What the second solver says of the allocation."""
    effort = f"({plural(proof.columns, 'column')}, {duration(proof.seconds)})"
    found = objective_text(plan.objective, proof.objective)
    if proof.objective is None:
        return f"HiGHS ends with status {proof.status} and no result {effort}"
    if proof.status == "optimal" and found == objective_text(plan.objective, plan.objective_value):
        return f"HiGHS finds the same {found} {effort}"
    return f"HiGHS finds {found}, status {proof.status} {effort}"


def _calibration(plan: Plan) -> str:
    by_status: dict[str, list[str]] = {}
    for stage in plan.calibration.stages:
        by_status.setdefault(stage.status, []).append(stage.model)
    found = "; ".join(f"{', '.join(models)} {status}" for status, models in by_status.items())
    return f"{plan.calibration.profile}: {found}"
