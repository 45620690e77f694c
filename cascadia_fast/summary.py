"""A plan as text for people: a table of stages, the facts around it, the alternative, and what to try next.

Units are humane here and nowhere else.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from cascadia_fast.summary_layout import Report, Table, text_of, write

if TYPE_CHECKING:
    from cascadia_fast.blueprint import HighsProof, Plan, ReplicaGroup, SimulatedLatency, SingleModel, StagePlan

DEFAULT_COMMAND = ("cascadia-fast", "plan", "FILE")

# What the planner takes at most; no command may propose more.
_MAX_GPUS = 1_000_000
_NOTHING = "–"
# Closer than this, two costs are called the same; and no threshold interval narrower than this is worth a word.
_SAME_COST = 0.005
_WIDE_POINTS = 1.0


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
    return text_of(report_of(plan, command, flags or {}), width, ascii_only)


def show(plan: Plan, file: IO[str], command: Sequence[str], flags: Mapping[str, str]) -> None:
    """Write the summary to `file`: drawn as wide as the terminal on one, plain text elsewhere."""
    write(report_of(plan, command, flags), file)


def report_of(plan: Plan, command: Sequence[str], flags: Mapping[str, str]) -> Report:
    """What the summary of a plan says."""
    return Report(_title(plan), _stages(plan), _facts(plan), _versus(plan), _verdict(plan), _next(plan, command, flags))


def duration(seconds: float | None, zeros: bool = False) -> str:
    """``135 s``, ``270 ms``, ``12.5 min``; None is what load never lets end.

    Parameters
    ----------
    seconds : the duration.
    zeros : keep trailing zeros, ``5.00 s``, for columns of numbers.
    """
    if seconds is None:
        return "unbounded"
    rounded = float(f"{seconds:.2e}")  # 999.6 ms are 1 s
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (600.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if rounded < limit:
            return f"{_digits(seconds * scale, zeros=zeros)} {unit}"
    return f"{_digits(seconds / 3600, zeros=zeros)} h"


def _digits(value: float, places: int = 3, zeros: bool = False) -> str:
    """So many significant digits, never an exponent; whole numbers are not rounded."""
    rounded = abs(float(f"{value:.{places - 1}e}"))
    if rounded < 1e-12:
        return "0"
    decimals = max(0, places - 1 - math.floor(math.log10(rounded)))
    text = f"{value:,.{decimals}f}"
    return text if zeros or decimals == 0 else text.rstrip("0").rstrip(".")


def _number(value: float) -> str:
    return _digits(value, places=4)


def _percent(share: float) -> str:
    return f"{_digits(100 * share)} %"


def _dollars(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,.2f}"


def _plain(value: float) -> str:
    """The shortest text of a number that an option takes, without an exponent."""
    return f"{value:.12f}".rstrip("0").rstrip(".")


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _title(plan: Plan) -> str:
    pool = " + ".join(f"{pool.gpus:,} {pool.gpu}" for pool in plan.pools)
    return (
        f"Plan {plan.plan_id} ({plan.status}): {_plural(len(plan.stages), 'stage')} on {pool}, "
        f"quality floor {_number(plan.q_min)}, objective {plan.objective}"
    )


def _stages(plan: Plan) -> Table:
    header = ("stage", "model", "weights", "GPUs", "replicas", "reach", "rate", "p95", "utilised", "batch")
    return Table(header, tuple(_stage_row(stage) for stage in plan.stages), frozenset({"model", "weights", "replicas"}))


def _stage_row(stage: StagePlan) -> tuple[str, ...]:
    limit = max((group.max_num_seqs for group in stage.replicas), default=0)
    served = stage.rate_per_s > 0
    return (
        str(stage.index + 1),
        stage.model,
        stage.weights,
        f"{stage.gpus:,}",
        " + ".join(_group(group) for group in stage.replicas) or "none",
        f"{100 * stage.reach:.1f} %",
        f"{_digits(stage.rate_per_s, zeros=True)}/s" if served else _NOTHING,
        duration(stage.p95_s, zeros=True) if served else _NOTHING,
        f"{100 * stage.utilization:.1f} %" if served else _NOTHING,
        f"{stage.mean_batch:,.1f} of {limit}" if served and stage.mean_batch is not None else _NOTHING,
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
        ("work", _work(plan)),
    ]
    if plan.solver.simulated is not None:
        facts.insert(-2, ("simulated", _simulated(plan, plan.solver.simulated)))
    if plan.skipped_models:
        facts.append(("not used", f"{', '.join(plan.skipped_models)}: no request has to go there to meet the floor"))
    if len(plan.stages) > 1:
        facts.append(("judge", _judge(plan)))
    facts.append(("solver", _solver(plan)))
    if plan.solver.highs is not None:
        facts.append(("check", _check(plan, plan.solver.highs)))
    facts.append(("calibration", _calibration(plan)))
    return (*facts, *(("warning", warning) for warning in plan.warnings))


def _threshold_facts(plan: Plan) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    pairs = zip(plan.routing.thresholds, plan.routing.threshold_intervals, strict=True)
    for stage, (threshold, interval) in zip(plan.stages, pairs, strict=False):
        text = "no answer" if threshold == math.inf else f"answers scored {_number(threshold)} or more"
        text = f"stage {stage.index + 1} keeps {text}{_alike(*interval)}"
        facts.append(("" if facts else "thresholds", text))
    return facts


def _alike(low: float | None, high: float) -> str:
    """Which other thresholds route the scored requests alike, where there is some room."""
    start, end = max(low or 0.0, 0.0), min(high, 100.0)
    if end - start <= _WIDE_POINTS:
        return ""
    above = f" above {_number(start)}" if start > 0 else ""
    below = f" up to {_number(end)}" if end < 100 else ""
    return f" (the same for any{above}{below})" if above or below else " (the same for any)"


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
        f"most {_digits(plan.predicted.max_rate_per_s)} within the utilisation cap of {_percent(plan.max_utilization)}"
    )


def _latency(plan: Plan) -> str:
    predicted = plan.predicted
    first = "first token"
    before = ""
    if len(plan.stages) > 1:
        first, before = "first token of the final answer", " (earlier stages and judge included)"
    return (
        f"predicted end to end p50 {duration(predicted.end_to_end_p50_s)}, p95 {duration(predicted.end_to_end_p95_s)}; "
        f"slowest stage p95 {duration(predicted.max_stage_p95_s)}; {first} p95 {duration(predicted.ttft_p95_s)}{before}"
    )


def _simulated(plan: Plan, simulated: SimulatedLatency) -> str:
    """Where the latencies come from, and what the formula says of the one that was minimised."""
    return (
        f"{_plural(simulated.requests, 'request')} of the whole cascade (seed {simulated.seed}), after "
        f"{_plural(simulated.runs, 'run')} of a stage alone; slowest stage alone p95 {duration(plan.latency_s)}, by "
        f"formula {duration(simulated.formula_latency_s)}"
    )


def _gpus(plan: Plan) -> str:
    idle = plan.pool_gpus - plan.gpus
    text = f"{plan.gpus:,} of {plan.pool_gpus:,} used"
    if plan.predicted.cost_usd_per_hour is not None:
        text += f", {_dollars(plan.predicted.cost_usd_per_hour)} USD per hour"
    return text + (f"; {idle:,} idle, because more would not improve the plan" if idle else "")


def _work(plan: Plan) -> str:
    """Where the GPUs go: how many are busy, where most of them are, and what one request costs at each stage."""
    busy = [stage.utilization * stage.gpus for stage in plan.stages]
    text = f"{_digits(sum(busy))} of {_plural(plan.gpus, 'GPU')} busy on average"
    visits = [
        f"{_digits(work / stage.rate_per_s)} GPU-s at stage {stage.index + 1}"
        for stage, work in zip(plan.stages, busy, strict=True)
        if stage.rate_per_s > 0
    ]
    if len(visits) > 1 and sum(busy) > 0:
        heaviest = max(range(len(busy)), key=busy.__getitem__)
        text += f", {_percent(busy[heaviest] / sum(busy))} of them at stage {plan.stages[heaviest].index + 1}"
    return f"{text} (per request: {', '.join(visits)})" if visits else text


def _judge(plan: Plan) -> str:
    judge = plan.judge
    auc = "" if judge.simulated_auc is None else f" with AUC {_number(judge.simulated_auc)}"
    price = f", {_digits(judge.usd_per_call)} USD per call" if judge.usd_per_call else ""
    return f"{judge.kind}{auc}, {f'{duration(judge.latency_s)} per call' if judge.latency_s else 'instant'}{price}"


def _solver(plan: Plan) -> str:
    solver = plan.solver
    work = f"{solver.evaluated:,} evaluated, {solver.pruned:,} pruned"
    certificate = solver.certificate
    if solver.trace:
        work = _plural(len(solver.trace), "round")
        certificate = certificate.removesuffix(f"; {work}")
    return f"{solver.method}, {certificate}; {work}, {duration(solver.seconds)}"


def _check(plan: Plan, proof: HighsProof) -> str:
    """What the second solver says of the allocation."""
    effort = f"({_plural(proof.columns, 'column')}, {duration(proof.seconds)})"
    same = proof.objective is not None and duration(proof.objective) == duration(plan.latency_s)
    if proof.status == "optimal" and same:
        return f"HiGHS finds the same {duration(proof.objective)} {effort}"
    if proof.objective is None:
        return f"HiGHS ends with status {proof.status} and no result {effort}"
    return f"HiGHS finds {duration(proof.objective)}, status {proof.status} {effort}"


def _calibration(plan: Plan) -> str:
    by_status: dict[str, list[str]] = {}
    for stage in plan.calibration.stages:
        by_status.setdefault(stage.status, []).append(stage.model)
    found = "; ".join(f"{', '.join(models)} {status}" for status, models in by_status.items())
    return f"{plan.calibration.profile}: {found}"


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
    if single is not None and not _is_single(plan, single):
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


def _is_single(plan: Plan, single: SingleModel) -> bool:
    """Whether the plan itself is that single model."""
    return len(plan.stages) == 1 and plan.stages[0].model == single.model


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
    ratio = _cost_ratio(plan, single)
    same = abs(ratio - 1) <= _SAME_COST
    if single.quality >= plan.predicted.quality and single.p95_s <= cascade_s and (ratio >= 1 or same):
        cost = "at the same cost" if same else f"at {1 / ratio:.2f} times the cost"
        return (
            f"{single.model} alone is better here: quality {_number(single.quality)} against "
            f"{_number(plan.predicted.quality)}, p95 {duration(single.p95_s)} against {duration(cascade_s)}, {cost}. "
            f"{text}"
        )
    against = f"The cascade has {cascade_s / single.p95_s:.2f} times the p95 of {single.model} alone"
    return f"{against}{' at the same cost' if same else f' and {ratio:.2f} times its cost'}. {text}"


def _cost_ratio(plan: Plan, single: SingleModel) -> float:
    """Cost of the plan over that of the single model; their GPUs where no price is known."""
    cost, single_cost = plan.predicted.cost_usd_per_hour, single.cost_usd_per_hour
    return cost / single_cost if cost and single_cost else plan.gpus / max(single.gpus, 1)


def _next(plan: Plan, command: Sequence[str], flags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    def line(name: str, value: str) -> str:
        # What is only tried must not overwrite what was stored.
        asked = {key: given for key, given in flags.items() if key not in (name, "-o")}
        return shlex.join([*command, *(word for pair in {**asked, name: value}.items() for word in pair)])

    lower = max(0.0, plan.q_min - 5)
    found = []
    if lower < plan.q_min:
        found.append((line("--q-min", _plain(lower)), "what a lower quality floor buys"))
    elif plan.solver.simulated is None:
        found.append((line("--method", "alternating"), "what the paper's own loop finds"))
    else:
        found.append((line("--latency", "formula"), "what the latency formula finds"))
    if plan.gpus < plan.pool_gpus:
        found.append((line("--gpus", str(plan.gpus)), "the same without the idle GPUs"))
    elif 2 * plan.pool_gpus <= _MAX_GPUS:
        found.append((line("--gpus", str(2 * plan.pool_gpus)), "what twice the GPUs buy"))
    workload = plan.workload
    if tuple(command) == ("cascadia-fast", "plan"):
        found.append(("cascadia-fast plan --write-example DIR", "copy the example's files, to start from"))
    elif "-o" not in flags:
        found.append((line("-o", "plan.json"), "store the plan"))
    elif workload.rate_from == "mean":
        # The option takes the arrivals' own rate, which headroom then raises.
        more = float(f"{1.25 * workload.rate_per_s / workload.headroom:.3g}")
        found.append((line("--rate", _plain(more)), "a quarter more traffic"))
    return tuple(found)
