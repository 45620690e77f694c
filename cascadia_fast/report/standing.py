"""In how many settings one system or ours is better, and where each fails."""

from __future__ import annotations

from dataclasses import dataclass, field

from cascadia_fast.report.results import Group, Interval, Results, Setting, System, served
from cascadia_fast.report.words import EQUAL


@dataclass(slots=True)
class Standing:
    """How one system and ours came out, over all settings.

    Parameters
    ----------
    settings : number of settings.
    won, lost : ratios, system over ours, of the settings in which ours is better and worse on equal terms.
    tied : settings in which they are equal on equal terms.
    faster_below : settings in which the system is faster, but misses the floor that ours does not.
    only_ours, only_theirs : settings that only one of them serves.
    none : settings in which the system has no plan.
    missed, unsure : settings in which the system misses the floor, and in which it is below it within the noise.
    """

    settings: int = 0
    won: list[tuple[Setting, Interval]] = field(default_factory=list)
    lost: list[tuple[Setting, Interval]] = field(default_factory=list)
    tied: int = 0
    faster_below: int = 0
    only_ours: int = 0
    only_theirs: int = 0
    none: int = 0
    missed: int = 0
    unsure: int = 0

    @property
    def compared(self) -> int:
        """Settings on equal terms."""
        return len(self.won) + len(self.lost) + self.tied

    @property
    def worst(self) -> tuple[Setting, float]:
        """Where ours loses most, and the ratio there."""
        return min(((setting, ratio["mean"] or 1.0) for setting, ratio in self.lost), key=lambda one: one[1])


def standing(results: Results, system: System, ours: System) -> Standing:
    """Count the settings."""
    found = Standing()
    for setting in results.all_settings():
        theirs, mine = results.group(setting, system), results.group(setting, ours)
        found.settings += 1
        found.none += theirs is None or theirs["status"] == "no_plan"
        found.missed += misses(theirs)
        found.unsure += theirs is not None and theirs["meets"] == "unsure"
        found.only_ours += served(mine) and not served(theirs)
        found.only_theirs += served(theirs) and not served(mine)
        ratio = results.ratio(setting, system)
        if ratio is None or ratio["mean"] is None:
            continue
        if not results.on_equal_terms(setting, system):
            found.faster_below += ratio["mean"] < 1 - EQUAL and misses(theirs) and not misses(mine)
        elif abs(ratio["mean"] - 1) <= EQUAL:
            found.tied += 1
        else:
            (found.won if ratio["mean"] > 1 else found.lost).append((setting, ratio))
    return found


def misses(group: Group | None) -> bool:
    """Whether its answers are worse than the floor allows, beyond the noise."""
    return group is not None and group["meets"] == "no"
