"""Cells as CSV: one line each, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from cascadia_fast.comparison.measuring import SCALES

_CELL = ("case", "system", "q_min", "rate_per_s", "gpus", "seed", "purpose", "status", "why")
_PLAN = ("plan_id", "status", "routing", "batching", "gpus", "predicted_quality", "predicted_p95_s", "seconds")
_MEASURED = (
    "quality",
    "quality_low",
    "quality_high",
    "p50_s",
    "p95_s",
    "ttft_p95_s",
    "scale95",
    "offered_per_s",
    "throughput_per_s",
    "usd_per_hour",
    "usd_per_1000",
    "judge_calls",
)


def cells_csv(results: Mapping[str, Any]) -> bytes:
    """Return cells.csv of a results.json: UTF-8, a header, empty fields where there is nothing to say.

    Stages are written as ``model: GPUs as replicas``, reach in the order of the case's models; ``within_S`` is the
    share of requests within S times their reference latency.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    header = [*_CELL, *(f"plan_{name.removeprefix('plan_')}" for name in _PLAN), "plan_stages", *_MEASURED, "reach"]
    writer.writerow([*header, *(f"within_{scale:g}" for scale in SCALES)])
    for cell in results["cells"]:
        writer.writerow(_line(cell))
    return text.getvalue().encode()


def _line(cell: Mapping[str, Any]) -> list[Any]:
    plan, measured = cell["plan"] or {}, cell["measured"] or {}
    stages = "; ".join(f"{stage['model']}: {stage['gpus']} as {stage['replicas']}" for stage in plan.get("stages", []))
    return [
        *(cell[name] for name in _CELL),
        *(plan.get(name) for name in _PLAN),
        stages,
        *(measured.get(name) for name in _MEASURED),
        " / ".join(f"{share:g}" for share in measured.get("reach", [])),
        *measured.get("attainment", [None] * len(SCALES)),
    ]
