"""Made-up results of comparisons in the form that the report reads; latencies follow a queue's, nothing is measured."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Any

SYSTEMS = (
    ("ours", "Cascadia-fast", "ours", 1.0, 3.0),
    ("single", "Single model", "baseline", 2.8, 6.0),
    ("sarathi", "Sarathi-Serve", "baseline", 1.9, 6.0),
    ("cascadeserve", "CascadeServe", "baseline", 1.7, 1.0),
    ("cascadeserve-tuned", "CascadeServe, TP tuned", "baseline", 1.4, 1.0),
    ("routellm", "RouteLLM, uniform deployment", "baseline", 1.6, 0.4),
    ("routellm-ours", "RouteLLM, our allocation", "baseline", 0.97, -0.3),
    ("frugalgpt", "FrugalGPT", "baseline", 1.5, 0.5),
    ("automix", "AutoMix", "baseline", 2.1, -2.0),
    ("uniform-parallelism", "Uniform parallelism", "ablation", 1.4, 3.0),
    ("uniform-allocation", "Uniform allocation", "ablation", 1.7, 2.0),
    ("common-threshold", "One common threshold", "ablation", 1.1, 0.6),
    ("no-skipping", "No stage skipping", "ablation", 1.2, 2.0),
    ("alternating", "Alternating search", "ablation", 1.0, 3.0),
)
MODELS = ("deepseek-r1-distill-qwen-7b", "deepseek-r1-distill-llama-70b", "deepseek-r1")
PAGE = """What the paper's system does, arXiv 2406.14424, section 4.

It measures the rate every window
and switches to the gear of that rate:

* gears are found by sub-problems, with
  backtracking;
* `TP` is the smallest that fits.

Open choices favour it.
"""
FIGURES = ("scale95", "p95_s", "ttft_p95_s", "usd_per_1000")
SCALES = [round(0.25 * 2 ** (8 * k / 39), 6) for k in range(40)]


def results(
    systems: Sequence[tuple[str, str, str, float, float]] = SYSTEMS,
    cases: Sequence[str] = ("deepseek_trace1", "deepseek_trace2", "deepseek_trace3"),
    models: Sequence[str] = MODELS,
    floors: Sequence[float] = (70, 76, 80, 84),
    rates: Sequence[float] = (0.5, 1.0, 1.5),
    seeds: int = 5,
    priced: bool = True,
    gpus: int = 32,
) -> dict[str, Any]:
    """A whole comparison; the same arguments give the same results."""
    chance = random.Random(7)
    cells, groups, ratios, curves, savings = [], [], [], [], []
    middle = rates[len(rates) // 2]
    for (place, case), floor in product(enumerate(cases), floors):
        for rate in rates:
            of_setting = []
            for name, _, _, times, margin in systems:
                runs = [
                    _cell(
                        chance, case, name, floor, rate, seed, times * (1 + 0.15 * place), margin, models, priced, gpus
                    )
                    for seed in range(seeds)
                ]
                cells += runs
                of_setting.append(_group(runs, models))
            groups += of_setting
            ratios += _ratios(of_setting)
        for name, _, _, times, margin in systems:
            ramp = [rate * middle for rate in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)]
            runs = [
                _cell(chance, case, name, floor, rate, 0, times * (1 + 0.15 * place), margin, models, priced, gpus)
                for rate in ramp
            ]
            cells += [run | {"purpose": "ramp"} for run in runs]
            points = [
                {
                    "rate_per_s": run["rate_per_s"],
                    "scale95": run["measured"]["scale95"] if run["status"] == "served" else None,
                }
                for run in runs
                if run["measured"]
            ]
            curves.append({"case": case, "system": name, "q_min": floor, "points": points})
            if name != "ours":
                found = next(group for group in groups if _same(group, case, floor, middle, name))
                savings.append(_saving(found, gpus, times, priced))
    return {
        "schema_version": 1,
        "made_by": {
            "version": "0.1.0",
            "command": f"cascadia-fast compare {' '.join(f'{case}.yaml' for case in cases)} --seeds {seeds} --out out",
            "date": "2026-11-22T08:00:00+00:00",
            "seconds": 171.3,
            "cores": 2,
            "cell_seconds": 300.5,
            "resumed": 0,
        },
        "systems": [
            {
                "name": name,
                "title": title,
                "kind": kind,
                "source": "arXiv 2406.14424",
                "page": PAGE if kind == "ablation" else f"{title}.\n\n{PAGE}",
            }
            for name, title, kind, _, _ in systems
        ],
        "cases": [
            {
                "name": case,
                "file": f"{case}.yaml",
                "title": f"Conversation trace of {case}",
                "models": list(models),
                "gpus": gpus,
                "gpu": "h100-sxm-80gb",
                "scored_requests": 51,
                "independent_requests": 50.4,
                "rate_per_s": middle,
                "cv": 1.09,
                "dispersion": 16.2,
                "dispersion_window_s": 60.0,
                "objective": "max_stage_p95",
                "judge": "external, 0.27 s",
                "reference": f"the request alone on {models[-1]}, tp 8",
                "q": list(floors),
                "rates": list(rates),
                "middle_rate": middle,
            }
            for case in cases
        ],
        "settings": {
            "seeds": list(range(seeds)),
            "requests": 20000,
            "scales": SCALES,
            "intervals": "By Student's t.",
            "method": ["Halves are alike."],
        },
        "notes": ["3 of 9 trials are short."],
        "cells": cells,
        "groups": groups,
        "ratios": ratios,
        "headline": [_headline(name, ratios) for name, _, _, _, _ in systems if name != "ours"],
        "curves": curves,
        "savings": savings,
    }


def _cell(
    chance: random.Random, case: str, name: str, floor: float, rate: float, seed: int, times: float, margin: float,
    models: Sequence[str], priced: bool, gpus: int,
) -> dict[str, Any]:  # fmt: skip
    cell: dict[str, Any] = {
        "key": f"{chance.getrandbits(64):016x}", "purpose": "main", "case": case, "system": name, "q_min": floor,
        "rate_per_s": rate, "gpus": gpus, "seed": seed, "status": "served", "why": "", "plan": None, "measured": None,
    }  # fmt: skip
    if name == "no-skipping" and floor > 82:
        return cell | {"status": "no_plan", "why": "deepseek-r1 needs 8 GPUs of 80 GB; give --gpus 40 or more"}
    load = rate * times * (0.5 + (floor - 60) / 50) / 3.2
    scale = 1.2 * times * (0.4 + (floor - 60) / 25) / max(0.04, 1 - load) * math.exp(chance.gauss(0, 0.06))
    if load >= 1:
        cell["status"] = "unstable"
    reach = [1.0] + [min(1.0, max(0.0, (floor - 66) / 20 - 0.25 * k)) for k in range(len(models) - 1)]
    if name in ("single", "sarathi"):
        reach = [0.0] * (len(models) - 1) + [1.0]
    weights = [share * 1.6**k for k, share in enumerate(reach)]
    counts = [math.floor(gpus * weight / sum(weights)) for weight in weights]
    quality = floor + margin + chance.gauss(0, 0.5)
    cell["plan"] = {
        "plan_id": cell["key"], "seconds": 0.02, "status": "unstable" if load >= 1 else "optimal",
        "routing": f"accept at {floor - 3:g} / {floor:g}", "batching": "chunked", "predicted_quality": quality + 0.2,
        "predicted_p95_s": None if load >= 1 else 9 * scale,
        "stages": [
            {"model": model, "gpus": count, "replicas": f"1 × tp{count}", "planned_reach": share}
            for model, count, share in zip(models, counts, reach, strict=True)
            if count
        ],
    }  # fmt: skip
    most = min(1.0, 1 / load)
    cell["measured"] = {
        "quality": quality, "quality_low": quality - 0.6, "quality_high": quality + 0.6, "p50_s": 4 * scale,
        "p95_s": 11 * scale, "ttft_p95_s": 3 * scale, "scale95": scale,
        "attainment": [most / (1 + math.exp(-3.2 * (math.log(at / scale) + 0.92))) for at in SCALES],
        "offered_per_s": rate, "throughput_per_s": rate * most, "reach": reach,
        "usd_per_hour": 2.5 * gpus if priced else None, "usd_per_1000": 2.5 * gpus / rate / 3.6 if priced else None,
        "judge_calls": 12345,
    }  # fmt: skip
    return cell


def _interval(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "low": None, "high": None}
    mean = fmean(known)
    if len(known) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = 2.78 * stdev(known) / math.sqrt(len(known))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _group(runs: Sequence[dict[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    measured = [run["measured"] for run in runs if run["measured"]]
    statuses: dict[str, int] = {}
    for run in runs:
        statuses[run["status"]] = statuses.get(run["status"], 0) + 1
    quality = _interval([one["quality"] for one in measured])
    floor = runs[0]["q_min"]
    if quality["mean"] is None:
        meets = None
    elif quality["mean"] >= floor:
        meets = "yes"
    else:
        meets = "unsure" if quality["high"] is not None and quality["high"] >= floor else "no"
    stages = [run["plan"]["stages"] for run in runs if run["plan"]]
    counts = (
        [fmean(sum(s["gpus"] for s in of if s["model"] == model) for of in stages) for model in models]
        if stages
        else None
    )
    return {
        **{name: runs[0][name] for name in ("case", "system", "q_min", "rate_per_s")},
        "seeds": len(runs), "statuses": statuses, "gpus": runs[0]["gpus"],
        "status": next(one for one in ("no_plan", "unstable", "served") if one in statuses),
        "why": next((run["why"] for run in runs if run["why"]), None), "quality": quality, "meets": meets,
        **{key: _interval([one[key] for one in measured]) for key in FIGURES},
        "reach": [fmean(column) for column in zip(*(one["reach"] for one in measured), strict=True)] or None,
        "gpus_by_model": counts,
        "attainment": [fmean(column) for column in zip(*(one["attainment"] for one in measured), strict=True)] or None,
    }  # fmt: skip


def _same(group: dict[str, Any], case: str, floor: float, rate: float, system: str) -> bool:
    return (group["case"], group["q_min"], group["rate_per_s"], group["system"]) == (case, floor, rate, system)


def _ratios(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ours = next((group for group in groups if group["system"] == "ours"), None)
    if ours is None:
        return []
    return [_ratio(group, ours) for group in groups if group is not ours]


def _ratio(group: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    ratio: dict[str, Any] = {name: group[name] for name in ("case", "q_min", "rate_per_s", "system")}
    bounds = {("served", "served"): "exact", ("unstable", "served"): "at_least", ("served", "unstable"): "at_most"}
    ratio["bound"] = bounds.get((group["status"], ours["status"]))
    ratio["on_equal_terms"] = ratio["bound"] == "exact" and "no" not in (group["meets"], ours["meets"])
    for name in ("scale95", "p95_s"):
        mean = group[name]["mean"] / ours[name]["mean"] if ratio["bound"] else None
        several = mean is not None and group["seeds"] > 1
        ratio[f"{name.removesuffix('_s')}_over_ours"] = {
            "mean": mean, "low": mean * 0.93 if mean and several else None,
            "high": mean * 1.07 if mean and several else None,
        }  # fmt: skip
    known = group["quality"]["mean"] is not None and ours["quality"]["mean"] is not None
    return ratio | {"quality_gap": group["quality"]["mean"] - ours["quality"]["mean"] if known else None}


def _headline(name: str, ratios: Sequence[dict[str, Any]]) -> dict[str, Any]:
    serve = [ratio for ratio in ratios if ratio["system"] == name and ratio["bound"] == "exact"]
    return {
        "system": name,
        "where_both_serve": _figures(serve),
        "where_both_meet": _figures([ratio for ratio in serve if ratio["on_equal_terms"]]),
        "assumes": "its router is right with probability 0.65 (AUC)" if name.startswith("routellm") else None,
    }


def _figures(ratios: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gaps = [ratio["quality_gap"] for ratio in ratios if ratio["quality_gap"] is not None]
    figures = {
        said: _spread(ratios, f"{figure}_over_ours") for said, figure in {"scale": "scale95", "p95": "p95"}.items()
    }
    return {**figures, "quality_gap": fmean(gaps) if gaps else None}


def _spread(ratios: Sequence[dict[str, Any]], figure: str) -> dict[str, Any]:
    values = [ratio[figure]["mean"] for ratio in ratios]
    if not values:
        return {"geomean": None, "least": None, "largest": None, "count": 0}
    mean = math.exp(fmean(map(math.log, values)))
    return {"geomean": mean, "least": min(values), "largest": max(values), "count": len(values)}


def _saving(group: dict[str, Any], gpus: int, times: float, priced: bool) -> dict[str, Any]:
    scale = group["scale95"]["mean"] if group["status"] == "served" else None
    count = math.ceil(gpus / times**0.5 - (group["q_min"] - 70) / 2) if scale is not None and times >= 1 else None
    return {
        "case": group["case"], "q_min": group["q_min"], "system": group["system"], "status": group["status"],
        "rate_per_s": group["rate_per_s"], "scale95": scale, "gpus_ours": count, "gpus_used_ours": count,
        "gpus_system": gpus, "gpus_used_system": gpus,
        "usd_ours": 2.5 * count if priced and count else None, "usd_system": 2.5 * gpus if priced else None,
        "saving": 1 - count / gpus if count else None,
    }  # fmt: skip
