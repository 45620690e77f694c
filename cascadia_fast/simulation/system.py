"""The engines and the routing of a plan as the native simulator takes them, once plan and problem agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.engine_parts import EngineParts
from cascadia_fast.errors import InputError, UnsupportedError
from cascadia_fast.routing import route
from cascadia_fast.simulation.traffic import whole_tokens
from cascadia_fast.workload import ScoredRequests

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan, ReplicaGroup, StagePlan
    from cascadia_fast.problem import Problem, Stage

MAX_STAGES = 16  # bits of a path

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SimulatedSystem:
    """What a plan runs, and where it sends each scored request. S stages run; n requests are scored.

    Parameters
    ----------
    requests
        The scored requests, with the models that run.
    accepted_by
        Shape (n,): the stage, among those that run, that accepts a request.
    tokens_in, tokens_out
        Shape (S, n), whole tokens.
    engines
        Per stage the kinds of its engines: step costs, how many, and the requests per second that one carries.
    """

    requests: ScoredRequests
    accepted_by: NDArray[np.intp]
    tokens_in: IndexArray
    tokens_out: IndexArray
    engines: tuple[tuple[tuple[_core.StepCosts, int, float], ...], ...]

    @property
    def path(self) -> NDArray[np.uint16]:
        """Shape (n,): bit s says that stage s is on the request's path."""
        return ((1 << (self.accepted_by + 1)) - 1).astype(np.uint16)

    def stations(self, scheduler: _core.Scheduler, dispatch: str) -> list[_core.Station]:
        """Return the stages as groups of replicas that share a queueing discipline."""
        return [_core.Station(list(kinds), scheduler=scheduler, dispatch=dispatch) for kinds in self.engines]

    def alone_s(self, stage: int) -> FloatArray:
        """Return, shape (n,), latencies at one stage on its fastest engine while nobody else is there."""
        latencies_s = [
            costs.alone_s(self.tokens_in[stage], self.tokens_out[stage])[1] for costs, _, _ in self.engines[stage]
        ]
        fastest: FloatArray = np.minimum.reduce(latencies_s)
        return fastest


def build_system(plan: Plan, problem: Problem) -> SimulatedSystem:
    """Return the engines and the routing of a plan.

    Raises
    ------
    InputError
        The plan is not one of this problem: models, number formats, GPUs or an input file differ.
    """
    check_plan(plan, problem)
    running = [stage.index for stage in plan.stages]
    everything = problem.workload.requests
    requests = everything if len(running) == len(everything.models) else _of_models(everything, running)
    return SimulatedSystem(
        requests=requests,
        accepted_by=route(requests, plan.routing.thresholds),
        tokens_in=whole_tokens(requests.input_tokens, "input"),
        tokens_out=whole_tokens(requests.output_tokens, "output"),
        engines=tuple(_engines(problem, problem.stages[stage.index], stage) for stage in plan.stages),
    )


def check_plan(plan: Plan, problem: Problem) -> None:
    """Raise an `InputError` that says what differs, when the plan was made for something else than this problem."""
    _check_models(plan, problem)
    _check_cluster(plan, problem)
    inputs = problem.input_hashes()
    for name, digest in plan.provenance.inputs.items():
        # A workload in memory is handed over on purpose, perhaps to see what other traffic does to the plan.
        if name != "workload" and inputs.get(name, digest) != digest:
            raise InputError(
                f"{name} has changed since plan {plan.plan_id} was made (SHA-256 {inputs[name][:12]}…, then "
                f"{digest[:12]}…); plan again, or put the old file back"
            )
    if plan.judge.kind == "hosted":
        raise UnsupportedError("plan.judge.kind is 'hosted'; only plans with an external judge can be simulated so far")
    if len(plan.stages) > MAX_STAGES:
        raise InputError(f"plan.stages has {len(plan.stages)} entries; at most {MAX_STAGES} can be simulated")


def _check_models(plan: Plan, problem: Problem) -> None:
    fix = "simulate with the problem it was made from, or plan again"
    indexes = [stage.index for stage in plan.stages]
    if indexes != sorted(set(indexes)) or indexes[0] < 0:
        raise InputError(f"plan.stages have the indexes {indexes}; they must ascend from 0")
    for number, stage in enumerate(plan.stages):
        place = f"plan.stages[{number}]"
        if stage.index >= len(problem.stages):
            raise InputError(f"{place}.index is {stage.index}, but the problem has {len(problem.stages)} models; {fix}")
        ours = problem.stages[stage.index]
        for field, planned, expected in (
            ("model", stage.model, ours.name),
            ("weights", stage.weights, ours.weights),
            ("kv_dtype", stage.kv_dtype, ours.kv_dtype),
        ):
            if planned != expected:
                raise InputError(f"{place}.{field} is {planned!r} and the problem has {expected!r} there; {fix}")
    skipped = tuple(stage.name for index, stage in enumerate(problem.stages) if index not in indexes)
    if plan.skipped_models != skipped:
        theirs, ours_text = (", ".join(names) or "no models" for names in (plan.skipped_models, skipped))
        raise InputError(f"plan.skipped_models is {theirs}, where the problem has {ours_text} besides; {fix}")


def _check_cluster(plan: Plan, problem: Problem) -> None:
    for pool in plan.pools:
        if pool.gpu != problem.gpu.name:
            raise InputError(f"the plan is for {pool.gpu} and the problem has {problem.gpu.name}; plan again")
        if pool.gpus_per_node != problem.gpus_per_node:
            raise InputError(
                f"the plan has {pool.gpus_per_node} GPUs per node and the problem {problem.gpus_per_node}; plan again"
            )
    for number, stage in enumerate(plan.stages):
        for group in stage.replicas:
            if group.gpu != problem.gpu.name:
                raise InputError(
                    f"plan.stages[{number}] runs on {group.gpu} and the problem has {problem.gpu.name}; plan again"
                )
    if plan.gpus > problem.gpus:
        raise InputError(
            f"the plan uses {plan.gpus:,} GPUs and the problem has {problem.gpus:,}; simulate with the problem it was "
            f"made from, or give its cluster {plan.pool_gpus:,} GPUs"
        )


def _of_models(requests: ScoredRequests, running: Sequence[int]) -> ScoredRequests:
    return ScoredRequests(
        models=tuple(requests.models[index] for index in running),
        request_ids=requests.request_ids,
        input_tokens=requests.input_tokens[running],
        output_tokens=requests.output_tokens[running],
        score=requests.score[running],
        quality=requests.quality[running],
        weight=requests.weight,
        source=requests.source,
    )


def _engines(problem: Problem, spec: Stage, stage: StagePlan) -> tuple[tuple[_core.StepCosts, int, float], ...]:
    if not any(group.count > 0 for group in stage.replicas):
        raise InputError(f"the plan gives {stage.model} no replica; a stage needs at least one")
    # Capacities only share out requests; where one is unknown, all replicas are taken as equal.
    known = all(group.capacity_per_s is not None and group.capacity_per_s > 0 for group in stage.replicas)
    return tuple(
        (_step_costs(problem, spec, group), group.count, (group.capacity_per_s or 1.0) if known else 1.0)
        for group in stage.replicas
        if group.count > 0
    )


def _step_costs(problem: Problem, spec: Stage, group: ReplicaGroup) -> _core.StepCosts:
    where = f"{spec.name} in {spec.weights} on tp{group.tp} pp{group.pp} of {group.gpu}"
    try:
        parts = EngineParts.of(problem, spec, group.max_num_seqs, group.max_batched_tokens)
        replica = parts.replica(_core.Shape(tp=group.tp, pp=group.pp, ep=group.ep))
        if replica.kv_capacity_bytes <= 0:
            raise InputError(f"{where} holds no KV cache beside its weights; plan again")
        return _core.StepCosts(replica)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where} cannot run: {error}; plan again") from None
