"""Fields of a problem file that are sound one by one and cannot hold together."""

from __future__ import annotations

from collections.abc import Sequence

from cascadia_fast.errors import InputError, UnsupportedError, did_you_mean
from cascadia_fast.placement import pieces_of
from cascadia_fast.pools import GpuPool
from cascadia_fast.schema import Goal, JudgeSection, ProblemFile, check_goal, check_method
from cascadia_fast.stations import Stage


def check_together(fields: ProblemFile, stages: Sequence[Stage], pools: Sequence[GpuPool], where: str) -> None:
    """Raise for the first contradiction; the message names both fields.

    Raises
    ------
    InputError
        Two fields contradict each other, or a name refers to nothing.
    UnsupportedError
        They make sense together, and this version cannot plan it.
    """
    try:
        for index, stage in enumerate(stages):
            _check_limits(stage, f"cascade[{index}]", pools)
        _check_judge(fields.judge)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    check_goal(fields.goal, where)
    check_goal_here(fields.goal, fields.judge, pools, where)


def check_goal_here(goal: Goal, judge: JudgeSection, pools: Sequence[GpuPool], where: str) -> None:
    """Raise when a goal that is sound by itself contradicts the judge or the cluster; raises as `check_together`."""
    if judge.model is not None:
        check_method(goal, ["hosted judge (judge.model)"], where)
        if not goal.skip_models:
            raise UnsupportedError(
                f"{where}: judge.model is hosted and goal.skip_models is false, so that models may run that nobody "
                "reaches; drop skip_models: false"
            )
    if len(pools) > 1:
        check_method(goal, [f"second pool (cluster has {', '.join(pool.name for pool in pools)})"], where)
    _check_prices(goal, pools, where)


def _check_limits(stage: Stage, place: str, pools: Sequence[GpuPool]) -> None:
    if stage.max_replicas is not None and stage.min_replicas > stage.max_replicas:
        raise InputError(
            f"{place}.min_replicas is {stage.min_replicas} and {place}.max_replicas is {stage.max_replicas}; give a "
            "minimum of at most the maximum"
        )
    by_name = {pool.name: pool for pool in pools}
    for name in stage.pools:
        if name not in by_name:
            hint = did_you_mean(name, by_name) or f"; known are {', '.join(by_name)}"
            raise InputError(f"{place}.pools names {name!r}, and cluster has no pool of that name{hint}")
    architecture = stage.model.architecture
    if stage.tp is not None and architecture.heads % stage.tp:
        raise InputError(
            f"{place}.tp is {stage.tp} and {place}.model has {architecture.heads} attention heads; give a tp that "
            "divides them"
        )
    if stage.pp is not None and stage.pp > architecture.layers:
        raise InputError(
            f"{place}.pp is {stage.pp} and {place}.model has {architecture.layers} layers; give at most as many"
        )
    if stage.tp is not None:
        _check_nodes(stage, place, [by_name[name] for name in stage.pools] or pools)


def _check_nodes(stage: Stage, place: str, pools: Sequence[GpuPool]) -> None:
    """Engines of a pinned tp lie in nodes, and those of a pinned shape pack there, in one of the pools at least."""
    tp = stage.tp or 1
    nodes = ", ".join(dict.fromkeys(str(pool.gpus_per_node) for pool in pools))
    inside = [pool for pool in pools if _fits_nodes(tp, pool)]
    if not inside:
        spans = any(tp % pool.gpus_per_node == 0 for pool in pools)
        fix = ", or set the pool's tp_across_nodes" if spans else ""
        raise InputError(
            f"{place}.tp is {tp} and cluster has {nodes} gpus_per_node; give a tp that divides a node{fix}"
        )
    if stage.pp is not None and not any(_packs(tp, stage.pp, pool) for pool in inside):
        raise InputError(
            f"{place}.tp {tp} x {place}.pp {stage.pp} does not pack on nodes of {nodes} GPUs; beside whole nodes, "
            "leave a power of two that divides the node"
        )


def _fits_nodes(tp: int, pool: GpuPool) -> bool:
    return pool.gpus_per_node % tp == 0 or (pool.tp_across_nodes and tp % pool.gpus_per_node == 0)


def _packs(tp: int, pp: int, pool: GpuPool) -> bool:
    if tp > pool.gpus_per_node:  # whole nodes
        return True
    try:
        pieces_of(tp, pp, pool.gpus_per_node)
    except InputError:
        return False
    return True


def _check_judge(judge: JudgeSection) -> None:
    if judge.model is None:
        for field in ("weights", "kv_dtype", "output_tokens", "instruction_tokens"):
            # A dump of the fields names every one of them.
            if field in judge.model_fields_set and getattr(judge, field) != JudgeSection.model_fields[field].default:
                raise InputError(f"judge has {field} but no model; add judge.model to host it, or drop {field}")
        return
    for field, what in (("latency_s", "latency follows from its load"), ("usd_per_call", "price is that of its GPUs")):
        if getattr(judge, field):
            raise InputError(
                f"judge has both model and {field} ({getattr(judge, field):g}); a hosted judge's {what}, so drop one"
            )


def _check_prices(goal: Goal, pools: Sequence[GpuPool], where: str) -> None:
    needs_price = {
        "goal.objective min_cost": goal.objective == "min_cost",
        "goal.budget_usd_per_hour": goal.budget_usd_per_hour is not None,
    }
    unpriced = next((pool for pool in pools if pool.price_usd_per_hour is None), None)
    for field, given in needs_price.items():
        if given and unpriced is not None:
            raise InputError(
                f"{where}: {field} needs the price of every GPU and that of pool {unpriced.name} is unknown; add its "
                "price_usd_per_hour in cluster"
            )
