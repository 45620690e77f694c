"""Every system against ours: seed by seed, over everything, and what the same latency costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cascadia_fast.comparison.cells import OURS
from cascadia_fast.comparison.estimates import Mean, as_dict, log_mean_of
from cascadia_fast.comparison.groups import EQUAL_QUALITY, Group

# What is compared: names in results.json, and of the figures of a cell.
FIGURES = {"scale95_over_ours": "scale95", "p95_over_ours": "p95_s"}


@dataclass(frozen=True, eq=False)
class Against:
    """A group against ours on the same case, floor and rate; both served the same requests seed by seed."""

    theirs: Group
    ours: Group

    @property
    def bound(self) -> str | None:
        """How their latency over ours is to be read.

        ``exact``; ``at_least`` where theirs is in overload, so that it grows with the length of the run; ``at_most``
        where ours is; None where both are, or one has no plan: then it says nothing.
        """
        statuses = (self.theirs.status, self.ours.status)
        return {
            ("served", "served"): "exact",
            ("unstable", "served"): "at_least",
            ("served", "unstable"): "at_most",
        }.get(statuses)

    def ratio(self, figure: str) -> Mean | None:
        """Return the mean over seeds of their figure over ours; None where some seed has no such figure."""
        ratios = []
        for seed, row in sorted(self.theirs.rows.items()):
            pair = (row, self.ours.rows.get(seed))
            values = [None if one is None or one["measured"] is None else one["measured"][figure] for one in pair]
            if values[0] is None or values[1] is None:
                return None
            ratios.append(values[0] / values[1])
        return log_mean_of(ratios)

    @property
    def quality_gap(self) -> float | None:
        """Their mean quality less ours."""
        theirs, ours = self.theirs.quality, self.ours.quality
        return None if theirs is None or ours is None else theirs.mean - ours.mean

    @property
    def on_equal_terms(self) -> bool:
        """Whether both are served, neither misses the floor beyond the noise, and they fall equally short of it."""
        short = (self.theirs.shortfall, self.ours.shortfall)
        if self.bound != "exact" or "no" in (self.theirs.meets, self.ours.meets) or None in short:
            return False
        return abs((short[0] or 0.0) - (short[1] or 0.0)) <= EQUAL_QUALITY

    def as_dict(self) -> dict[str, Any]:
        """Return it as it stands in results.json; ratios are None where nothing can be said."""
        ratios = {name: self.ratio(figure) if self.bound else None for name, figure in FIGURES.items()}
        return {
            "case": self.theirs.case,
            "q_min": self.theirs.q_min,
            "rate_per_s": self.theirs.rate_per_s,
            "system": self.theirs.system,
            "bound": self.bound,
            "on_equal_terms": self.on_equal_terms,
            **{name: as_dict(found) for name, found in ratios.items()},
            "quality_gap": self.quality_gap,
        }


def against_ours(groups: Sequence[Group]) -> Iterator[Against]:
    """Return every other group with ours beside it."""
    ours = {(group.case, group.q_min, group.rate_per_s): group for group in groups if group.system == OURS}
    for group in groups:
        partner = ours.get((group.case, group.q_min, group.rate_per_s))
        if group.system != OURS and partner is not None:
            yield Against(group, partner)


def headline(pairs: Sequence[Against], systems: Sequence[str]) -> list[dict[str, Any]]:
    """Return, per system, latency over ours in the geometric mean over cases, floors and rates, and its range.

    `where_both_serve` takes the pairs without overloads, and `where_both_meet` those on equal terms; `quality_gap` is
    their mean quality less ours there. `served` counts who keeps up at all;
    `assumes` is what had to be assumed of the system, if anything was.
    """
    found = []
    for system in systems:
        theirs = [pair for pair in pairs if pair.theirs.system == system]
        both = [pair for pair in theirs if pair.bound == "exact"]
        equal = [pair for pair in both if pair.on_equal_terms]
        line: dict[str, Any] = {"system": system}
        line |= {"where_both_serve": _both_figures(both), "where_both_meet": _both_figures(equal)}
        line["assumes"] = next(
            (plan["assumes"] for pair in theirs for plan in pair.theirs.plans if plan["assumes"]), None
        )
        line["served"] = _served(theirs)
        found.append(line)
    return found


def _both_figures(pairs: Sequence[Against]) -> dict[str, Any]:
    gaps = [pair.quality_gap for pair in pairs if pair.quality_gap is not None]
    return {
        "scale": _overall(pairs, "scale95"),
        "p95": _overall(pairs, "p95_s"),
        "quality_gap": fmean(gaps) if gaps else None,
    }


def _served(pairs: Sequence[Against]) -> dict[str, int]:
    """How often both keep up, only one of them, or neither."""
    names = {(True, True): "both", (False, True): "only_ours", (True, False): "only_theirs", (False, False): "neither"}
    counts = dict.fromkeys(names.values(), 0)
    for pair in pairs:
        counts[names[pair.theirs.status == "served", pair.ours.status == "served"]] += 1
    return counts


def _overall(pairs: Sequence[Against], figure: str) -> dict[str, Any]:
    ratios = [ratio.mean for pair in pairs if (ratio := pair.ratio(figure)) is not None]
    return {
        "geomean": None if (found := log_mean_of(ratios)) is None else found.mean,
        "least": min(ratios, default=None),
        "largest": max(ratios, default=None),
        "count": len(ratios),
    }
