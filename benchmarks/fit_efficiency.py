"""Fit the efficiencies of ``cascadia_fast/data/efficiency.json`` to measured serving latencies.

The table holds mean time to first token (TTFT) and time per output token (TPOT) of real engines under closed loop:
``concurrency`` clients, each sending its next request, of isl prompt and osl output tokens, when its last one ends.

Which rows: one pipeline stage, no attention data parallelism, at most 8 GPUs (rows that claim 16 or 64 repeat 8-GPU
measurements with tp x ep written as tp). Expert-parallel rows count as tensor-parallel ones: both spread the experts of
a layer over the same GPUs. A measurement listed twice under one key counts once; different runs of one key all count.

What the table leaves out is assumed: an engine's KV cache is bf16, except where TensorRT-LLM runs an fp8 checkpoint
(the other readings fit the dense rows worse); gpt-oss always has its mxfp4 experts, the only checkpoint there is.

Dense rows fix what every model shares, then mixture-of-experts rows fix what experts add. TTFT counts a quarter as much
as TPOT, and only where requests did not queue for memory: it tells arithmetic from interference by other prompts.

Usage: python benchmarks/fit_efficiency.py TABLE.csv [-o cascadia_fast/data/efficiency.json]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from cascadia_fast import _core, catalog

GPUS = {"h100_sxm": "h100-sxm-80gb", "h200_sxm": "h200-sxm-141gb"}
WEIGHTS = {"": "bf16", "fp8": "fp8", "fp4": "mxfp4"}
LIMITS = _core.EngineLimits(max_num_seqs=1024)

# Where the search starts; no pipeline was measured, so the hops keep the link's stated point-to-point latency and are
# given the share of the bandwidth that all-reduces reach. A cost per step cannot be told from one per layer.
START = {
    "dense_memory": 0.85,
    "dense_compute": 0.7,
    "expert_memory": 0.7,
    "expert_compute": 0.4,
    "attention_memory": 0.8,
    "attention_compute": 0.5,
    "layer_overhead_s": 2e-5,
    "expert_overhead_s": 1e-5,
    "step_overhead_s": 0.0,
    "sequence_overhead_s": 5e-6,
    "allreduce_latency_s": 5e-6,
    "allreduce_bandwidth": 0.3,
    "hop_latency_s": 1e-5,
    # Of the measurement, not of the engine: share of the other clients' prompts that fall into a request's decode,
    # and what client and server add to the first token.
    "prompt_share": 0.9,
    "first_token_s": 0.02,
}
MEASUREMENT = ("prompt_share", "first_token_s")
DENSE = (
    "dense_memory",
    "dense_compute",
    "attention_memory",
    "attention_compute",
    "layer_overhead_s",
    "sequence_overhead_s",
    "allreduce_latency_s",
    "allreduce_bandwidth",
    *MEASUREMENT,
)
EXPERT = ("expert_memory", "expert_compute", "expert_overhead_s")

LOG_ERROR_SCALE = 0.08  # errors beyond it count linearly: engines and versions differ by more than noise
TTFT_WEIGHT = 0.25
PRIOR_WEIGHT = 0.3  # per natural-log unit away from the start; decides only what the rows do not
UNQUEUED_TTFT = 0.25  # of the decode time


@dataclass(frozen=True)
class Row:
    """One measurement, and the parts of its engine."""

    model: str
    spec: catalog.ArchitectureSpec
    architecture: _core.Architecture
    precision: _core.Precision
    gpu: _core.Gpu
    tp: int
    isl: float
    osl: float
    concurrency: float
    ttft_s: float
    tpot_s: float

    @property
    def moe(self) -> bool:
        return self.spec.experts > 0

    @property
    def unqueued(self) -> bool:
        return self.ttft_s <= UNQUEUED_TTFT * self.osl * self.tpot_s


def usable(record: Mapping[str, str]) -> bool:
    return (
        float(record["pp_size"]) == 1
        and float(record["attention_dp_size"] or 1) <= 1
        and float(record["tp_size"]) <= 8
        and record["precision"] in WEIGHTS
    )


def to_row(record: Mapping[str, str]) -> Row:
    model = catalog.model(record["model_path"])
    weights = "mxfp4" if model.native_weights == "mxfp4" else WEIGHTS[record["precision"]]
    kv = "fp8" if record["backend"] == "trtllm" and weights == "fp8" else "bf16"
    gpu = dataclasses.asdict(catalog.gpu(GPUS[record["system"]]))
    peaks = {name: value for name, value in gpu.items() if name == "memory_bytes" or name.endswith("_per_s")}
    return Row(
        model=model.name,
        spec=model.architecture,
        architecture=_core.Architecture(**dataclasses.asdict(model.architecture)),
        precision=_core.Precision(weights=weights, kv=kv),
        gpu=_core.Gpu(**peaks),
        tp=int(float(record["tp_size"])),
        isl=float(record["isl"]),
        osl=float(record["osl"]),
        concurrency=float(record["concurrency"]),
        ttft_s=float(record["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(record["silicon_tpot_ms"]) / 1e3,
    )


def read_rows(path: Path) -> tuple[list[Row], int]:
    """Rows of the fit, and how many the table has."""
    with path.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    key = ("system", "backend", "precision", "tp_size", "isl", "osl", "concurrency", "silicon_tpot_ms")
    unique: dict[tuple[object, ...], Row] = {}
    for record in filter(usable, records):
        # Models of one architecture share measurements: the table lists some under both names.
        row = to_row(record)
        unique.setdefault((row.spec, *(record[field] for field in key)), row)
    return list(unique.values()), len(records)


def efficiency(numbers: Mapping[str, float]) -> dict[str, float]:
    """Keyword arguments of ``_core.Efficiency``."""
    engine = {name: value for name, value in numbers.items() if name not in MEASUREMENT}
    return {**engine, "hop_bandwidth": numbers["allreduce_bandwidth"]}


def predict(rows: Sequence[Row], numbers: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """TPOT and TTFT of each row, in seconds, shape (rows,) each.

    n clients whose requests are at random points of their lives: a request decodes beside n - 1 others that hold, on
    average, their prompt and half their output. Each of those also has one prompt processed per life, `prompt_share` of
    them while this request decodes, and the rest while it waits for its first token. What the KV cache cannot hold
    waits outside.
    """
    constants = _core.Efficiency(**efficiency(numbers))
    share = numbers["prompt_share"]
    tpot_s, ttft_s = np.empty(len(rows)), np.empty(len(rows))
    for i, row in enumerate(rows):
        engine = _core.Replica(
            architecture=row.architecture,
            precision=row.precision,
            gpu=row.gpu,
            efficiency=constants,
            shape=_core.Shape(row.tp, 1),
            limits=LIMITS,
        )
        context = row.isl + row.osl / 2
        running = min(row.concurrency, max(1.0, engine.kv_capacity_bytes / engine.kv_bytes(context)))
        decode_s = engine.step_s(running, context, 0, 0)
        prompt_s = engine.step_s(running, context, row.isl, 0) - decode_s
        others_s = (running - 1) * prompt_s
        tpot_s[i] = decode_s + share * others_s / row.osl
        ttft_s[i] = numbers["first_token_s"] + decode_s + prompt_s + (1 - share) * others_s
    return tpot_s, ttft_s


def fit(rows: Sequence[Row], names: Sequence[str], start: Mapping[str, float]) -> dict[str, float]:
    """Robust least squares on the logarithms of the named numbers; the others keep their start."""
    measured_tpot = np.log([row.tpot_s for row in rows])
    measured_ttft = np.log([row.ttft_s for row in rows])
    unqueued = np.array([row.unqueued for row in rows])
    origin = np.log([start[name] for name in names])

    def numbers_of(point: np.ndarray) -> dict[str, float]:
        return {**start, **dict(zip(names, np.exp(point).tolist(), strict=True))}

    def residuals(point: np.ndarray) -> np.ndarray:
        tpot_s, ttft_s = predict(rows, numbers_of(point))
        tpot = (np.log(tpot_s) - measured_tpot) / LOG_ERROR_SCALE
        ttft = (np.log(ttft_s) - measured_ttft)[unqueued] * TTFT_WEIGHT / LOG_ERROR_SCALE
        return np.concatenate([tpot, ttft, PRIOR_WEIGHT * (point - origin)])

    bounds = (np.full(len(names), np.log(1e-8)), np.zeros(len(names)))  # no fraction, and no time, above 1
    found = least_squares(residuals, origin, loss="soft_l1", bounds=bounds, x_scale=0.3, diff_step=1e-3, max_nfev=60)
    return numbers_of(found.x)


def fit_all(rows: Sequence[Row]) -> dict[str, float]:
    numbers = fit([row for row in rows if not row.moe], DENSE, START)
    return fit([row for row in rows if row.moe], EXPERT, numbers)


def errors(rows: Sequence[Row], numbers: Mapping[str, float]) -> dict[str, float]:
    """Absolute relative errors; TTFT over the rows that did not queue for memory."""
    tpot_s, ttft_s = predict(rows, numbers)
    tpot = np.abs(tpot_s / [row.tpot_s for row in rows] - 1)
    unqueued = np.array([row.unqueued for row in rows])
    ttft = np.abs(ttft_s / [row.ttft_s for row in rows] - 1)[unqueued]
    return {
        "rows": len(rows),
        "tpot_median": round(float(np.median(tpot)), 4),
        "tpot_p95": round(float(np.quantile(tpot, 0.95)), 4),
        "ttft_rows": int(unqueued.sum()),
        "ttft_median": round(float(np.median(ttft)), 4),
    }


def leave_one_model_out(rows: Sequence[Row], numbers: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Errors of each architecture under numbers fitted without it; those with experts keep the fitted dense numbers."""
    found = {}
    for spec in dict.fromkeys(row.spec for row in rows):
        held = [row for row in rows if row.spec == spec]
        others = [row for row in rows if row.spec != spec and row.moe == held[0].moe]
        refit = fit(others, EXPERT, numbers) if held[0].moe else fit(others, DENSE, START)
        found[", ".join(sorted({row.model for row in held}))] = errors(held, refit)
    return dict(sorted(found.items()))


def document(path: Path, rows: Sequence[Row], read: int, numbers: Mapping[str, float]) -> dict[str, object]:
    return {
        "schema_version": 1,
        "name": "roofline h100+h200 v1",
        "status": "provisional",
        "gpus": sorted(GPUS.values()),
        "weights": sorted(set(WEIGHTS.values())),
        "efficiency": {name: float(f"{value:.4g}") for name, value in efficiency(numbers).items()},
        "measurement": {name: float(f"{numbers[name]:.4g}") for name in MEASUREMENT},
        "fitted": [*DENSE, *EXPERT],
        "provenance": {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "origin": "InferenceMAX and NVIDIA runs as published in ai-dynamo/aiconfigurator",
            "licence": "Apache-2.0",
            "command": f"python benchmarks/fit_efficiency.py {path.name} -o cascadia_fast/data/efficiency.json",
            "rows_read": read,
            "rows_used": len(rows),
        },
        "errors": {
            "dense": errors([row for row in rows if not row.moe], numbers),
            "moe": errors([row for row in rows if row.moe], numbers),
            "leave_one_model_out": leave_one_model_out(rows, numbers),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the efficiencies of the step-time model to measured latencies.")
    parser.add_argument("table", type=Path, help="CSV of measured TTFT and TPOT")
    parser.add_argument("-o", "--output", type=Path, help="where to write the JSON; printed only without it")
    arguments = parser.parse_args()
    rows, read = read_rows(arguments.table)
    text = json.dumps(document(arguments.table, rows, read, fit_all(rows)), indent=2) + "\n"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
