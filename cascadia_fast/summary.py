"""A plan as text for people: a table of stages, the facts around it, the alternative, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from cascadia_fast.blueprint_routing import OURS
from cascadia_fast.summary_facts import facts_of
from cascadia_fast.summary_layout import Report, Table, text_of, write
from cascadia_fast.summary_routing import routing_text as routing_text
from cascadia_fast.summary_units import NOTHING, digits, dollars, number, objective_text, percent, plain, plural
from cascadia_fast.summary_units import duration as duration

if TYPE_CHECKING:
    from cascadia_fast.blueprint import JudgePlan, Plan, ReplicaGroup, SingleModel, StagePlan

DEFAULT_COMMAND = ("cascadia-fast", "plan", "FILE")

# What the planner takes at most; no command may propose more.
_MAX_GPUS = 1_000_000
# Closer than this, two costs are called the same.
_SAME_COST = 0.005


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
    return Report(
        _title(plan), _stages(plan), facts_of(plan), _versus(plan), _verdict(plan), _next(plan, command, flags)
    )


def _title(plan: Plan) -> str:
    pool = " + ".join(f"{pool.gpus:,} {pool.gpu}" for pool in plan.pools)
    whose = "" if plan.system == OURS else f" of {plan.system}"
    return (
        f"Plan {plan.plan_id}{whose} ({plan.status}): {plural(len(plan.stages), 'stage')} on {pool}, "
        f"quality floor {number(plan.q_min)}, objective {plan.objective}: "
        f"{objective_text(plan.objective, plan.objective_value)}"
    )


def _stages(plan: Plan) -> Table:
    header = ("stage", "model", "weights", "GPUs", "replicas", "reach", "rate", "p95", "utilised", "batch")
    pooled = len(plan.pools) > 1
    rows = [_stage_row(stage, pooled) for stage in plan.stages]
    if plan.judge.kind == "hosted" and plan.routing.asks_judge:
        rows.append(_judge_row(plan.judge, pooled))
    return Table(header, tuple(rows), frozenset({"model", "weights", "replicas"}))


def _stage_row(stage: StagePlan, pooled: bool) -> tuple[str, ...]:
    limit = max((group.max_num_seqs for group in stage.replicas), default=0)
    served = stage.rate_per_s > 0
    return (
        str(stage.index + 1),
        stage.model,
        stage.weights,
        f"{stage.gpus:,}",
        replicas_text(stage.replicas, pooled),
        f"{100 * stage.reach:.1f} %",
        f"{digits(stage.rate_per_s, zeros=True)}/s" if served else NOTHING,
        duration(stage.p95_s, zeros=True) if served else NOTHING,
        f"{100 * stage.utilization:.1f} %" if served else NOTHING,
        f"{stage.mean_batch:,.1f} of {limit}" if served and stage.mean_batch is not None else NOTHING,
    )


def _judge_row(judge: JudgePlan, pooled: bool) -> tuple[str, ...]:
    return (
        "judge",
        judge.model or NOTHING,
        judge.weights or NOTHING,
        f"{judge.gpus:,}",
        replicas_text(judge.replicas, pooled),
        NOTHING,
        f"{digits(judge.rate_per_s or 0.0, zeros=True)}/s",
        duration(judge.p95_s, zeros=True),
        f"{100 * (judge.utilization or 0.0):.1f} %",
        NOTHING,
    )


def replicas_text(groups: Sequence[ReplicaGroup], pooled: bool) -> str:
    """All engines of a station, ``2 × tp8 + 1 × tp4``; with several pools each group names its own."""
    return " + ".join(_group(group) + (f" ({group.pool})" if pooled else "") for group in groups) or "none"


def _group(group: ReplicaGroup) -> str:
    return f"{group.count:,} × tp{group.tp}" + (f" pp{group.pp}" if group.pp > 1 else "")


def _versus(plan: Plan) -> Table:
    header = ("deployment", "GPUs", "p95", "quality", "USD/h", "note")
    predicted = plan.predicted
    rows = [
        (
            f"this {_kind(plan)}",
            f"{plan.gpus:,}",
            duration(predicted.end_to_end_p95_s),
            number(predicted.quality),
            dollars(predicted.cost_usd_per_hour),
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
                number(single.quality),
                dollars(single.cost_usd_per_hour),
                _single_note(plan, single),
            )
        )
    return Table(header, tuple(rows), frozenset({"deployment", "note"}))


def _kind(plan: Plan) -> str:
    return "cascade" if len(plan.stages) > 1 and plan.routing.kind == "cascade" else "plan"


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
    held = "Binding" if plan.objective == plan.latency_metric else "Slowest"
    text = (
        f"{held} stage: {binding.index + 1} ({binding.model}), p95 {duration(binding.p95_s)} at "
        f"{percent(binding.utilization)} utilisation."
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
            f"{single.model} alone is better here: quality {number(single.quality)} against "
            f"{number(plan.predicted.quality)}, p95 {duration(single.p95_s)} against {duration(cascade_s)}, {cost}. "
            f"{text}"
        )
    against = f"The {_kind(plan)} has {cascade_s / single.p95_s:.2f} times the p95 of {single.model} alone"
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

    if plan.system != OURS:
        against = shlex.join(["cascadia-fast", "compare", "FILE", "--systems", f"ours,{plan.system}"])
        return ((against, "how it fares against our own plan"),)
    lower = max(0.0, plan.q_min - 5)
    found = []
    if lower < plan.q_min:
        found.append((line("--q-min", plain(lower)), "what a lower quality floor buys"))
    elif plan.solver.simulated is None:
        found.append((line("--method", "alternating"), "what the paper's own loop finds"))
    else:
        found.append((line("--latency", "formula"), "what the latency formula finds"))
    if len(plan.pools) > 1:
        pass  # the option says nothing of which pool
    elif plan.gpus < plan.pool_gpus:
        found.append((line("--gpus", str(plan.gpus)), "the same without the idle GPUs"))
    elif 2 * plan.pool_gpus <= _MAX_GPUS:
        found.append((line("--gpus", str(2 * plan.pool_gpus)), "what twice the GPUs buy"))
    if tuple(command) == ("cascadia-fast", "plan"):
        found.append(("cascadia-fast plan --write-example DIR", "copy the example's files, to start from"))
    elif "-o" in flags:
        found.append((shlex.join(["cascadia-fast", "explain", flags["-o"]]), "what binds, and what more would buy"))
    else:
        found.append((line("-o", "plan.json"), "store the plan"))
    return tuple(found)
