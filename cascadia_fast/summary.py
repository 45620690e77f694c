"""A plan as text for people: a table of stages, the facts around it, the alternative, and what to try next.

Units are humane here and nowhere else.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from cascadia_fast.summary_layout import Report, Table, draw, encodable, plain, to_ascii

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Iteration, Plan, ReplicaGroup, SingleModel, StagePlan

DEFAULT_COMMAND = ("cascadia-fast", "plan", "FILE")

_FILE_WIDTH = 120


def summarize(
    plan: Plan,
    *,
    width: int = 100,
    ascii_only: bool = False,
    command: Sequence[str] = DEFAULT_COMMAND,
    flags: Mapping[str, str] | None = None,
) -> str:
    """Plain text of a plan, wrapped at `width` columns.

    Parameters
    ----------
    plan : the plan.
    width : columns; at least 40 are used.
    ascii_only : write ``x`` for the multiplication sign and so on.
    command, flags : how the plan was asked for, so that the next commands repeat it with one thing changed.
    """
    text = plain(report_of(plan, command, flags or {}), width)
    return to_ascii(text) if ascii_only else text


def show(plan: Plan, file: IO[str], command: Sequence[str], flags: Mapping[str, str]) -> None:
    """Write the summary to `file`: drawn as wide as the terminal on one, plain text elsewhere."""
    report = report_of(plan, command, flags)
    if file.isatty():
        draw(report, file)
        return
    text = plain(report, _FILE_WIDTH)
    file.write(text if encodable(text, file) else to_ascii(text))


def report_of(plan: Plan, command: Sequence[str], flags: Mapping[str, str]) -> Report:
    """What the summary of a plan says."""
    return Report(_title(plan), _stages(plan), _facts(plan), _versus(plan), _verdict(plan), _next(plan, command, flags))


def duration(seconds: float | None) -> str:
    """``135 s``, ``270 ms``, ``12.5 min``; None is what load never lets end."""
    if seconds is None:
        return "unbounded"
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (600.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if seconds < limit:
            return f"{_digits(seconds * scale)} {unit}"
    return f"{_digits(seconds / 3600)} h"


def _digits(value: float) -> str:
    """Three significant digits, never an exponent."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.6f}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _dollars(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _title(plan: Plan) -> str:
    pool = " + ".join(f"{pool.gpus:,} {pool.gpu}" for pool in plan.pools)
    return (
        f"Plan {plan.plan_id} ({plan.status}): {_plural(len(plan.stages), 'stage')} on {pool}, "
        f"quality floor {_number(plan.q_min)}, objective {plan.objective}"
    )


def _stages(plan: Plan) -> Table:
    header = ("stage", "model", "weights", "GPUs", "replicas", "reach", "rate", "p95", "utilisation", "batch")
    return Table(header, tuple(_stage_row(stage) for stage in plan.stages), frozenset({"model", "weights", "replicas"}))


def _stage_row(stage: StagePlan) -> tuple[str, ...]:
    limit = max((group.max_num_seqs for group in stage.replicas), default=0)
    return (
        str(stage.index + 1),
        stage.model,
        stage.weights,
        f"{stage.gpus:,}",
        " + ".join(_group(group) for group in stage.replicas) or "none",
        _percent(stage.reach),
        f"{_digits(stage.rate_per_s)}/s",
        duration(stage.p95_s),
        _percent(stage.utilization),
        "–" if stage.mean_batch is None else f"{_digits(stage.mean_batch)} of {limit}",
    )


def _group(group: ReplicaGroup) -> str:
    return f"{group.count:,} × tp{group.tp}" + (f" pp{group.pp}" if group.pp > 1 else "")


def _facts(plan: Plan) -> tuple[tuple[str, str], ...]:
    facts = [
        *_threshold_facts(plan),
        ("quality", _quality(plan)),
        ("rate", _rate(plan)),
        ("latency", _latency(plan)),
        ("GPUs", _gpus(plan)),
        ("why", _work(plan)),
    ]
    if plan.skipped_models:
        facts.append(("not used", f"{', '.join(plan.skipped_models)}: no request has to go there to meet the floor"))
    if len(plan.stages) > 1:
        facts.append(("judge", _judge(plan)))
    facts.append(("solver", _solver(plan)))
    if plan.solver.highs is not None:
        proof = plan.solver.highs
        facts.append(
            (
                "HiGHS",
                f"{proof.status} at {duration(proof.objective)} on {_plural(proof.columns, 'column')}, "
                f"{duration(proof.seconds)}",
            )
        )
    facts.append(("calibration", f"{plan.calibration.profile}, {plan.calibration.status}"))
    return (*facts, *(("warning", warning) for warning in plan.warnings))


def _threshold_facts(plan: Plan) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    pairs = zip(plan.routing.thresholds, plan.routing.threshold_intervals, strict=True)
    for stage, (threshold, (low, high)) in zip(plan.stages, pairs, strict=False):
        number = stage.index + 1
        if threshold == math.inf:
            alike = "" if low is None else f" (nor would it at any threshold above {_number(low)})"
            text = f"stage {number} never accepts{alike}"
        else:
            above = "" if low is None else f"above {_number(low)} "
            below = "" if high == math.inf else f"up to {_number(high)} "
            alike = f" (any threshold {above}{below}routes these requests alike)" if above or below else ""
            text = f"stage {number} accepts a score of {_number(threshold)} or more{alike}"
        facts.append(("" if facts else "thresholds", text))
    return facts


def _quality(plan: Plan) -> str:
    low, high = plan.predicted.quality_ci95
    workload = plan.workload
    text = (
        f"{_number(plan.predicted.quality)}, floor {_number(plan.q_min)}; 95 % interval {_number(low)} to "
        f"{_number(high)} from {_plural(workload.scored_requests, 'scored request')}"
    )
    if workload.effective_size < 0.995 * workload.scored_requests:
        text += f" (worth {_digits(workload.effective_size)} after reweighting)"
    return text


def _rate(plan: Plan) -> str:
    workload = plan.workload
    headroom = f", headroom × {_number(workload.headroom)}" if workload.headroom != 1 else ""
    return (
        f"{_digits(workload.rate_per_s)} requests/s planned ({workload.rate_from}{headroom}); this plan carries at "
        f"most {_digits(plan.predicted.max_rate_per_s)}"
    )


def _latency(plan: Plan) -> str:
    predicted = plan.predicted
    return (
        f"predicted end to end p50 {duration(predicted.end_to_end_p50_s)}, p95 {duration(predicted.end_to_end_p95_s)}; "
        f"slowest stage p95 {duration(predicted.max_stage_p95_s)}; time to first token p95 "
        f"{duration(predicted.ttft_p95_s)}"
    )


def _gpus(plan: Plan) -> str:
    idle = plan.pool_gpus - plan.gpus
    text = f"{plan.gpus:,} of {plan.pool_gpus:,} used"
    if plan.predicted.cost_usd_per_hour is not None:
        text += f", {_dollars(plan.predicted.cost_usd_per_hour)} USD per hour"
    return text + (f"; {idle:,} idle, because more would not improve the plan" if idle else "")


def _work(plan: Plan) -> str:
    """Where the GPUs go and why: what a visit costs, how many visits there are, and what that keeps busy."""
    terms, busy = [], []
    for stage in plan.stages:
        busy.append(stage.utilization * stage.gpus)
        if stage.rate_per_s > 0:
            visit_gpu_s = stage.utilization * stage.gpus / stage.rate_per_s
            terms.append(f"{_digits(stage.rate_per_s)}/s × {_digits(visit_gpu_s)} GPU-s at stage {stage.index + 1}")
    heaviest = max(range(len(busy)), key=busy.__getitem__)
    text = f"{' + '.join(terms)} keep {_digits(sum(busy))} of {plan.gpus:,} GPUs busy"
    if len(terms) > 1:
        text += f", {_percent(busy[heaviest] / sum(busy))} of it at stage {plan.stages[heaviest].index + 1}"
    return f"{text}; the rest buys latency"


def _judge(plan: Plan) -> str:
    judge = plan.judge
    auc = "" if judge.simulated_auc is None else f" with AUC {_number(judge.simulated_auc)}"
    price = f", {judge.usd_per_call:g} USD" if judge.usd_per_call else ""
    return f"{judge.kind}{auc}, {duration(judge.latency_s)}{price} per call"


def _solver(plan: Plan) -> str:
    solver = plan.solver
    text = (
        f"{solver.method}, {solver.certificate}; {_plural(solver.distinct_routings, 'distinct routing')}, "
        f"{solver.evaluated:,} evaluated, {solver.pruned:,} pruned, {duration(solver.seconds)}"
    )
    return f"{text}; {_rounds(solver.trace)}" if solver.trace else text


def _rounds(trace: tuple[Iteration, ...]) -> str:
    values = " → ".join("overload" if step.objective is None else _number(step.objective) for step in trace)
    return f"{_plural(len(trace), 'round')}, objective J {values}"


def _versus(plan: Plan) -> Table:
    header = ("deployment", "GPUs", "p95", "quality", "USD/h", "note")
    predicted = plan.predicted
    rows = [
        (
            "this cascade" if len(plan.stages) > 1 else "this plan",
            f"{plan.gpus:,}",
            duration(predicted.end_to_end_p95_s),
            _number(predicted.quality),
            _dollars(predicted.cost_usd_per_hour),
            "end to end",
        )
    ]
    single = plan.best_single_model
    if single is not None:
        rows.append(
            (
                f"{single.model} alone",
                f"{single.gpus:,}",
                duration(single.p95_s),
                _number(single.quality),
                _dollars(single.cost_usd_per_hour),
                _single_note(plan, single),
            )
        )
    return Table(header, tuple(rows), frozenset({"deployment", "note"}))


def _single_note(plan: Plan, single: SingleModel) -> str:
    if single.feasible:
        return "best single model"
    if single.p95_s is None:
        return "best single model, cannot carry the rate"
    if single.quality < plan.q_min:
        return "best single model, below the floor"
    return "best single model, not feasible"


def _verdict(plan: Plan) -> str:
    binding = plan.binding_stage
    text = (
        f"Binding stage: {binding.index + 1} ({binding.model}), p95 {duration(binding.p95_s)} at "
        f"{_percent(binding.utilization)} utilisation."
    )
    single, cascade_s = plan.best_single_model, plan.predicted.end_to_end_p95_s
    if single is None:
        return text
    if not single.feasible:
        return f"No single model meets the floor at this rate. {text}"
    if not single.p95_s or cascade_s is None or len(plan.stages) == 1:
        return text
    against = f"The cascade has {cascade_s / single.p95_s:.2f} times the p95 of {single.model} alone"
    cost, single_cost = plan.predicted.cost_usd_per_hour, single.cost_usd_per_hour
    if cost is not None and single_cost:
        against += f" and {cost / single_cost:.2f} times its cost"
    return f"{against}. {text}"


def _next(plan: Plan, command: Sequence[str], flags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    def line(name: str, value: str) -> str:
        # What is only tried must not overwrite what was stored.
        asked = {key: given for key, given in flags.items() if key not in (name, "-o")}
        return shlex.join([*command, *(word for pair in {**asked, name: value}.items() for word in pair)])

    lower = max(0.0, plan.q_min - 5)
    found = []
    if lower < plan.q_min:
        found.append((line("--q-min", f"{lower:g}"), "what a lower quality floor buys"))
    else:
        found.append((line("--method", "alternating"), "what the paper's own loop finds"))
    if plan.gpus < plan.pool_gpus:
        found.append((line("--gpus", str(plan.gpus)), "the same without the idle GPUs"))
    else:
        found.append((line("--gpus", str(2 * plan.pool_gpus)), "what twice the GPUs buy"))
    if tuple(command) == ("cascadia-fast", "plan"):
        found.append(("cascadia-fast plan --write-example DIR", "copy the example's files, to start from"))
    elif "-o" in flags:
        found.append((line("--rate", f"{1.25 * plan.workload.rate_per_s:.3g}"), "a quarter more traffic"))
    else:
        found.append((line("-o", "plan.json"), "store the plan"))
    return tuple(found)
