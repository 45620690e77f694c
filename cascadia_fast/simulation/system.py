"""The engines and the routing of a plan as the native simulator takes them, once plan and problem agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.engine_parts import EngineParts
from cascadia_fast.errors import InputError
from cascadia_fast.signals import charged_tokens
from cascadia_fast.simulation.belonging import check_plan, pools_by_name
from cascadia_fast.simulation.paths import accepting_stages, held_back, paths
from cascadia_fast.simulation.traffic import whole_tokens
from cascadia_fast.workload import ScoredRequests

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan, ReplicaGroup, Routing
    from cascadia_fast.pools import GpuPool
    from cascadia_fast.problem import Problem, Stage

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]


Kinds = tuple[tuple[_core.StepCosts, int, float], ...]
"""The kinds of engines of a station: step costs, how many, and the share of the requests that one of them takes."""


@dataclass(frozen=True, eq=False)
class HostedJudge:
    """A judge on GPUs of its own, and what it reads and writes for each answer.

    Parameters
    ----------
    engines
        The kinds of its engines.
    tokens_in, tokens_out
        Shape (S, n), whole tokens of the call for the answer of stage s to request n.
    """

    engines: Kinds
    tokens_in: IndexArray
    tokens_out: IndexArray


@dataclass(frozen=True, eq=False)
class SimulatedSystem:
    """What a plan runs, and where it sends each scored request. S stages run; n requests are scored.

    Parameters
    ----------
    requests
        The scored requests, with the models that run.
    path
        Shape (G, n): in each of G gears, bit s says that stage s is on the request's path. One gear unless gears shift.
    held_back
        Shape (G,): bit s says that nobody sees an answer of stage s before it is judged or verified.
    tokens_in, tokens_out
        Shape (S, n), whole tokens.
    engines
        Per stage the kinds of its engines.
    judge
        The judge, where it is hosted.
    asks_judge
        Whether a judge scores what is held back.
    gears
        When gears shift, where there are several.
    """

    requests: ScoredRequests
    path: NDArray[np.uint16]
    held_back: NDArray[np.uint16]
    tokens_in: IndexArray
    tokens_out: IndexArray
    engines: tuple[Kinds, ...]
    judge: HostedJudge | None = None
    asks_judge: bool = True
    gears: _core.Gears | None = None

    @cached_property
    def accepted_by(self) -> NDArray[np.int8]:
        """Shape (G, n): the stage, among those that run, that accepts a request."""
        return accepting_stages(self.path).astype(np.int8)

    def stations(self, scheduler: _core.Scheduler, dispatch: str) -> list[_core.Station]:
        """Return the stages as groups of replicas that share a queueing discipline."""
        return [_core.Station(list(kinds), scheduler=scheduler, dispatch=dispatch) for kinds in self.engines]

    def judge_station(self, scheduler: _core.Scheduler, dispatch: str) -> _core.Station | None:
        """Return the same of the judge, where it is hosted."""
        if self.judge is None:
            return None
        return _core.Station(list(self.judge.engines), scheduler=scheduler, dispatch=dispatch)

    def tokens(self, row: int) -> tuple[IndexArray, IndexArray]:
        """Return what a row of the table of visits reads and writes, each (n,); rows from S on are the judge's."""
        stages = len(self.engines)
        if self.judge is None or row < stages:
            return self.tokens_in[row], self.tokens_out[row]
        return self.judge.tokens_in[row - stages], self.judge.tokens_out[row - stages]

    def alone_s(self, row: int) -> FloatArray:
        """Return, shape (n,), latencies of a row of the table of visits on the fastest engine while it is idle."""
        kinds = self.engines[row] if self.judge is None or row < len(self.engines) else self.judge.engines
        fastest: FloatArray = np.minimum.reduce([costs.alone_s(*self.tokens(row))[1] for costs, _, _ in kinds])
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
    requests = everything if len(running) == len(everything.models) else everything.of_models(running)
    pools = pools_by_name(plan, problem)
    tokens_in, tokens_out = charged_tokens(plan.routing.signal, requests)
    return SimulatedSystem(
        requests=requests,
        path=paths(plan.routing, requests),
        held_back=held_back(plan.routing, len(running)),
        tokens_in=whole_tokens(tokens_in, "input"),
        tokens_out=whole_tokens(tokens_out, "output"),
        engines=tuple(_engines(problem, problem.stages[stage.index], stage.replicas, pools) for stage in plan.stages),
        judge=_hosted_judge(plan, problem, requests, pools),
        asks_judge=plan.routing.asks_judge,
        gears=_gears(plan.routing),
    )


def _gears(routing: Routing) -> _core.Gears | None:
    if routing.switching is None:
        return None
    return _core.Gears(
        up_to_per_s=np.array([gear.up_to_per_s for gear in routing.gears[:-1]], np.float64),
        window_s=routing.switching.window_s,
        queue_factor=routing.switching.queue_factor,
        first_station=np.array([gear.stages[0] for gear in routing.gears], np.int32),
    )


def _hosted_judge(
    plan: Plan, problem: Problem, requests: ScoredRequests, pools: Mapping[str, GpuPool]
) -> HostedJudge | None:
    """A single model is asked by nobody to be judged, and neither is what a router sends where it belongs."""
    hosted = problem.judge.hosted
    if hosted is None or not plan.routing.asks_judge:
        return None
    prompts = problem.judge.prompt_tokens(requests.input_tokens, requests.output_tokens)
    tokens_in = whole_tokens(prompts, "input")
    tokens_out = np.full(tokens_in.shape, problem.judge.output_tokens, np.int32)
    return HostedJudge(_engines(problem, hosted, plan.judge.replicas, pools), tokens_in, tokens_out)


def _engines(problem: Problem, spec: Stage, groups: Sequence[ReplicaGroup], pools: Mapping[str, GpuPool]) -> Kinds:
    groups = [group for group in groups if group.count > 0]
    if not groups:
        raise InputError(f"the plan gives {spec.name} no replica; what runs needs at least one")
    # Shares only weigh groups against one another; one that nothing is planned for still takes its part of what comes.
    planned = all(group.share > 0 for group in groups)
    return tuple(
        (
            _step_costs(problem, spec, group, pools[group.pool]),
            group.count,
            group.share / group.count if planned else 1.0,
        )
        for group in groups
    )


def _step_costs(problem: Problem, spec: Stage, group: ReplicaGroup, pool: GpuPool) -> _core.StepCosts:
    where = f"{spec.name} in {spec.weights} on tp{group.tp} pp{group.pp} of {group.gpu}"
    try:
        parts = EngineParts.of(problem, spec, pool, group.max_num_seqs, group.max_batched_tokens)
        replica = parts.replica(_core.Shape(tp=group.tp, pp=group.pp, ep=group.ep))
        if replica.kv_capacity_bytes <= 0:
            raise InputError(f"{where} holds no KV cache beside its weights; plan again")
        return _core.StepCosts(replica)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where} cannot run: {error}; plan again") from None
