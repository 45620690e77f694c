"""What the same latency costs: the fewest GPUs on which ours and another system attain the scale of the latter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cascadia_fast.comparison.cells import OURS
from cascadia_fast.comparison.estimates import mean_of
from cascadia_fast.comparison.groups import EQUAL_QUALITY, Group
from cascadia_fast.comparison.setup import CaseSetup, Setup
from cascadia_fast.report.words import EQUAL


def savings(setup: Setup, groups: Sequence[Group], fewer: Sequence[Group]) -> list[dict[str, Any]]:
    """Return, per case, floor and system, the least cost of its scale on all GPUs at the middle rate: ours and its own.

    Parameters
    ----------
    setup
        What is compared.
    groups
        Trials on all GPUs; they are taken over the seeds that fewer GPUs were tried with.
    fewer
        Trials on fewer GPUs.

    Returns
    -------
    list
        `saving` is None where ours attains the scale on no number of GPUs that was tried, where the other system is in
        overload on all of them (any latency is shorter than one that grows), or has no plan.
    """
    found = []
    for case in setup.cases:
        for q_min in case.floors:
            ours = _ladder(case, OURS, q_min, groups, fewer)
            for system in setup.systems:
                theirs = _ladder(case, system.name, q_min, groups, fewer)
                if system.name != OURS and len(theirs) > 1 and ours:
                    found.append(_saving(theirs, ours))
    return found


def _ladder(case: CaseSetup, system: str, q_min: float, groups: Sequence[Group], fewer: Sequence[Group]) -> list[Group]:
    """A system at the middle rate, the fewest GPUs first, all of the same seeds."""
    here = (case.name, system, q_min, case.middle_rate_per_s)
    own = [group for group in (*groups, *fewer) if (group.case, group.system, group.q_min, group.rate_per_s) == here]
    seeds = set.intersection(*(set(group.rows) for group in own)) if own else set()
    return [_of_seeds(group, seeds) for group in sorted(own, key=lambda group: group.gpus)]


def _of_seeds(group: Group, seeds: set[int]) -> Group:
    rows = {seed: row for seed, row in group.rows.items() if seed in seeds}
    return Group(group.case, group.system, group.q_min, group.rate_per_s, group.gpus, rows)


def _saving(theirs: Sequence[Group], ours: Sequence[Group]) -> dict[str, Any]:
    target = theirs[-1]
    scale = target.figure("scale95") if target.status == "served" else None
    attained, own = (
        None if scale is None else next((group for group in ladder if _attains(group, target, scale.mean)), None)
        for ladder in (ours, theirs)
    )
    usd_ours, usd_theirs = (None if group is None else _mean(group, "usd_per_hour") for group in (attained, own))
    gpus_ours, gpus_theirs = (None if group is None else _gpus_used(group) for group in (attained, own))
    # Where prices are not known, GPUs stand for them.
    priced = usd_ours is not None and bool(usd_theirs)
    cost_ours, cost_theirs = (usd_ours, usd_theirs) if priced else (gpus_ours, gpus_theirs)
    saving = 1 - cost_ours / cost_theirs if cost_ours is not None and cost_theirs else None
    return {
        "case": target.case,
        "q_min": target.q_min,
        "rate_per_s": target.rate_per_s,
        "system": target.system,
        "status": target.status,
        "scale95": None if scale is None else scale.mean,
        "gpus_ours": None if attained is None else attained.gpus,
        "gpus_system": None if own is None else own.gpus,
        "gpus_used_ours": gpus_ours,
        "gpus_used_system": gpus_theirs,
        "usd_ours": usd_ours,
        "usd_system": usd_theirs,
        "saving": saving,
    }


def _attains(group: Group, target: Group, scale: float) -> bool:
    """Whether a system is as fast as the target, within what counts as equal, and no worse at the floor.

    Qualities are compared as they are, seed for seed on the same test halves; intervals of two seeds would exclude
    nothing.
    """
    found = group.figure("scale95") if group.status == "served" else None
    if found is None or found.mean > scale * (1 + EQUAL):
        return False
    quality, wanted = group.quality, target.quality
    if quality is None or wanted is None:
        return False
    return quality.mean >= min(target.q_min, wanted.mean) - EQUAL_QUALITY


def _mean(group: Group, name: str) -> float | None:
    found = group.figure(name, mean_of)
    return None if found is None else found.mean


def _gpus_used(group: Group) -> float | None:
    found = mean_of([plan["gpus"] for plan in group.plans])
    return None if found is None else found.mean
