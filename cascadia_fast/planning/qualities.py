"""What is held against the floor of quality: the mean, or what it surely is at least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.planning.confidence import few_requests, quality_bounds
from cascadia_fast.planning.solving import Found
from cascadia_fast.planning.subsets import Subset

if TYPE_CHECKING:
    from cascadia_fast.schema import Goal

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Qualities:
    """Quality of every routing of every subset.

    Parameters
    ----------
    subsets
        The cascades.
    bounds
        Per subset, shape (R,), what the quality is at least, all at once with the goal's confidence; None without one.
    """

    subsets: Sequence[Subset]
    bounds: Sequence[FloatArray] | None

    @property
    def floors(self) -> Sequence[FloatArray]:
        """Per subset, shape (R,), what is held against the floor."""
        return [subset.quality for subset in self.subsets] if self.bounds is None else self.bounds

    def lower(self, found: Found) -> float | None:
        """Return what the quality of a plan is at least, with the goal's confidence."""
        if self.bounds is None:
            return None
        return float(self.bounds[list(self.subsets).index(found.subset)][found.routing])

    def warnings(self, found: Found) -> tuple[str, ...]:
        """Return what to know about the sample behind a plan."""
        return tuple(few_requests(found.subset.requests, found.subset.grid.thresholds(found.routing)))


def qualities_of(subsets: Sequence[Subset], goal: Goal, threads: int, whole_front: bool = False) -> Qualities:
    """Return the qualities of all routings; with a confidence, their simultaneous lower bounds.

    Parameters
    ----------
    whole_front
        Whether the bounds are to hold at every quality, not only against the floor; they are a little lower then.

    Raises
    ------
    InputError
        The sample cannot support the confidence.
    """
    if goal.q_confidence is None:
        return Qualities(subsets, None)
    floor = None if whole_front else goal.q_min
    parts = [(subset.requests, subset.grid) for subset in subsets]
    return Qualities(subsets, quality_bounds(parts, goal.q_confidence, floor=floor, threads=threads))
