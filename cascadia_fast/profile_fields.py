"""What a profile consists of: numbers by what they depend on, the runs they were fitted to, errors, provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cascadia_fast.errors import InputError
from cascadia_fast.plan_json import Record


@dataclass(frozen=True, slots=True)
class Number(Record):
    """One number of the step-time model.

    `log_sigma` is the standard deviation of its logarithm before any serving run was seen, `basis` says what it rests
    on: kernel timings, a stated assumption, or serving runs.
    """

    value: float
    log_sigma: float
    basis: Literal["kernels", "assumed", "fitted"]

    def __post_init__(self) -> None:
        # Not super(): a slotted dataclass is another class than the one its methods were compiled in.
        Record.__post_init__(self)
        if not 0 < self.value < 1e9:
            raise InputError(f"Number.value is {self.value}; give one above 0")
        if not 0 < self.log_sigma <= 10:
            raise InputError(f"Number.log_sigma is {self.log_sigma}; give one above 0 and at most 10")


@dataclass(frozen=True, slots=True)
class Common(Record):
    """Numbers that every model, format and engine shares; each means what `_core.Efficiency` says of that name."""

    dense_memory: Number
    expert_half_width: Number
    expert_imbalance: Number
    attention_compute: Number
    prefill_compute: Number
    activation_passes: Number
    head_s: Number
    attention_s: Number
    latent_attention_s: Number
    layer_s: Number
    prompt_layer_s: Number
    allreduce_latency_s: Number
    allreduce_exchange_s: Number
    allreduce_bandwidth: Number
    bulk_latency_s: Number
    bulk_bandwidth: Number
    hop_latency_s: Number
    hop_bandwidth: Number


@dataclass(frozen=True, slots=True)
class DenseFormat(Record):
    """Numbers of the dense matrix products in one weight format."""

    dense_compute: Number
    gemm_s: Number


@dataclass(frozen=True, slots=True)
class ExpertFormat(Record):
    """Numbers of the routed experts in one weight format."""

    expert_memory: Number
    expert_compute: Number
    expert_s: Number
    prompt_expert_s: Number


@dataclass(frozen=True, slots=True)
class KvFormat(Record):
    """Numbers of the KV cache in one format."""

    attention_memory: Number


@dataclass(frozen=True, slots=True)
class Engine(Record):
    """Numbers of one serving engine.

    `overhead_scale` multiplies the fixed times of its kernels, `expert_scale` those of routed experts: engines fuse and
    launch differently, and each has expert kernels of its own.
    """

    overhead_scale: Number
    expert_scale: Number
    step_overhead_s: Number
    sequence_overhead_s: Number
    request_overhead_s: Number


@dataclass(frozen=True, slots=True)
class Group(Record):
    """Serving runs of one architecture on one GPU type, engine and weight format.

    `weights` is what the runs' files call them. `models` are all measured names of the architecture. `shapes` are (tp,
    pp, attention_dp, ep), `kv` the formats of the cache; `tokens_in`, `tokens_out` and `concurrency` are the least and
    the most that was measured. `tpot_error` and `ttft_error` are medians of the absolute relative error of the fitted
    numbers, the latter over runs that did not queue.
    """

    gpu: str
    engine: str
    weights: str
    models: tuple[str, ...]
    architecture: str
    kind: Literal["dense", "moe", "mla"]
    shapes: tuple[tuple[int, int, int, int], ...]
    kv: tuple[str, ...]
    tokens_in: tuple[float, float]
    tokens_out: tuple[float, float]
    concurrency: tuple[float, float]
    rows: int
    tpot_error: float | None
    ttft_error: float | None


@dataclass(frozen=True, slots=True)
class Residual(Record):
    """Relative errors over some rows: of a kernel table, of serving runs, or of serving runs left out of the fit."""

    of: str
    rows: int
    median_abs_error: float | None
    p90_abs_error: float | None
    bias: float | None
    spearman: float | None


@dataclass(frozen=True, slots=True)
class Provenance(Record):
    """Where the numbers come from: file names with their SHA-256, the command that made them, and remarks."""

    command: str
    files: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
