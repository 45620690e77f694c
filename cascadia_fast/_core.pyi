"""Native core: latency model, look-up tables and search. Arrays are C-contiguous float64 unless said otherwise."""

from collections.abc import Callable, Sequence
from typing import ClassVar, TypedDict, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

class Architecture:
    def __init__(
        self,
        *,
        layers: int,
        hidden: int,
        heads: int,
        kv_heads: int = 0,
        head_dim: int = 0,
        vocab: int,
        dense_layers: int,
        dense_intermediate: int = 0,
        experts: int = 0,
        experts_per_token: int = 0,
        expert_intermediate: int = 0,
        shared_intermediate: int = 0,
        q_lora_rank: int = 0,
        kv_lora_rank: int = 0,
        qk_nope_dim: int = 0,
        qk_rope_dim: int = 0,
        v_head_dim: int = 0,
        window: int = 0,
        windowed_layers: int = 0,
        tied_embeddings: bool = False,
        gated: bool = True,
    ) -> None: ...
    @property
    def total_parameters(self) -> float: ...
    @property
    def active_parameters(self) -> float: ...
    @property
    def embedding_parameters(self) -> float: ...
    def weight_bytes(self, precision: Precision) -> float: ...
    def kv_cache_bytes(self, precision: Precision, context_tokens: float) -> float: ...

class Precision:
    def __init__(self, *, weights: str, kv: str = "bf16") -> None: ...
    @property
    def kv_bytes_per_element(self) -> float: ...

class Gpu:
    def __init__(
        self,
        *,
        memory_bytes: float,
        bandwidth_bytes_per_s: float,
        bf16_flops_per_s: float,
        fp8_flops_per_s: float | None = None,
        int8_ops_per_s: float | None = None,
        link_bytes_per_s: float,
        internode_bytes_per_s: float,
    ) -> None: ...

class Efficiency:
    names: ClassVar[tuple[str, ...]]
    def __init__(
        self,
        *,
        dense_memory: float,
        dense_compute: float,
        expert_memory: float,
        expert_compute: float,
        expert_half_width: float,
        expert_imbalance: float,
        attention_memory: float,
        attention_compute: float,
        prefill_compute: float,
        activation_passes: float,
        head_s: float,
        gemm_s: float,
        attention_s: float,
        latent_attention_s: float,
        expert_s: float,
        layer_s: float,
        prompt_layer_s: float,
        prompt_expert_s: float,
        step_overhead_s: float,
        sequence_overhead_s: float,
        request_overhead_s: float,
        allreduce_latency_s: float,
        allreduce_exchange_s: float,
        allreduce_bandwidth: float,
        bulk_latency_s: float,
        bulk_bandwidth: float,
        hop_latency_s: float,
        hop_bandwidth: float,
    ) -> None: ...

class Shape:
    def __init__(self, tp: int = 1, pp: int = 1, attention_dp: int = 1, ep: int = 1) -> None: ...
    @property
    def tp(self) -> int: ...
    @property
    def pp(self) -> int: ...
    @property
    def attention_dp(self) -> int: ...
    @property
    def ep(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

class EngineLimits:
    def __init__(
        self,
        *,
        max_num_seqs: int = 256,
        max_batched_tokens: int = 8192,
        memory_utilization: float = 0.9,
        gpus_per_node: int = 8,
    ) -> None: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_batched_tokens(self) -> int: ...
    @property
    def memory_utilization(self) -> float: ...
    @property
    def gpus_per_node(self) -> int: ...

class MemoryPlan:
    @property
    def weight_bytes(self) -> float: ...
    @property
    def reserve_bytes(self) -> float: ...
    @property
    def kv_capacity_bytes(self) -> float: ...

class Replica:
    def __init__(
        self,
        *,
        architecture: Architecture,
        precision: Precision,
        gpu: Gpu,
        efficiency: Efficiency,
        shape: Shape,
        limits: EngineLimits,
    ) -> None: ...
    @overload
    def linear_s(self, tokens: float, sampled: float) -> float: ...
    @overload
    def linear_s(self, tokens: ArrayLike, sampled: ArrayLike) -> NDArray[np.float64]: ...
    @overload
    def decode_attention_s(self, context_tokens: float) -> float: ...
    @overload
    def decode_attention_s(self, context_tokens: ArrayLike) -> NDArray[np.float64]: ...
    @overload
    def decode_attention_sum_s(self, tokens_in: float, tokens_out: float) -> float: ...
    @overload
    def decode_attention_sum_s(self, tokens_in: ArrayLike, tokens_out: ArrayLike) -> NDArray[np.float64]: ...
    @overload
    def prefill_attention_s(self, tokens: float, before: float) -> float: ...
    @overload
    def prefill_attention_s(self, tokens: ArrayLike, before: ArrayLike) -> NDArray[np.float64]: ...
    @overload
    def fill_s(self, tokens: float) -> float: ...
    @overload
    def fill_s(self, tokens: ArrayLike) -> NDArray[np.float64]: ...
    @overload
    def step_s(
        self, sequences: float, context_per_sequence: float, prompt_tokens: float, prompt_before: float
    ) -> float: ...
    @overload
    def step_s(
        self,
        sequences: ArrayLike,
        context_per_sequence: ArrayLike,
        prompt_tokens: ArrayLike,
        prompt_before: ArrayLike,
    ) -> NDArray[np.float64]: ...
    def step_times(
        self,
        sequences: ArrayLike,
        context_per_sequence: ArrayLike,
        prompt_tokens: ArrayLike,
        prompt_before: ArrayLike,
    ) -> NDArray[np.float64]: ...
    @overload
    def kv_bytes(self, context_tokens: float) -> float: ...
    @overload
    def kv_bytes(self, context_tokens: ArrayLike) -> NDArray[np.float64]: ...
    @property
    def kv_capacity_bytes(self) -> float: ...
    @property
    def shape(self) -> Shape: ...

def valid_shapes(
    *, architecture: Architecture, precision: Precision, gpu: Gpu, gpus_total: int, limits: EngineLimits
) -> list[Shape]: ...
def memory_plan(
    *, architecture: Architecture, precision: Precision, gpu: Gpu, shape: Shape, limits: EngineLimits
) -> MemoryPlan: ...
def latency_quantiles(
    *,
    replica: Replica,
    tokens_in: NDArray[np.float64],
    tokens_out: NDArray[np.float64],
    share: NDArray[np.float64],
    rate_per_s: NDArray[np.float64],
    arrival_scv: float = 1.0,
    replicas: float = 1.0,
    q: float = 0.95,
    spread_out: NDArray[np.float64] | None = None,
    dispersion: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]: ...
def closed_loop(
    *,
    replica: Replica,
    tokens_in: NDArray[np.float64],
    tokens_out: NDArray[np.float64],
    share: NDArray[np.float64],
    concurrency: NDArray[np.float64],
    rounds: int = 10,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]: ...
def capacities(
    *,
    replica: Replica,
    tokens_in: NDArray[np.float64],
    tokens_out: NDArray[np.float64],
    share: NDArray[np.float64],
) -> NDArray[np.float64]: ...
def idle_bounds(
    *,
    replica: Replica,
    tokens_in: NDArray[np.float64],
    tokens_out: NDArray[np.float64],
    share: NDArray[np.float64],
    q: float = 0.95,
    spread_out: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]: ...

class Choice:
    def __init__(
        self,
        shape: int,
        replicas: int,
        gpus: int,
        latency_s: float,
        fill_shape: int = -1,
        fill_replicas: int = 0,
    ) -> None: ...
    @property
    def shape(self) -> int: ...
    @property
    def replicas(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def latency_s(self) -> float: ...
    @property
    def fill_shape(self) -> int: ...
    @property
    def fill_replicas(self) -> int: ...

class Traffic:
    def __init__(
        self,
        *,
        rate_per_s: float,
        scv: float = 1.0,
        max_utilization: float = 0.9,
        quantile: float = 0.95,
        idle_stage_keeps_replica: bool = False,
        dispersion: NDArray[np.float64] | None = None,
        mixed: bool = False,
    ) -> None: ...

class StageLimits:
    def __init__(
        self,
        *,
        least_replicas: int = 0,
        most_replicas: int = 1_000_000,
        spare_replicas: int = 0,
        survive_s: float = ...,
    ) -> None: ...

class Models:
    def __init__(
        self,
        *,
        replicas: Sequence[Sequence[Replica]],
        cells: Sequence[Sequence[NDArray[np.float64]]],
        pools: Sequence[Sequence[int]] | None = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def smallest_engine(self, model: int) -> int: ...
    def nodes(self, model: int) -> int: ...

class ExactResult:
    @property
    def routing(self) -> int: ...
    @property
    def stages(self) -> list[Choice]: ...
    @property
    def worst_s(self) -> list[float]: ...
    @property
    def value(self) -> float: ...
    @property
    def bound(self) -> float: ...
    @property
    def complete(self) -> bool: ...
    @property
    def meet_floor(self) -> int: ...
    @property
    def evaluated(self) -> int: ...
    @property
    def pruned_by_load(self) -> int: ...
    @property
    def pruned_by_need(self) -> int: ...
    @property
    def pruned_by_latency(self) -> int: ...

class RouteResult:
    @property
    def routing(self) -> int: ...
    @property
    def objective(self) -> float: ...
    @property
    def latency_s(self) -> float: ...
    @property
    def utilization(self) -> float: ...
    @property
    def evaluated(self) -> int: ...

class StageDetail(TypedDict):
    p95_s: float
    reach: float
    capacity_per_s: float
    utilization: float
    batch_limit: int
    mean_batch: float
    latency_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]

class CascadeSearch:
    def __init__(
        self,
        *,
        models: Models,
        stations: Sequence[int],
        depth: Sequence[int],
        share: Sequence[NDArray[np.float64]],
        quality: NDArray[np.float64],
        levels: Sequence[int],
        routings: NDArray[np.int32],
        traffic: Traffic,
        limits: Sequence[StageLimits] = ...,
        requests: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]] | None = None,
    ) -> None: ...
    def exact(
        self,
        *,
        candidates: NDArray[np.int64],
        gpus: NDArray[np.int32] | int,
        minimise: str = "latency",
        limit_s: float = ...,
        usd_per_gpu: float = 1.0,
        fixed_usd: NDArray[np.float64] | None = None,
        previous_gpus: Sequence[int] = ...,
        beat: float = ...,
        time_limit_s: float = ...,
        threads: int = 1,
    ) -> ExactResult: ...
    def front(
        self,
        *,
        candidates: NDArray[np.int64],
        gpus: NDArray[np.int32] | int,
        minimise: str = "latency",
        limit_s: float = ...,
        usd_per_gpu: float = 1.0,
        fixed_usd: NDArray[np.float64] | None = None,
        threads: int = 1,
    ) -> list[ExactResult]: ...
    def deploy(self, routing: int, gpus: int) -> list[Choice]: ...
    def route(self, deployment: Sequence[Choice], quality_floor: float, mu_s: float, span: float) -> RouteResult: ...
    def single(self, station: int, gpus: int) -> Choice: ...
    def columns(self, routing: int, latency_s: float, gpus: int) -> list[list[Choice]]: ...
    def table(
        self, routing: int, station: int, gpus: int, threads: int = 1
    ) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]: ...
    def evaluate(self, routing: int, station: int, choice: Choice) -> StageDetail: ...
    def sampled(self, *, routing: int, station: int, option: int, rate_per_s: float) -> StageDetail: ...
    def split(self, routing: int, station: int, choice: Choice) -> tuple[float, float]: ...
    def capacities(
        self,
        *,
        station: int,
        prefixes: NDArray[np.int64],
        limit_s: float,
        enough_per_s: NDArray[np.float64] | None = None,
        threads: int = 1,
    ) -> NDArray[np.float64]: ...
    def share(self, routing: int, station: int) -> NDArray[np.float64]: ...
    def max_rate_per_s(self, candidates: NDArray[np.int64], gpus: NDArray[np.int32] | int) -> float: ...
    def least_gpus(self, candidates: NDArray[np.int64]) -> float: ...
    def lightest(self, candidates: NDArray[np.int64]) -> int: ...

class PathSearch:
    def __init__(
        self,
        *,
        search: CascadeSearch,
        escalates: NDArray[np.int32],
        sample: NDArray[np.int32],
        judge_sample: NDArray[np.int32] | None,
        weight: NDArray[np.float64],
        judge_delay_s: float,
        pools: int = 1,
    ) -> None: ...
    def quantile(self, routing: int, stages: Sequence[Choice], metric: str, q: float = 0.95) -> float: ...
    def quantile_of(
        self,
        *,
        routing: int,
        stations: Sequence[Sequence[tuple[float, NDArray[np.float64], NDArray[np.float64]]]],
        metric: str,
        q: float = 0.95,
    ) -> float: ...
    # A station with spare_replicas k in its StageLimits: with it alone k replicas short its own p95 is at most
    # survive_s, and the ceilings on end_to_end_p95 and ttft_p95 still hold.
    def exact(
        self,
        *,
        candidates: NDArray[np.int64],
        gpus: NDArray[np.int32],  # (candidates, pools)
        metric: str,
        minimise: str = "latency",
        limits_s: tuple[float, float, float] = ...,  # of max_stage_p95, end_to_end_p95, ttft_p95
        usd_per_gpu: Sequence[float] = ...,  # of each pool
        fixed_usd: NDArray[np.float64] | None = None,
        budget_usd: float = ...,
        previous_gpus: Sequence[int] = ...,
        beat: float = ...,
        time_limit_s: float = ...,
        threads: int = 1,
    ) -> ExactResult: ...
    def front(
        self,
        *,
        candidates: NDArray[np.int64],
        gpus: NDArray[np.int32],
        metric: str,
        minimise: str = "latency",
        limits_s: tuple[float, float, float] = ...,
        usd_per_gpu: Sequence[float] = ...,
        fixed_usd: NDArray[np.float64] | None = None,
        budget_usd: float = ...,
        threads: int = 1,
    ) -> list[ExactResult]: ...

class StepCosts:
    def __init__(self, replica: Replica) -> None: ...
    @staticmethod
    def measured(
        *,
        decode_step_s: NDArray[np.float64],
        prompt_step_s: NDArray[np.float64],
        sampled_s: NDArray[np.float64],
        sequence_s: float = 0.0,
        context_token_s: float = 0.0,
        prompt_pair_s: float = 0.0,
        request_s: float = 0.0,
        kv_capacity_tokens: float = 1e15,
    ) -> StepCosts: ...
    def alone_s(
        self, tokens_in: NDArray[np.int32], tokens_out: NDArray[np.int32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_batched_tokens(self) -> int: ...
    @property
    def kv_capacity_bytes(self) -> float: ...

class Scheduler:
    def __init__(
        self,
        *,
        batching: str = "chunked",
        admission: str = "fcfs",
        block_tokens: int = 16,
        watermark: float = 0.01,
        prefix_hit_share: float = 0.0,
    ) -> None: ...

class Station:
    def __init__(
        self,
        engines: Sequence[tuple[StepCosts, int, float] | tuple[StepCosts, int, float, float, float]],
        *,
        scheduler: Scheduler | None = None,
        dispatch: str = "capacity_weighted",
    ) -> None: ...

class Gears:
    def __init__(
        self,
        up_to_per_s: NDArray[np.float64],
        window_s: float,
        queue_factor: float,
        first_station: NDArray[np.int32],
    ) -> None: ...

class Simulated:
    status: NDArray[np.uint8]
    gear: NDArray[np.uint8]
    arrived_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finished_s: NDArray[np.float64]
    times_s: NDArray[np.float64] | None
    replica: NDArray[np.int32] | None
    preempted: NDArray[np.uint8] | None
    station: NDArray[np.int32]
    steps: NDArray[np.int64]
    busy_s: NDArray[np.float64]
    decoding_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    peak_kv_share: NDArray[np.float64]
    ended_s: float
    interrupted: bool
    visits_done: int

def simulate(
    stages: Sequence[Station],
    *,
    judge: Station | None = None,
    tokens_in: NDArray[np.int32],
    tokens_out: NDArray[np.int32],
    path: NDArray[np.uint16],
    gears: Gears | None = None,
    judged: NDArray[np.uint16] | None = None,
    judge_tokens_in: NDArray[np.int32] | None = None,
    judge_tokens_out: NDArray[np.int32] | None = None,
    judge_delay_s: NDArray[np.float64] = ...,
    drawn: NDArray[np.int32],
    arrival_s: NDArray[np.float64] | None = None,
    concurrency: int = 0,
    seed: int = 0,
    timeout_s: float = ...,
    stop_s: float = ...,
    visits: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Simulated: ...
