"""What the fields of a plan must agree on, beyond their types."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from cascadia_fast.errors import InputError

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan, ReplicaGroup, Routing

# Which signals go with which routing; None: none, as the judge's scores decide.
_SIGNALS: dict[str, tuple[str | None, ...]] = {
    "cascade": (None, "learned_score"),
    "router": ("win_probability", "verification"),
    "gears": (None,),
}
_MOST_GEARS = 256  # of a byte, in the simulator
# Sums of the same numbers in another order may differ by this much, relatively.
_ROUNDING = 1e-9


def check_plan(plan: Plan) -> None:
    """Refuse a plan that contradicts itself.

    Raises
    ------
    InputError
        Two of its fields disagree; the sentence names both.
    """
    _check_stages(plan)
    _check_routing(plan)
    _check_judge(plan)
    _check_pools(plan)
    _check_goal(plan)
    _check_proof(plan)


def _check_stages(plan: Plan) -> None:
    if not plan.stages:
        raise InputError("plan.stages is empty; a plan runs at least one model")
    for number, stage in enumerate(plan.stages):
        _check_replicas(f"plan.stages[{number}]", stage.gpus, stage.replicas)


def _check_routing(plan: Plan) -> None:
    routing, stages = plan.routing, len(plan.stages)
    needed = stages - 1 if routing.kind == "cascade" else 0
    for name in ("thresholds", "threshold_intervals"):
        found = len(getattr(routing, name))
        if found != needed:
            what = f"{stages} stages" if routing.kind == "cascade" else f"routing of kind {routing.kind!r}"
            raise InputError(f"plan.routing.{name} has {found} entries; {what} need{'' if needed else 's'} {needed}")
    for name, kind in (("router", "router"), ("gears", "gears"), ("switching", "gears")):
        if bool(getattr(routing, name)) != (routing.kind == kind):
            verb = "lacks" if routing.kind == kind else "has"
            raise InputError(f"plan.routing {verb} {name}, as its kind is {routing.kind!r}; give it for {kind!r} alone")
    _check_signal(routing)
    _check_router(routing, stages)
    _check_gears(routing, stages)


def _check_signal(routing: Routing) -> None:
    found = None if routing.signal is None else routing.signal.kind
    allowed = _SIGNALS[routing.kind]
    if found not in allowed:
        raise InputError(
            f"plan.routing.signal is {found or 'missing'}, as the kind of routing is {routing.kind!r}; give "
            f"{' or '.join(kind or 'none' for kind in allowed)}"
        )


def _check_router(routing: Routing, stages: int) -> None:
    if routing.router is None or routing.signal is None:
        return
    for path in routing.router.paths:
        if path >> stages:
            raise InputError(f"plan.routing.router.paths has {path}, which visits more than the plan's {stages} stages")
        if routing.signal.kind == "verification" and not path & 1:
            raise InputError(
                f"plan.routing.router.paths has {path}, which leaves out the first stage; its answer is what is "
                "verified, so give odd numbers"
            )


def _check_gears(routing: Routing, stages: int) -> None:
    if len(routing.gears) > _MOST_GEARS:
        raise InputError(
            f"plan.routing.gears has {len(routing.gears)} entries; at most {_MOST_GEARS} can be told apart"
        )
    for number, gear in enumerate(routing.gears):
        if gear.stages[-1] >= stages:
            raise InputError(f"plan.routing.gears[{number}] runs stage {gear.stages[-1]}; the plan has {stages} stages")
    rates = [gear.up_to_per_s for gear in routing.gears]
    below = [rate for rate in rates if rate is not None]
    unordered = any(low >= high for low, high in pairwise([0.0, *below]))
    if routing.gears and (len(below) != len(rates) - 1 or rates[-1] is not None or unordered):
        raise InputError(
            f"plan.routing.gears are for rates up to {rates}; they must be positive and ascend, and the last have none"
        )


def _check_replicas(where: str, gpus: int, groups: tuple[ReplicaGroup, ...]) -> None:
    taken = sum(group.count * group.tp * group.pp for group in groups)
    if taken != gpus:
        raise InputError(f"{where}.gpus is {gpus}, but its replicas take {taken}; make them agree")
    placed = sum(len(group.nodes) for group in groups)
    replicas = sum(group.count for group in groups)
    if placed != replicas:
        raise InputError(f"{where} places {placed} of {replicas} replicas; place every one")


def _check_judge(plan: Plan) -> None:
    judge = plan.judge
    hosted = ("model", "weights", "kv_dtype", "rate_per_s", "utilization")
    for name in hosted:
        given = getattr(judge, name) is not None
        if given != (judge.kind == "hosted"):
            verb = f"is {getattr(judge, name)!r}; drop it" if given else "is None; give it"
            raise InputError(f"plan.judge.{name} {verb}, as the judge is {judge.kind}")
    if judge.replicas and judge.kind != "hosted":
        raise InputError(f"plan.judge has replicas; drop them, as the judge is {judge.kind}")
    _check_replicas("plan.judge", judge.gpus, judge.replicas)


def _check_pools(plan: Plan) -> None:
    gpu_of = {pool.name: pool.gpu for pool in plan.pools}
    if len(gpu_of) < len(plan.pools):
        raise InputError("plan.pools has one name twice; name every pool differently")
    left = {pool.name: pool.gpus for pool in plan.pools}
    for group in plan.groups:
        if gpu_of.get(group.pool) != group.gpu:
            pools = ", ".join(f"{pool.name} of {pool.gpu}" for pool in plan.pools)
            raise InputError(f"a replica runs on {group.gpu} in the pool {group.pool!r}; plan.pools has {pools}")
        left[group.pool] -= group.count * group.tp * group.pp
    for pool in plan.pools:
        if left[pool.name] < 0:
            used = pool.gpus - left[pool.name]
            raise InputError(f"plan.pools has {pool.gpus} GPUs in {pool.name!r}, but replicas take {used} of them")


def _check_goal(plan: Plan) -> None:
    if (plan.slo_s is None) != (plan.slo_metric is None):
        raise InputError(f"plan.slo_s is {plan.slo_s} and plan.slo_metric {plan.slo_metric!r}; give both, or neither")
    if (plan.q_confidence is None) != (plan.predicted.quality_lower is None):
        raise InputError("plan.q_confidence and plan.predicted.quality_lower belong together; give both, or neither")
    values = {
        "min_gpus": float(plan.gpus),
        "min_cost": plan.predicted.cost_usd_per_hour,
        "max_rate": plan.objective_value,
        plan.latency_metric: plan.latency_s,
    }
    if plan.objective not in values:
        raise InputError(
            f"plan.latency_metric is {plan.latency_metric!r}; it must be the objective, {plan.objective!r}"
        )
    value = values[plan.objective]
    same = plan.objective_value == value
    if plan.objective_value is not None and value is not None:
        same = math.isclose(plan.objective_value, value, rel_tol=_ROUNDING)
    if not same:
        raise InputError(f"plan.objective_value is {plan.objective_value}, but {plan.objective} came to {value}")


def _check_proof(plan: Plan) -> None:
    solver, value = plan.solver, plan.objective_value
    if plan.status == "optimal" and not solver.complete:
        raise InputError("plan.status is 'optimal', but its search was stopped (plan.solver.complete is false)")
    if solver.gap is not None and solver.gap < 0:
        raise InputError(f"plan.solver.gap is {solver.gap}; a bound that the plan beats is none, so give 0 or more")
    if (solver.bound is None) != (solver.gap is None):
        raise InputError("plan.solver.bound and plan.solver.gap belong together; give both, or neither")
    if solver.bound is None or solver.gap is None or value is None:
        return
    distance = solver.bound - value if plan.objective == "max_rate" else value - solver.bound
    if abs(distance - solver.gap * abs(value)) > _ROUNDING * max(abs(value), abs(solver.bound)):
        raise InputError(
            f"plan.solver.gap is {solver.gap}, but the objective is {value} and its bound {solver.bound}; make them "
            "agree"
        )
