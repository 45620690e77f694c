"""What a comparison says where the paper has a figure: latency and traffic against others, cost, allocations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Factor:
    """Ratios of two systems where both keep up and neither misses the floor, and how often that was not so.

    Attributes
    ----------
    ratios
        On equal terms.
    places
        How many there are in all.
    theirs_overloaded, ours_overloaded, both_overloaded, missed
        What became of the others.
    beyond
        So many of the ratios are bounds: the ramp of rates ends before the truth.
    as_measured
        All ratios that these runs came to, with latencies that grow with the run and floors that are missed.
    """

    ratios: tuple[float, ...]
    places: int
    theirs_overloaded: int = 0
    ours_overloaded: int = 0
    both_overloaded: int = 0
    missed: int = 0
    beyond: int = 0
    as_measured: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """In the geometric mean."""
        return geometric_mean(self.ratios) if self.ratios else None

    def __str__(self) -> str:
        counts = {
            "floor missed": self.missed,
            "they in overload": self.theirs_overloaded,
            "ours in overload": self.ours_overloaded,
            "both in overload": self.both_overloaded,
            "beyond the rates tried": self.beyond,
        }
        told = ", ".join(
            [f"{len(self.ratios)} of {self.places} on equal terms", *(f"{text} {n}" for text, n in counts.items() if n)]
        )
        if len(self.as_measured) > len(self.ratios):
            told += f"; avg {geometric_mean(self.as_measured):.2f}× with overloads and misses as they came"
        if not self.ratios:
            return f"– ({told})"
        return f"up to {max(self.ratios):.2f}×, avg {geometric_mean(self.ratios):.2f}× ({told})"


@dataclass(frozen=True)
class Carried:
    """The largest rate under a deadline; `bound` where the ramp of rates ends before the truth: least or most."""

    rate_per_s: float
    bound: str = ""


def scale_factor(ratios: Sequence[Mapping[str, Any]], system: str) -> Factor:
    """Return the smallest SLO scale of a system over ours, from the `ratios` of a comparison."""
    pairs = [pair for pair in ratios if pair["system"] == system]
    known = [pair for pair in pairs if pair["scale95_over_ours"]["mean"] is not None]
    bounds = [pair["bound"] for pair in pairs]
    return Factor(
        ratios=tuple(pair["scale95_over_ours"]["mean"] for pair in known if pair["on_equal_terms"]),
        places=len(pairs),
        theirs_overloaded=bounds.count("at_least"),
        ours_overloaded=bounds.count("at_most"),
        both_overloaded=bounds.count(None),
        missed=sum(pair["bound"] == "exact" and not pair["on_equal_terms"] for pair in pairs),
        as_measured=tuple(pair["scale95_over_ours"]["mean"] for pair in known),
    )


def scale_factors_by_rate(results: Results, system: str) -> dict[float, Factor]:
    """Return the same at each rate, by its multiple of the case's middle rate."""
    middle = {one["name"]: one["middle_rate"] for one in results["cases"]}
    found: dict[float, list[Mapping[str, Any]]] = {}
    for pair in results["ratios"]:
        found.setdefault(round(pair["rate_per_s"] / middle[pair["case"]], 6), []).append(pair)
    return {factor: scale_factor(found[factor], system) for factor in sorted(found)}


def carried(points: Sequence[Mapping[str, Any]], deadline: float) -> Carried:
    """Return the largest rate of a ramp up to which the scale stays within a deadline, interpolated between rates."""
    below = None
    for point in points:
        scale = point["scale95"]
        if scale is None or scale > deadline:
            if below is None:
                return Carried(point["rate_per_s"], "most")
            reached = scale if scale is not None else point["at_least"]
            return Carried(_crossing(below, point["rate_per_s"], reached, deadline))
        below = point
    return Carried(points[-1]["rate_per_s"], "least")


def _crossing(below: Mapping[str, Any], rate_per_s: float, scale: float | None, deadline: float) -> float:
    """Where the straight line on doubly logarithmic paper crosses the deadline; in overload, the rate before it."""
    if scale is None or scale <= deadline or below["scale95"] >= deadline:
        return float(below["rate_per_s"])
    share = math.log(deadline / below["scale95"]) / math.log(scale / below["scale95"])
    return float(below["rate_per_s"] * (rate_per_s / below["rate_per_s"]) ** share)


def saving_text(results: Results, system: str) -> str:
    """Return the range of what ours saves at a system's scale, and where it attains that scale at all."""
    lines = [line for line in results["savings"] if line["system"] == system]
    known = sorted(line["saving"] for line in lines if line["saving"] is not None)
    if not known:
        return f"nowhere attained (of {len(lines)})"
    mean = fmean(known)
    return f"{_percent(-known[0])} to {_percent(-known[-1])}, avg {_percent(-mean)} ({len(known)} of {len(lines)} told)"


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %".replace("-", "−")


def group_at(results: Results, case: str, system: str, q_min: float) -> Mapping[str, Any]:
    """Return the group of a system at a floor and the case's middle rate."""
    rate_per_s = next(one["middle_rate"] for one in results["cases"] if one["name"] == case)
    return next(
        group
        for group in results["groups"]
        if (group["case"], group["system"], group["q_min"], group["rate_per_s"]) == (case, system, q_min, rate_per_s)
    )


def scale_text(group: Mapping[str, Any]) -> str:
    """Return the smallest SLO scale of a group, with what must be said of it."""
    scale = group["scale95"]["mean"]
    if group["status"] == "no_plan" or scale is None:
        return "no plan" if group["status"] == "no_plan" else "too few served"
    misses = ", misses the floor" if group["meets"] == "no" else ""
    return f"> {scale:.3g} (overload{misses})" if group["lower_bound"] else f"{scale:.3g}{misses}"


def allocation_text(group: Mapping[str, Any]) -> str:
    """Return reach and GPUs by model of a group, means over its seeds."""
    if group["reach"] is None:
        return "no plan"
    reach = "/".join(f"{100 * share:.0f}" for share in group["reach"])
    gpus = "/".join(f"{count:.3g}" for count in group["gpus_by_model"])
    return f"reach {reach} %, GPUs {gpus}"


def quality_text(results: Results, system: str) -> str:
    """Return how often a system reaches the floor on requests that did not choose the plan."""
    meets = [group["meets"] for group in results["groups"] if group["system"] == system]
    counts = {answer: meets.count(answer) for answer in ("yes", "unsure", "no")}
    return (
        f"reaches the floor in {counts['yes']} of {len(meets)} cases, below it by less than the error in "
        f"{counts['unsure']}, misses it in {counts['no']}"
    )


def single_text(results: Results, system: str = "single") -> str:
    """Return which models the single-model system is, over floors and seeds: its plan depends on both."""
    plans = [
        cell["plan"]
        for cell in results["cells"]
        if cell["system"] == system and cell["purpose"] == "main" and cell["plan"] is not None
    ]
    names = [plan["stages"][0]["model"] for plan in plans]
    return ", ".join(
        f"{name} in {100 * names.count(name) / len(names):.0f} % of the trials" for name in dict.fromkeys(names)
    )
