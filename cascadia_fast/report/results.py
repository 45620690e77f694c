"""The results of a comparison as the page reads them: what the JSON holds, and where in it something is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, cast


class Interval(TypedDict):
    """A mean over seeds and its 95 % interval; all of it may be unknown, and one seed has no interval."""

    mean: float | None
    low: float | None
    high: float | None


class System(TypedDict):
    """A system that was compared, and what is said of it."""

    name: str
    title: str
    kind: Literal["ours", "baseline", "ablation"]
    source: str
    page: str


class Case(TypedDict):
    """A problem and its traffic."""

    name: str
    file: str
    title: str
    models: list[str]
    gpus: int
    gpu: str
    scored_requests: int
    independent_requests: float
    rate_per_s: float
    cv: float | None
    dispersion: float | None
    dispersion_window_s: float | None
    objective: str
    judge: str
    reference: str
    q: list[float]
    rates: list[float]
    middle_rate: float


class Group(TypedDict):
    """All seeds of one system in one setting; `status` is the worst of them."""

    case: str
    system: str
    q_min: float
    rate_per_s: float
    seeds: int
    status: Literal["served", "unstable", "no_plan"]
    statuses: dict[str, int]
    scale95: Interval
    p95_s: Interval
    ttft_p95_s: Interval
    quality: Interval
    meets: Literal["yes", "unsure", "no"] | None
    reach: list[float] | None
    gpus_by_model: list[float] | None
    attainment: list[float] | None
    why: str | None


class Ratio(TypedDict):
    """One system against ours in one setting, seed by seed.

    Where one of the two is overloaded the ratio is a `bound` only. Terms are equal where both are served and neither
    misses the floor.
    """

    case: str
    q_min: float
    rate_per_s: float
    system: str
    bound: Literal["exact", "at_least", "at_most"] | None
    on_equal_terms: bool
    scale95_over_ours: Interval
    p95_over_ours: Interval


class Spread(TypedDict):
    """Ratios over settings."""

    geomean: float | None
    least: float | None
    largest: float | None
    count: int


class Figures(TypedDict):
    """What is compared over settings."""

    scale: Spread
    p95: Spread
    quality_gap: float | None


class Headline(TypedDict):
    """One system against ours over settings: all in which both are served; those on equal terms."""

    system: str
    where_both_serve: Figures
    where_both_meet: Figures
    assumes: str | None


class CurvePoint(TypedDict):
    """The smallest scale at one rate; None where the system is overloaded."""

    rate_per_s: float
    scale95: float | None


class RateCurve(TypedDict):
    """The smallest scale over rates."""

    case: str
    system: str
    q_min: float
    points: list[CurvePoint]


class Saving(TypedDict):
    """What the scale of a system on all GPUs costs at least: ours, and itself; None where it is not attained."""

    case: str
    q_min: float
    system: str
    status: Literal["served", "unstable", "no_plan"]
    scale95: float | None
    gpus_used_ours: float | None
    gpus_used_system: float | None
    usd_ours: float | None
    usd_system: float | None
    saving: float | None


class Setting(NamedTuple):
    """What all systems are compared in."""

    case: str
    q_min: float
    rate_per_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """The results, by name; `cells` are the single runs as they stand in the JSON."""

    made_by: dict[str, Any]
    settings: dict[str, Any]
    systems: list[System]
    cases: list[Case]
    cells: list[dict[str, Any]]
    groups: dict[tuple[Setting, str], Group]
    ratios: dict[tuple[Setting, str], Ratio]
    headline: dict[str, Headline]
    curves: dict[tuple[str, float, str], RateCurve]
    savings: dict[tuple[str, float, str], Saving]
    notes: list[str]

    @property
    def ours(self) -> System | None:
        """Our system, if it took part."""
        return next((system for system in self.systems if system["kind"] == "ours"), None)

    @property
    def scales(self) -> list[float]:
        """SLO scales at which attainment is known."""
        return cast("list[float]", self.settings["scales"])

    def of_kind(self, *kinds: str) -> list[System]:
        """Systems of some kinds, in order."""
        return [system for system in self.systems if system["kind"] in kinds]

    def all_settings(self) -> Iterator[Setting]:
        """Every case, floor and rate."""
        for case in self.cases:
            for q_min in case["q"]:
                for rate_per_s in case["rates"]:
                    yield Setting(case["name"], q_min, rate_per_s)

    def group(self, setting: Setting, system: System) -> Group | None:
        """What was found of a system in a setting."""
        return self.groups.get((setting, system["name"]))

    def ratio(self, setting: Setting, system: System) -> Interval | None:
        """The smallest scale of a system over ours in a setting, where both are served."""
        found = self.ratios.get((setting, system["name"]))
        if found is None or found["bound"] != "exact" or found["scale95_over_ours"]["mean"] is None:
            return None
        return found["scale95_over_ours"]

    def on_equal_terms(self, setting: Setting, system: System) -> bool:
        """Whether both are served in a setting, and are as good by the floor."""
        found = self.ratios.get((setting, system["name"]))
        return found is not None and found["on_equal_terms"]


def read_results(results: dict[str, Any]) -> Results:
    """Index results by what they are of."""
    curves, savings = (cast("list[Any]", results[name]) for name in ("curves", "savings"))
    return Results(
        made_by=results["made_by"],
        settings=results["settings"],
        systems=results["systems"],
        cases=results["cases"],
        cells=results["cells"],
        groups={(_setting(group), group["system"]): group for group in results["groups"]},
        ratios={(_setting(ratio), ratio["system"]): ratio for ratio in results["ratios"]},
        headline={line["system"]: line for line in results["headline"]},
        curves={(curve["case"], curve["q_min"], curve["system"]): curve for curve in curves},
        savings={(saving["case"], saving["q_min"], saving["system"]): saving for saving in savings},
        notes=results["notes"],
    )


def _setting(of: Any) -> Setting:
    return Setting(of["case"], of["q_min"], of["rate_per_s"])


def overloaded(group: Group) -> bool:
    """Whether any seed of it cannot carry the rate: its latency then grows with the length of the run."""
    return group["status"] == "unstable"


def served(group: Group | None) -> bool:
    """Whether every seed carried its rate, so that its latency is a number and not a lower bound."""
    return group is not None and group["status"] == "served" and group["scale95"]["mean"] is not None
