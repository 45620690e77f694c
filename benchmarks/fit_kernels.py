"""Fit the constants of ``cascadia_fast/data/kernels.json`` to kernel timings: where calibration starts from.

The tables (one Parquet file per GPU, framework and operation) were measured by NVIDIA with vLLM, TensorRT-LLM and NCCL
and are published with ai-dynamo/aiconfigurator (Apache-2.0); times are in milliseconds, message sizes in bytes. Every
fit is robust least squares on log errors, in the formulas of ``csrc/step_time.cpp``. Two tables are left out:
``fp8_block`` matrix products and MLA decoding of vLLM 0.14 were timed outside CUDA graphs, so that the time to launch
them (70 and 160 microseconds) hides the kernels, and the per-tensor fp8 experts of FlashInfer reach a fifth of what the
block-scaled ones do, which is what engines run.

What no table holds is assumed here, and marked so in the file.

Usage: python -m benchmarks.fit_kernels KERNEL_DIR [-o cascadia_fast/data/kernels.json]
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.kernel_priors import ASSUMED, LOG_SIGMA
from cascadia_fast import catalog
from cascadia_fast.profile import DENSE_FORMATS, ENGINES, KV_FORMATS, WEIGHT_FORMATS, Profile
from cascadia_fast.profile_fields import (
    Common,
    DenseFormat,
    Engine,
    ExpertFormat,
    KvFormat,
    Number,
    Provenance,
    Residual,
)

GPUS = {"h100_sxm": "h100-sxm-80gb", "h200_sxm": "h200-sxm-141gb"}
SCALE = 0.1  # of log errors; larger ones count linearly
KNEE = 0.0935  # of the hyperbola that rounds a roofline's corner, as in csrc/step_time.cpp

Vector = NDArray[np.float64]
Table = dict[str, NDArray[Any]]
Constants = dict[str, float]


@dataclass(frozen=True)
class Kernels:
    """Timings of one operation on all GPUs; `bandwidth`, `bf16`, `fp8` and `link` are the peaks of each row's GPU."""

    rows: Table
    time_s: Vector
    bandwidth: Vector
    bf16: Vector
    fp8: Vector
    link: Vector

    def __getitem__(self, column: str) -> Vector:
        return self.rows[column].astype(float)

    def where(self, keep: NDArray[np.bool_]) -> Kernels:
        rows = {name: values[keep] for name, values in self.rows.items()}
        return Kernels(
            rows, *(values[keep] for values in (self.time_s, self.bandwidth, self.bf16, self.fp8, self.link))
        )


@dataclass(frozen=True)
class Fit:
    constants: Constants
    residuals: list[Residual]


def read(folder: Path, operation: str) -> Kernels:
    """Rows of both GPUs' tables of one operation; `operation` ends in the framework's version and the table's name."""
    tables = {gpu: parquet.read_table(folder / f"{gpu}__{operation}.parquet").to_pandas() for gpu in GPUS}
    rows = {
        name: np.concatenate([table[name].to_numpy() for table in tables.values()])
        for name in tables["h100_sxm"].columns
    }
    sizes = [len(table) for table in tables.values()]

    def peak(field: str) -> Vector:
        return np.repeat([float(getattr(catalog.gpu(name), field)) for name in GPUS.values()], sizes)

    return Kernels(
        rows,
        rows["latency"].astype(float) * 1e-3,
        peak("bandwidth_bytes_per_s"),
        peak("bf16_flops_per_s"),
        peak("fp8_flops_per_s"),
        peak("link_bytes_per_s"),
    )


def fit(
    start: Constants,
    time_s: Vector,
    predicted: Callable[[Constants], Vector],
    groups: Mapping[str, NDArray[np.bool_]],
) -> Fit:
    """The constants that minimise the log errors, and what is left in each group.

    Those without a prior in `LOG_SIGMA` belong to the table alone and are dropped.
    """
    names = list(start)

    def of(point: Vector) -> Constants:
        return dict(zip(names, np.exp(point).tolist(), strict=True))

    found = least_squares(
        lambda point: np.log(predicted(of(point)) / time_s) / SCALE,
        np.log(list(start.values())),
        loss="soft_l1",
    )
    error = predicted(of(found.x)) / time_s - 1
    constants = {name: value for name, value in of(found.x).items() if name in LOG_SIGMA}
    return Fit(constants, [residual(name, error[rows]) for name, rows in groups.items()])


def residual(name: str, error: Vector) -> Residual:
    median, p90, bias = (
        round(float(number), 4)
        for number in (np.median(np.abs(error)), np.quantile(np.abs(error), 0.9), np.median(error))
    )
    return Residual(name, len(error), median, p90, bias, spearman=None)


def knee(a: Vector, b: Vector) -> Vector:
    """The larger of two times, rounded where they meet."""
    larger: Vector = 0.5 * (a + b + np.sqrt((a - b) ** 2 + 4 * KNEE * a * b))
    return larger


def fit_gemms(folder: Path) -> Fit:
    k = read(folder, "vllm_0.24.0__gemm_perf")
    served = (k["m"] <= 8192) & (k["n"] >= 512) & (k["k"] >= 512) & (k["n"] <= 51200) & (k["k"] <= 51200)
    k = k.where(served & np.isin(k.rows["gemm_dtype"], ["bfloat16", "fp8"]))
    is_fp8 = k.rows["gemm_dtype"] == "fp8"
    read_s = k["n"] * k["k"] * np.where(is_fp8, 1, 2) / k.bandwidth
    flops_s = 2 * k["m"] * k["n"] * k["k"] / np.where(is_fp8, k.fp8, k.bf16)
    activations_s = 2 * k["m"] * (k["k"] + k["n"]) / k.bandwidth

    def predicted(c: Constants) -> Vector:
        compute = np.where(is_fp8, c["dense_compute.fp8"], c["dense_compute.bf16"])
        fixed_s = np.where(is_fp8, c["gemm_s.fp8"], c["gemm_s.bf16"])
        passes = np.where(is_fp8, c["passes.fp8"], c["passes.bf16"])  # fp8 products scale and convert their input
        return fixed_s + passes * activations_s + knee(read_s / c["dense_memory"], flops_s / compute)

    start = {
        "dense_memory": 0.87,
        "dense_compute.bf16": 0.8,
        "dense_compute.fp8": 0.6,
        "gemm_s.bf16": 4e-6,
        "gemm_s.fp8": 7e-6,
        "passes.bf16": 0.2,
        "passes.fp8": 1.0,
    }
    few = k["m"] <= 128
    return fit(
        start,
        k.time_s,
        predicted,
        {
            "dense products, bf16, up to 128 tokens": ~is_fp8 & few,
            "dense products, bf16, more": ~is_fp8 & ~few,
            "dense products, fp8, up to 128 tokens": is_fp8 & few,
            "dense products, fp8, more": is_fp8 & ~few,
        },
    )


# Table's name of the format, kernel, stored bits with block scales, whether the arithmetic is fp8.
EXPERTS = {
    "bf16": ("bfloat16", "vllm_unquantizedfusedmoe_triton_tritonexperts", 16.0, False),
    "fp8": ("fp8_block", "vllm_fp8moe_triton_tritonexperts", 8.0, True),
    "int4": ("int4_wo", "vllm_compressedtensorswna16marlinmoe_marlin_marlinexperts", 4.25, False),
    "mxfp4": ("w4a16_mxfp4", "vllm_gptossmxfp4moe_triton_oaitritonmxfp4expertsmonolithic", 4.25, False),
}


@dataclass(frozen=True)
class Experts:
    """Timings of routed experts in the formats of `EXPERTS`, and what they would take at the peaks."""

    time_s: Vector
    form: NDArray[np.int64]
    split: NDArray[np.bool_]  # by whole experts over several GPUs
    width: Vector
    read_s: Vector
    flops_s: Vector

    def predicted(self, c: Constants) -> Vector:
        memory, compute, fixed_s = (
            np.array([c[f"{name}.{form}"] for form in EXPERTS])[self.form]
            for name in ("expert_memory", "expert_compute", "expert_s")
        )
        compute = compute * self.width / (self.width + c["expert_half_width"])
        work_s = self.read_s / memory + self.flops_s / compute
        fullest = np.where(self.split, 1 + c.get("expert_imbalance", 0), 1)
        time_s: Vector = fixed_s + work_s * fullest
        return time_s


def read_experts(folder: Path, split: bool) -> Experts:
    k = read(folder, "vllm_0.24.0__moe_perf")
    served = (
        (k.rows["distribution"] == "power_law_1.01") & (k["num_tokens"] <= 8192) & ((k["moe_ep_size"] > 1) == split)
    )
    k = k.where(served & (k["moe_tp_size"] * k["moe_ep_size"] <= 8))
    form = np.full(len(k.time_s), -1)
    for i, (dtype, source, _, _) in enumerate(EXPERTS.values()):
        form[(k.rows["moe_dtype"] == dtype) & (k.rows["kernel_source"] == source)] = i
    k, form = k.where(form >= 0), form[form >= 0]
    bits = np.array([entry[2] for entry in EXPERTS.values()])[form]
    peak = np.where(np.array([entry[3] for entry in EXPERTS.values()])[form], k.fp8, k.bf16)
    ep, width = k["moe_ep_size"], k["inter_size"] / k["moe_tp_size"]
    parameters = 3 * k["hidden_size"] * width
    touched = 1 - (1 - k["topk"] / k["num_experts"]) ** k["num_tokens"]
    return Experts(
        k.time_s,
        form,
        ep > 1,
        width,
        k["num_experts"] / ep * parameters * bits / 8 * touched / k.bandwidth,
        2 * k["topk"] * parameters * k["num_tokens"] / ep / peak,
    )


def fit_experts(folder: Path) -> Fit:
    whole = read_experts(folder, split=False)
    start = {"expert_half_width": 150.0}
    for form in EXPERTS:
        start |= {f"expert_memory.{form}": 1.0, f"expert_compute.{form}": 0.3, f"expert_s.{form}": 4.5e-5}
    groups = {f"experts, {form}": whole.form == i for i, form in enumerate(EXPERTS)}
    one = fit(start, whole.time_s, whole.predicted, groups)
    # Kernels of one GPU's experts time the fullest GPU of a skewed routing: the rest is imbalance.
    split = read_experts(folder, split=True)
    two = fit(
        {"expert_imbalance": 0.3},
        split.time_s,
        lambda c: split.predicted(one.constants | c),
        {"experts split over GPUs": split.split},
    )
    return Fit(one.constants | two.constants, one.residuals + two.residuals)


def fit_decode_attention(folder: Path) -> Fit:
    k = read(folder, "vllm_0.24.0__generation_attention_perf")
    served = (k["window_size"] == 0) & np.isin(k["head_dim"], [64, 128]) & (k["batch_size"] <= 512)
    k = k.where(served & (k["step"] <= 32768) & (k.rows["kernel_source"] == "vllm_flash_attn_fa3"))
    is_fp8 = k.rows["kv_cache_dtype"] == "fp8"
    elements = k["batch_size"] * k["step"] * 2 * k["num_key_value_heads"] * k["head_dim"]
    read_s = elements * np.where(is_fp8, 1, 2) / k.bandwidth

    def predicted(c: Constants) -> Vector:
        memory = np.where(is_fp8, c["attention_memory.fp8"], c["attention_memory.bf16"])
        return c["attention_s"] + read_s / memory + c["head_s"] * k["batch_size"] * k["num_heads"]

    start = {"attention_memory.bf16": 0.85, "attention_memory.fp8": 0.65, "attention_s": 1e-5, "head_s": 2e-9}
    groups = {"decode attention, bf16 cache": ~is_fp8, "decode attention, fp8 cache": is_fp8}
    return fit(start, k.time_s, predicted, groups)


def fit_latent_attention(folder: Path, memory: Constants) -> Fit:
    k = read(folder, "trtllm_1.3.0rc20__generation_mla_perf")
    k = k.where((k["batch_size"] <= 512) & (k["step"] <= 32768) & (k["num_heads"] >= 8))
    is_fp8 = k.rows["kv_cache_dtype"] == "fp8"
    tokens = k["batch_size"] * k["step"]
    reached = np.where(is_fp8, memory["attention_memory.fp8"], memory["attention_memory.bf16"])
    read_s = tokens * 576 * np.where(is_fp8, 1, 2) / k.bandwidth / reached
    flops_s = 2 * tokens * k["num_heads"] * 1088 / k.bf16

    def predicted(c: Constants) -> Vector:
        return c["latent_attention_s"] + np.maximum(read_s, flops_s / c["attention_compute"])

    start = {"latent_attention_s": 1.5e-5, "attention_compute": 0.55}
    return fit(start, k.time_s, predicted, {"latent decode attention": np.full(len(k.time_s), True)})


def fit_prefill_attention(folder: Path) -> Fit:
    k = read(folder, "vllm_0.24.0__context_attention_perf")
    served = (k["window_size"] == 0) & np.isin(k["head_dim"], [64, 128]) & (k["batch_size"] <= 8) & (k["isl"] >= 128)
    served &= (k.rows["kv_cache_dtype"] == "bfloat16") & (k.rows["kernel_source"] == "vllm_flash_attn_fa3")
    k = k.where(served)
    flops_s = 2 * k["batch_size"] * k["num_heads"] * 2 * k["head_dim"] * k["isl"] ** 2 / 2 / k.bf16
    rows = k["batch_size"] * k["isl"] * k["num_heads"]

    def predicted(c: Constants) -> Vector:
        return c["fixed_s"] + c["row_s"] * rows + flops_s / c["prefill_compute"]

    start = {"fixed_s": 1e-5, "row_s": 3e-10, "prefill_compute": 0.6}
    return fit(start, k.time_s, predicted, {"prompt attention": np.full(len(k.time_s), True)})


def fit_allreduce(folder: Path) -> Fit:
    k = read(folder, "vllm_0.24.0__custom_allreduce_perf")
    k = k.where((k.rows["backend"] == "vllm_graph") & (k["message_size"] <= 2.0**24))
    gpus, link_s = k["num_gpus"], k["message_size"] / k.link

    def predicted(c: Constants) -> Vector:
        one_s = (gpus - 1) * link_s / c["allreduce_bandwidth"]
        two_s = c["allreduce_exchange_s"] + 2 * (gpus - 1) / gpus * link_s / c["allreduce_bandwidth"]
        return c["allreduce_latency_s"] + np.minimum(one_s, two_s)

    start = {"allreduce_latency_s": 4.5e-6, "allreduce_exchange_s": 4.5e-6, "allreduce_bandwidth": 0.36}
    small = k["message_size"] <= 2.0**20
    return fit(start, k.time_s, predicted, {"all-reduce, up to 1 MiB": small, "all-reduce, up to 16 MiB": ~small})


def fit_bulk(folder: Path) -> Fit:
    k = read(folder, "nccl_2.29.2__nccl_perf")
    kept = (k.rows["op_name"] == "all_reduce") & (k.rows["nccl_dtype"] == "half") & (k["message_size"] >= 2.0**20)
    k = k.where(kept & (k["message_size"] <= 2.0**28))
    ring_s = 2 * (k["num_gpus"] - 1) / k["num_gpus"] * k["message_size"] / k.link

    def predicted(c: Constants) -> Vector:
        return c["bulk_latency_s"] + ring_s / c["bulk_bandwidth"]

    start = {"bulk_latency_s": 2e-5, "bulk_bandwidth": 0.5}
    return fit(start, k.time_s, predicted, {"all-reduce of NCCL, from 1 MiB": np.full(len(k.time_s), True)})


def document(folder: Path) -> Profile:
    decode = fit_decode_attention(folder)
    fits = [
        fit_gemms(folder),
        fit_experts(folder),
        decode,
        fit_latent_attention(folder, decode.constants),
        fit_prefill_attention(folder),
        fit_allreduce(folder),
        fit_bulk(folder),
    ]
    fitted = {name: value for one in fits for name, value in one.constants.items()}

    def number(name: str, form: str = "") -> Number:
        key = f"{name}.{form}" if form and name not in ASSUMED else name
        if key in fitted:
            return Number(float(f"{fitted[key]:.4g}"), LOG_SIGMA[key], "kernels")
        return Number(*ASSUMED[key], "assumed")

    def section(cls: Any, form: str = "") -> Any:
        return cls(**{name: number(name, form) for name in cls.__dataclass_fields__})

    used = sorted(path for path in folder.glob("*.parquet") if any(part in path.name for part in USED))
    return Profile(
        name="kernels h100+h200 v1",
        gpus=tuple(GPUS.values()),
        common=section(Common),
        dense={form: section(DenseFormat, form) for form in DENSE_FORMATS},
        experts={form: section(ExpertFormat, form) for form in WEIGHT_FORMATS},
        kv={form: section(KvFormat, form) for form in KV_FORMATS},
        engines={name: section(Engine) for name in ENGINES},
        measured=(),
        provenance=Provenance(
            command="python -m benchmarks.fit_kernels KERNEL_DIR -o cascadia_fast/data/kernels.json",
            files=tuple((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in used),
            notes=(
                "Kernel timings by NVIDIA, published with ai-dynamo/aiconfigurator (Apache-2.0).",
                "Numbers marked `assumed` are in no table; request_overhead_s was chosen by leaving models out.",
                "Unused: fp8_block products and MLA of vLLM 0.14, timed outside CUDA graphs; per-tensor fp8 experts.",
            ),
        ),
        errors=tuple(line for one in fits for line in one.residuals),
    )


USED = (
    "__gemm_perf",
    "__moe_perf",
    "__generation_attention_perf",
    "trtllm_1.3.0rc20__generation_mla_perf",
    "__context_attention_perf",
    "__custom_allreduce_perf",
    "nccl_2.29.2__nccl_perf",
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the constants of the step-time model to kernel timings.")
    parser.add_argument("folder", type=Path, help="folder of the Parquet tables")
    parser.add_argument("-o", "--output", type=Path, help="where to write the JSON; printed only without it")
    arguments = parser.parse_args()
    profile = document(arguments.folder)
    if arguments.output:
        profile.write(arguments.output)
    print(profile.to_json().decode(), end="")


if __name__ == "__main__":
    main()
