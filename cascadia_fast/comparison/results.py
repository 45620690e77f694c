"""A comparison's results.json: what was tried, cell by cell, and what it says together. No NaN and no infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cascadia_fast.comparison.cells import OURS, Cell, Purpose
from cascadia_fast.comparison.costs import savings
from cascadia_fast.comparison.groups import Group, Trial, groups_of
from cascadia_fast.comparison.measuring import SCALES, WINDOW
from cascadia_fast.comparison.ratios import against_ours, headline
from cascadia_fast.comparison.setup import OBJECTIVE, CaseSetup, Setup, left_out, ours_alone
from cascadia_fast.comparison.splitting import DRAWS
from cascadia_fast.comparison.trial import Row
from cascadia_fast.simulation.run import SLO_SHARE
from cascadia_fast.simulation.traffic import MAX_REQUESTS
from cascadia_fast.summary_units import digits

if TYPE_CHECKING:
    from cascadia_fast.problem import Judge

SCHEMA_VERSION = 1
REFERENCE = (
    "An SLO scale of 1 is the request's own latency, alone, on the largest model's fastest engine that the cluster "
    "holds. It is the same for every system."
)
METHOD = (
    "Each seed splits the scored requests in two halves that share no request: a system sees one half when it plans, "
    "and its plan serves requests drawn from the other. Halves are made of matched pairs, and of up to "
    f"{DRAWS:,} ways to part the pairs the one is taken whose halves agree best in weight and lengths; neither scores "
    "nor quality are looked at (rerandomisation, Morgan & Rubin 2012).",
    "How arrivals vary is known when planning; each seed begins the trace at another of its arrivals. All systems "
    "serve the same requests at the same times.",
    f"Measured are the requests from {WINDOW[0]:.0%} to {WINDOW[1]:.0%} of a run, in order of arrival, of every "
    "system the same. A run in which more comes than a model can finish is an overload: its latencies are lower "
    "bounds.",
    "Plans are made for what is measured, latency on equal GPUs: ours and what is planned like it make the p95 of "
    "whole paths least, whatever the file's objective is, and within no deadline or budget of the file.",
    "Two figures stand for latency. p95 is one deadline for all requests, and what ours makes least; the smallest SLO "
    "scale counts the latency of every request by its own on an idle system, so that a short request may wait less.",
    "Quality is that of the test half as it was routed, by quality and never by the routing score.",
)
INTERVALS = (
    "95 % intervals are by Student's t over seeds, of latencies and their ratios to ours (seed by seed) on their "
    "logarithms: they tell how much the split, the draws and the start of the trace matter, and nothing of other "
    "traffic. That of quality is no narrower than what the requests behind the test halves can tell."
)


def results_of(
    setup: Setup,
    cells: Mapping[Cell, Purpose],
    keys: Mapping[Cell, str],
    rows: Mapping[str, Row],
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """Return results.json as plain values.

    Parameters
    ----------
    setup
        What was compared.
    cells, keys
        Every cell with what it is for, and the key of its row.
    rows
        What was found, by key.
    made_by
        Version, command, date, seconds and cores.
    """
    trials: list[Trial] = [(cell, rows[keys[cell]]) for cell in cells]
    main, fewer = (groups_of(trial for trial in trials if cells[trial[0]] == purpose) for purpose in ("main", "cost"))
    pairs = list(against_ours(main))
    models = {case.name: [stage.name for stage in case.problem.stages] for case in setup.cases}
    others = [system.name for system in setup.systems if system.name != OURS]
    return {
        "schema_version": SCHEMA_VERSION,
        "made_by": dict(made_by),
        "systems": [
            {name: getattr(system, name) for name in ("name", "title", "kind", "source", "page")}
            for system in setup.systems
        ],
        "cases": [_case(case) for case in setup.cases],
        "settings": {
            "seeds": list(setup.seeds),
            "requests": setup.requests,
            "scales": list(SCALES),
            "share": SLO_SHARE,
            "measured": list(WINDOW),
            "method": list(METHOD),
            "intervals": INTERVALS,
        },
        "cells": [_cell(cell, cells[cell], keys[cell], row) for cell, row in trials],
        "groups": [group.as_dict(models[group.case]) for group in main],
        "ratios": [pair.as_dict() for pair in pairs],
        "headline": headline(pairs, others),
        "curves": _curves(setup, trials),
        "savings": savings(setup, main, fewer),
        "notes": list(_notes(setup, trials)),
    }


def _case(case: CaseSetup) -> dict[str, Any]:
    problem, arrivals = case.problem, case.problem.workload.arrivals
    longest_s = max(arrivals.dispersion, default=0)
    return {
        "name": case.name,
        "file": case.file,
        "title": _title(case),
        "models": [stage.name for stage in problem.stages],
        "gpus": case.gpus,
        "gpu": " + ".join(dict.fromkeys(pool.spec.name for pool in problem.pools)),
        "scored_requests": problem.workload.requests.size,
        "independent_requests": problem.workload.requests.effective_size,
        "rate_per_s": arrivals.rate_per_s,
        "cv": arrivals.cv,
        "dispersion": arrivals.dispersion.get(longest_s),
        "dispersion_window_s": longest_s or None,
        "objective": OBJECTIVE,
        "judge": _judge(problem.judge),
        "reference": REFERENCE,
        "q": list(case.floors),
        "rates": list(case.rates_per_s),
        "middle_rate": case.middle_rate_per_s,
    }


def _judge(judge: Judge) -> str:
    price = f", {digits(judge.usd_per_call)} USD per call" if judge.usd_per_call else ""
    return f"{judge.description}{price}"


def _title(case: CaseSetup) -> str:
    models = " → ".join(stage.name for stage in case.problem.stages)
    gpus = " + ".join(f"{pool.gpus:,} × {pool.spec.name}" for pool in case.problem.pools)
    return f"{models} on {gpus}"


def _cell(cell: Cell, purpose: Purpose, key: str, row: Row) -> dict[str, Any]:
    return {
        "key": key,
        "purpose": purpose,
        "case": cell.case,
        "system": cell.system,
        "q_min": cell.q_min,
        "rate_per_s": cell.rate_per_s,
        "gpus": cell.gpus,
        "seed": cell.seed,
        **row,
    }


def _notes(setup: Setup, trials: Sequence[Trial]) -> Iterator[str]:
    """What the results cannot claim."""
    for case in setup.cases:
        fields = left_out(case.problem.goal)
        if fields:
            yield (
                f"Left out of the goal of {case.name}: {', '.join(fields)}; other systems know nothing of the kind, "
                "and all are compared by latency on equal GPUs"
            )
        alone = ours_alone(case.problem)
        if alone:
            yield (
                f"Kept on {case.name}, and binding ours and what is planned like it alone: {', '.join(alone)}; drop "
                "them for equal terms"
            )
    served = [row["measured"] for _, row in trials if row["status"] == "served"]
    short = [measured for measured in served if measured["short"]]
    if short:
        enough = max((_enough(measured) for measured in short), default=0)
        advice = f"--requests {enough:,} would do" if enough <= MAX_REQUESTS else "give more --requests"
        yield (
            f"{len(short):,} of {len(served):,} trials that keep up are short for how long their requests take, so "
            f"that their latencies come out too small; {advice}"
        )


def _enough(measured: Mapping[str, Any]) -> int:
    """Requests with which a warm-up lasts as long as 95 % of the requests take, to two digits; none tells it for all
    that too few are served of."""
    if measured["p95_s"] is None or measured["offered_per_s"] is None:
        return MAX_REQUESTS + 1
    requests = float(measured["p95_s"] * measured["offered_per_s"] / WINDOW[0])
    size = int(10 ** max(math.floor(math.log10(requests)) - 1, 0))
    return math.ceil(requests / size) * size


def _curves(setup: Setup, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Per case, floor and system, the smallest scale at every rate that the first seed was tried at.

    In overload there is none: `at_least` is what it came to in this run, and grows with its length.
    """
    gpus = {case.name: case.gpus for case in setup.cases}
    first = [trial for trial in trials if trial[0].seed == setup.seeds[0] and trial[0].gpus == gpus[trial[0].case]]
    curves: dict[tuple[str, str, float], list[Group]] = {}
    for group in groups_of(first):
        curves.setdefault((group.case, group.system, group.q_min), []).append(group)
    return [
        {
            "case": case,
            "system": system,
            "q_min": q_min,
            "points": [_point(group) for group in sorted(groups, key=lambda group: group.rate_per_s)],
        }
        for (case, system, q_min), groups in curves.items()
    ]


def _point(group: Group) -> dict[str, Any]:
    found = group.figure("scale95")
    scale = None if found is None else found.mean
    return {
        "rate_per_s": group.rate_per_s,
        "status": group.status,
        "scale95": scale if group.status == "served" else None,
        "at_least": scale if group.status == "unstable" else None,
        "throughput_per_s": next((row["throughput_per_s"] for row in group.measured), None),
    }
