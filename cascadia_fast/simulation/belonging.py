"""Whether a plan belongs to a problem: the same models, judge and GPUs, and input files that have not changed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cascadia_fast.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.pools import GpuPool
    from cascadia_fast.problem import Problem

MAX_STAGES = 16  # bits of a path
_FIX = "simulate with the problem it was made from, or plan again"


def check_plan(plan: Plan, problem: Problem) -> None:
    """Raise an `InputError` that says what differs, when the plan was made for something else than this problem."""
    _check_models(plan, problem)
    _check_judge(plan, problem)
    _check_cluster(plan, problem)
    inputs = problem.input_hashes()
    for name, digest in plan.provenance.inputs.items():
        # A workload in memory is handed over on purpose, perhaps to see what other traffic does to the plan.
        if name != "workload" and inputs.get(name, digest) != digest:
            raise InputError(
                f"{name} has changed since plan {plan.plan_id} was made (SHA-256 {inputs[name][:12]}…, then "
                f"{digest[:12]}…); plan again, or put the old file back"
            )
    if len(plan.stages) > MAX_STAGES:
        raise InputError(f"plan.stages has {len(plan.stages)} entries; at most {MAX_STAGES} can be simulated")


def pools_by_name(plan: Plan, problem: Problem) -> dict[str, GpuPool]:
    """Return the problem's pools by what the plan calls them: where each has one only, its name does not matter."""
    if len(plan.pools) == len(problem.pools) == 1:
        return {plan.pools[0].name: problem.pools[0]}
    return {pool.name: pool for pool in problem.pools}


def _check_models(plan: Plan, problem: Problem) -> None:
    indexes = [stage.index for stage in plan.stages]
    if indexes != sorted(set(indexes)) or indexes[0] < 0:
        raise InputError(f"plan.stages have the indexes {indexes}; they must ascend from 0")
    for number, stage in enumerate(plan.stages):
        place = f"plan.stages[{number}]"
        if stage.index >= len(problem.stages):
            raise InputError(
                f"{place}.index is {stage.index}, but the problem has {len(problem.stages)} models; {_FIX}"
            )
        ours = problem.stages[stage.index]
        for field, planned, expected in (
            ("model", stage.model, ours.name),
            ("weights", stage.weights, ours.weights),
            ("kv_dtype", stage.kv_dtype, ours.kv_dtype),
        ):
            if planned != expected:
                raise InputError(f"{place}.{field} is {planned!r} and the problem has {expected!r} there; {_FIX}")
    skipped = tuple(stage.name for index, stage in enumerate(problem.stages) if index not in indexes)
    if plan.skipped_models != skipped:
        theirs, ours_text = (", ".join(names) or "no models" for names in (plan.skipped_models, skipped))
        raise InputError(f"plan.skipped_models is {theirs}, where the problem has {ours_text} besides; {_FIX}")


def _check_judge(plan: Plan, problem: Problem) -> None:
    """Where nobody is asked to judge, as of a single model, it does not matter who would."""
    if not plan.routing.asks_judge:
        return
    ours = problem.judge
    if (plan.judge.kind == "hosted") != (ours.kind == "hosted"):
        raise InputError(f"plan.judge.kind is {plan.judge.kind!r} and the problem's judge is {ours.kind}; {_FIX}")
    for field, planned, expected in (
        ("model", plan.judge.model, ours.model and ours.model.name),
        ("weights", plan.judge.weights, ours.weights),
        ("kv_dtype", plan.judge.kv_dtype, ours.kv_dtype),
    ):
        if planned != expected:
            raise InputError(f"plan.judge.{field} is {planned!r} and the problem has {expected!r} there; {_FIX}")


def _check_cluster(plan: Plan, problem: Problem) -> None:
    ours_by_name = pools_by_name(plan, problem)
    used: Counter[str] = Counter()
    for group in plan.groups:
        used[group.pool] += group.count * group.tp * group.pp
    for pool in plan.pools:
        ours = ours_by_name.get(pool.name)
        if ours is None:
            hint = did_you_mean(pool.name, ours_by_name) or f"; the problem has {', '.join(ours_by_name)}"
            raise InputError(f"plan.pools has {pool.name!r}, which is no pool of the problem{hint}; plan again")
        here = f" in pool {pool.name!r}" if len(plan.pools) > 1 else ""
        if pool.gpu != ours.spec.name:
            raise InputError(f"the plan is for {pool.gpu} and the problem has {ours.spec.name}{here}; plan again")
        if pool.gpus_per_node != ours.gpus_per_node:
            raise InputError(
                f"the plan has {pool.gpus_per_node} GPUs per node and the problem {ours.gpus_per_node}{here}; plan "
                "again"
            )
        if used[pool.name] > ours.gpus:
            raise InputError(
                f"the plan uses {used[pool.name]:,} GPUs and the problem has {ours.gpus:,}{here}; simulate with the "
                f"problem it was made from, or give its cluster {pool.gpus:,} GPUs"
            )
