"""The plan: which models run, on which GPUs, in which shapes, and the thresholds that route between them.

A `Plan` is all that serving, simulation and reports need; it is immutable and has one canonical form, ``plan.json``.
Its numbers are finite: what is unknown or unbounded is None, and only a threshold may be infinite (``never`` accept).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from cascadia_fast.blueprint_routing import OURS as OURS
from cascadia_fast.blueprint_routing import Gear as Gear
from cascadia_fast.blueprint_routing import Router as Router
from cascadia_fast.blueprint_routing import Routing as Routing
from cascadia_fast.blueprint_routing import Signal as Signal
from cascadia_fast.blueprint_routing import Switching as Switching
from cascadia_fast.blueprint_routing import Threshold
from cascadia_fast.errors import InputError
from cascadia_fast.placement import Piece, Replica
from cascadia_fast.plan_checks import check_plan
from cascadia_fast.plan_json import TRUSTED, Record, plan_id, read_plan_bytes, write_plan

SCHEMA_VERSION = 3

Metric = Literal["max_stage_p95", "end_to_end_p95", "ttft_p95"]
"""A latency of a plan: its slowest stage's, that of a whole path, or that of the final answer's first token."""

Objective = Literal["max_stage_p95", "end_to_end_p95", "ttft_p95", "min_cost", "max_rate", "min_gpus"]
"""What a plan makes smallest (the rate: largest): a metric in seconds, USD per hour, requests per second, or GPUs."""

Survive = Literal["none", "replica", "node"]
"""What a deployment may lose, any one of it, and still meet its deadline."""

Batching = Literal["chunked", "prompts_first"]
"""What a step of an engine carries: decodes and chunks of prompts, or one or the other, whole prompts first."""


@dataclass(frozen=True, slots=True)
class Predicted(Record):
    """What the latency model, or simulation, and the scored requests say of the plan; None: load is unstable.

    `max_stage_p95_s` is the slowest stage's 95th percentile; the `end_to_end` ones are over one request's whole path,
    judge calls included. `quality` is the mean over the scored requests, `quality_ci95` its 95 % interval by Student's
    t, and `quality_lower` what it is at least with the plan's `q_confidence`. `max_rate_per_s` is the most the
    deployment carries within the utilisation cap. Costs include the judge; `energy_j_per_request` counts the board
    power of the GPUs while they are busy, at most what that work draws, and nothing while they are idle.
    """

    max_stage_p95_s: float | None
    end_to_end_p50_s: float | None
    end_to_end_p95_s: float | None
    ttft_p95_s: float | None
    quality: float
    quality_ci95: tuple[float, float]
    max_rate_per_s: float
    cost_usd_per_hour: float | None
    usd_per_request: float | None = None
    energy_j_per_request: float | None = None
    quality_lower: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaGroup(Record):
    """`count` equal engines of one stage, each of tp * pp GPUs.

    `share` is the part of the stage's requests that goes to the group, `capacity_per_s` the requests one of its
    replicas carries, and `nodes` holds for each replica its pieces ``[node, first GPU on the node, GPUs]``.
    """

    count: int
    gpu: str
    pool: str
    tp: int
    pp: int
    ep: int
    share: float
    capacity_per_s: float | None
    nodes: Annotated[tuple[Replica, ...], TRUSTED]
    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class StagePlan(Record):
    """One model that runs: `index` counts from 0 in the problem's cascade.

    `reach` is the share of requests that get here, `rate_per_s` what that makes of the planned rate, and `mean_batch`
    the mean number of sequences running on one replica.
    """

    index: int
    model: str
    weights: str
    kv_dtype: str
    gpus: int
    reach: float
    rate_per_s: float
    p95_s: float | None
    utilization: float
    mean_batch: float | None
    replicas: tuple[ReplicaGroup, ...]


@dataclass(frozen=True, slots=True)
class JudgePlan(Record):
    """The judge between the stages; `simulated_auc` is set when its scores are simulated.

    A hosted judge is a model with GPUs of its own: `rate_per_s` are its calls and `p95_s` is the time of one; a
    `latency_s` comes on top of it. Without one, the fields from `model` on are empty.
    """

    kind: Literal["external", "simulated", "hosted"]
    latency_s: float
    usd_per_call: float
    simulated_auc: float | None
    model: str | None = None
    weights: str | None = None
    kv_dtype: str | None = None
    gpus: int = 0
    rate_per_s: float | None = None
    p95_s: float | None = None
    utilization: float | None = None
    replicas: tuple[ReplicaGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool(Record):
    """GPUs that the plan was made for, without those that are reserved.

    `idle_gpus` are pieces ``[node, first GPU on the node, GPUs]`` that would help nobody.
    """

    name: str
    gpu: str
    gpus: int
    gpus_per_node: int
    price_usd_per_hour: float | None
    idle_gpus: Annotated[tuple[Piece, ...], TRUSTED] = ()


@dataclass(frozen=True, slots=True)
class PlannedWorkload(Record):
    """The traffic the plan was made for.

    `effective_size` is the number of equally weighted requests that would carry as much information as the
    weighted `scored_requests`. `dispersion` maps window lengths in seconds to the index of dispersion of counts.
    """

    scored_requests: int
    effective_size: float
    rate_per_s: float
    rate_from: str
    headroom: float
    cv: float
    dispersion: dict[str, float]


@dataclass(frozen=True, slots=True)
class SingleModel(Record):
    """The best one-model deployment of the same pool at the same rate.

    `feasible` says that it meets the quality floor and carries the rate.
    """

    model: str
    gpus: int
    p95_s: float | None
    quality: float
    cost_usd_per_hour: float | None
    feasible: bool


@dataclass(frozen=True, slots=True)
class HighsProof(Record):
    """What HiGHS says of the final allocation; `objective` is its optimum, in the unit of the plan's objective."""

    status: str
    objective: float | None
    columns: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Iteration(Record):
    """One round of the alternating method: thresholds, the deployment for them, and its objective J."""

    thresholds: tuple[Threshold, ...]
    gpus: tuple[int, ...]
    latency_s: float | None
    quality: float
    objective: float | None


@dataclass(frozen=True, slots=True)
class SimulatedLatency(Record):
    """Where latencies come from simulation: requests per run and their seed, and how many runs of a stage there were.

    The plan's `latency_s` is then the slowest stage's p95 simulated alone, which was minimised among everything whose
    p95 by formula is at most `screen` times that. Its p95s, in `predicted` and of the stages, are those of one
    simulation of the whole cascade; `formula_latency_s` is the slowest stage's p95 by formula.
    """

    requests: int
    seed: int
    runs: int
    screen: float
    formula_latency_s: float


@dataclass(frozen=True, slots=True)
class SolverReport(Record):
    """How the plan was found and how good it provably is; method ``baseline`` is that of another system.

    `family` names the deployments that were searched: every stage in equal replicas (homogeneous), in up to two shapes
    (mixed), or spread over pools in any counts (pooled); `subsets` counts the cascades, each of some of the models.
    `levels` counts the threshold levels per threshold of the full cascade. `complete` says that the search was not
    stopped by `time_limit_s`. `bound` is what no plan can be better than, in the unit of the objective, and `gap` how
    far the plan is from it, relative to the plan; they are None where nothing is proved. `simulated` is None where
    latencies come from the formula.
    """

    method: Literal["exact", "alternating", "baseline"]
    certificate: str
    family: Literal["homogeneous", "mixed", "pooled"]
    subsets: int
    levels: tuple[int, ...]
    distinct_routings: int
    evaluated: int
    pruned: int
    complete: bool
    time_limit_s: float | None
    bound: float | None
    gap: float | None
    seconds: float
    highs: HighsProof | None = None
    trace: tuple[Iteration, ...] = ()
    simulated: SimulatedLatency | None = None


CalibrationStatus = Literal["calibrated", "interpolated", "transferred", "roofline"]


@dataclass(frozen=True, slots=True)
class StageCalibration(Record):
    """How far the predicted times of one stage can be trusted, and why in one sentence."""

    model: str
    status: CalibrationStatus
    reason: str


@dataclass(frozen=True, slots=True)
class Calibration(Record):
    """Which profile the latency model used, the weakest status among the stages, and that of each."""

    profile: str
    status: CalibrationStatus
    stages: tuple[StageCalibration, ...]


@dataclass(frozen=True, slots=True)
class Provenance(Record):
    """Package version, SHA-256 of every input, and the source of every catalog entry used."""

    version: str
    inputs: dict[str, str]
    catalog: dict[str, str]


@dataclass(frozen=True)
class Plan(Record):
    """A deployment and a routing, with everything needed to judge, print, store and serve them.

    `stages` holds the models that run, small to large; the problem's models that do not are in `skipped_models`.
    `objective_value` is what the objective came to, in its unit, and `latency_s` the value of `latency_metric`: the
    objective where that is a latency, else what the deadline `slo_s` counts by (`slo_metric`) or one request's path.
    `system` names whose plan it is, and `batching` how its engines batch.
    """

    status: Literal["optimal", "feasible", "unstable"]
    objective: Objective
    objective_value: float | None
    latency_metric: Metric
    latency_s: float | None
    q_min: float
    q_confidence: float | None
    slo_s: float | None
    slo_metric: Metric | None
    budget_usd_per_hour: float | None
    survive: Survive
    max_utilization: float
    paper_strict: bool
    predicted: Predicted
    routing: Routing
    stages: tuple[StagePlan, ...]
    skipped_models: tuple[str, ...]
    judge: JudgePlan
    pools: tuple[Pool, ...]
    workload: PlannedWorkload
    best_single_model: SingleModel | None
    solver: SolverReport
    calibration: Calibration
    provenance: Provenance
    system: str = OURS
    batching: Batching = "chunked"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_plan(self)

    @cached_property
    def plan_id(self) -> str:
        """First 16 hex digits of the SHA-256 of the plan without its timings: equal plans have equal ids."""
        return plan_id(self, SCHEMA_VERSION)

    @property
    def gpus(self) -> int:
        """GPUs in use: those of the stages and of a hosted judge."""
        return sum(stage.gpus for stage in self.stages) + self.judge.gpus

    @property
    def pool_gpus(self) -> int:
        """GPUs of the cluster, used or idle."""
        return sum(pool.gpus for pool in self.pools)

    @property
    def idle_gpus(self) -> tuple[Piece, ...]:
        """Pieces ``[node, first GPU, GPUs]`` that would help nobody, pool after pool."""
        return tuple(piece for pool in self.pools for piece in pool.idle_gpus)

    @property
    def groups(self) -> Iterator[ReplicaGroup]:
        """Every group of replicas, a hosted judge's last."""
        for stage in self.stages:
            yield from stage.replicas
        yield from self.judge.replicas

    @property
    def binding_stage(self) -> StagePlan:
        """The stage with the largest p95: the one that more GPUs or less work would have to help."""
        return max(self.stages, key=lambda stage: float("inf") if stage.p95_s is None else stage.p95_s)

    def summary(self, width: int = 100, ascii_only: bool = False) -> str:
        """Readable plain text, wrapped at `width` columns."""
        from cascadia_fast.summary import summarize

        return summarize(self, width=width, ascii_only=ascii_only)

    def to_json(self) -> bytes:
        """Canonical ``plan.json``: UTF-8, two-space indent, a final newline; the same bytes for the same plan."""
        return write_plan(self, SCHEMA_VERSION)

    def write(self, path: str | Path) -> None:
        """Write ``plan.json`` in one step: readers see the old file or the whole new one.

        Raises
        ------
        InputError
            The file cannot be written there.
        """
        from cascadia_fast.plan_json import replace_file

        replace_file(Path(path), self.to_json())

    @classmethod
    def from_json(cls, text: bytes | str, source: str = "plan.json") -> Plan:
        """Plan of a JSON text; `source` names it in errors.

        Raises
        ------
        InputError
            Not JSON, another schema version, a field that is unknown, missing or ill-typed, or a `plan_id` that does
            not match.
        """
        plan = read_plan_bytes(cls, text, source, SCHEMA_VERSION)
        taken: set[tuple[str, int, int]] = set()
        for group in plan.groups:
            for node, first, gpus in (piece for replica in group.nodes for piece in replica):
                wanted = {(group.pool, node, gpu) for gpu in range(first, first + gpus)}
                if wanted & taken:
                    raise InputError(f"{source} gives GPU {first} of node {node} to two replicas; place them apart")
                taken |= wanted
        return plan

    @classmethod
    def read(cls, path: str | Path) -> Plan:
        """Plan of a ``plan.json`` file; raises as :meth:`from_json`."""
        from cascadia_fast.plan_json import load_file

        return cls.from_json(load_file(Path(path)), str(path))
