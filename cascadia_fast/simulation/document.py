"""A simulated run as plain numbers, texts and None, for JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from cascadia_fast.simulation.results import Comparison, StageResult

if TYPE_CHECKING:
    from cascadia_fast.simulation import Simulation
    from cascadia_fast.simulation.statistics import Estimate, Percentiles

SCHEMA_VERSION = 1
WARM_UP_RULE = (
    "warm-up: requests that arrive within one p99 latency of the first arrival, or more where MSER-5 (White 1997) on "
    "end-to-end latency in order of arrival says so, at most half; cool-down: requests that arrive less than one p99 "
    "latency before the last arrival, at most half of what is left"
)
# Where the curve of SLO attainment is written down.
SCALES = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)


def document(run: Simulation) -> dict[str, Any]:
    """Return all statistics of a run."""
    measured = run.measured
    return {
        "schema_version": SCHEMA_VERSION,
        "plan_id": run.plan.plan_id,
        "settings": dataclasses.asdict(run.settings),
        "requests": run.counts,
        "interrupted": run.interrupted,
        "simulated_s": float(run.native.ended_s),
        "measured": {
            "rule": WARM_UP_RULE,
            "requests": measured.count,
            "warm_up": measured.start,
            "cool_down": run.columns.sent - measured.stop,
            "start_s": measured.start_s,
            "end_s": measured.end_s,
        },
        "latency_s": _percentiles(run.latency),
        "ttft_s": _percentiles(run.ttft),
        "tpot_s": _percentiles(run.tpot),
        "queueing_s": _percentiles(run.queueing),
        "offered_per_s": run.offered_per_s,
        "throughput_per_s": run.throughput_per_s,
        "slo": {
            "slo_s": run.settings.slo_s,
            "within_slo": run.within_slo,
            "goodput_per_s": run.goodput_per_s(),
            "smallest_scale_95": run.smallest_slo_scale(),
            "attainment": [{"scale": scale, "share": run.attainment(scale)} for scale in SCALES],
        },
        "quality": _estimate(run.quality),
        "gear_shares": list(run.gear_shares),
        "cost_usd_per_request": run.cost_usd_per_request,
        "stages": [_stage(stage) for stage in run.stages],
        "judge": None if run.judge is None else _stage(run.judge),
        "predictions": [_comparison(comparison) for comparison in run.predictions],
        "notes": list(run.notes),
    }


def _stage(stage: StageResult) -> dict[str, Any]:
    found = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    for name in ("latency", "ttft", "tpot", "queueing"):
        found[f"{name}_s"] = _percentiles(found.pop(name))
    return {**found, "preemptions_per_visit": stage.preemptions_per_visit}


def _percentiles(found: Percentiles | None) -> dict[str, Any] | None:
    if found is None:
        return None
    quantiles = {name: _estimate(getattr(found, name)) for name in ("p50", "p90", "p95", "p99")}
    return {**quantiles, "count": found.count, "sections": found.sections}


def _estimate(found: Estimate | None) -> dict[str, float | None] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}


def _comparison(found: Comparison) -> dict[str, Any]:
    return {
        "what": found.what,
        "predicted_s": found.predicted_s,
        "simulated_s": _estimate(found.simulated),
        "error": found.error,
        "inside": found.inside,
    }
