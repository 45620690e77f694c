"""AutoMix's router: what to do after each verdict of the small model on its own answer (arXiv 2310.12963).

The paper poses it as a POMDP whose observation is the verification and whose reward is performance less λ times cost.
With one verification per request it has one step, so its optimal policy is greedy: per verdict, the action of the
largest expected reward. As λ falls, verdicts move up one after another along the upper hull of their actions, in order
of gain per cost; all policies of all λ are therefore one sorted list.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.baselines.costs import Routed

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]

# The authors smooth expected gains over neighbouring verdicts with a Gaussian of two bins (their code's GreedyPOMDP):
# few requests leave some of nine bins nearly empty.
SMOOTHING_VERDICTS = 2.0


@dataclass(frozen=True)
class Policy(Routed):
    """For each number of favourable votes the model that answers in the end; 0: the answer verified stands."""

    answers_by: tuple[int, ...]


def policies(
    votes: IndexArray,
    most_votes: int,
    quality: FloatArray,
    cost: FloatArray,
    weight: FloatArray,
    smoothing: float = SMOOTHING_VERDICTS,
) -> list[Policy]:
    """Return the optimal policies of all λ, from "every answer stands" to "cost does not matter".

    Expectations decide; the quality and cost that come with a policy are the sample's own means.

    Parameters
    ----------
    votes
        Shape (n,): how many of the votes on each request's answer are favourable, 0 … `most_votes`.
    quality, cost
        Shape (C, n): of each request at each model, the first being the one that verifies. Its cost is paid always.
    weight
        Shape (n,).
    smoothing
        Standard deviation, in votes, of the kernel that expectations are smoothed with; 0: none.
    """
    counts = weight > 0
    verdicts, got = np.unique(votes[counts], return_inverse=True)
    amounts = np.concatenate([weight[None], quality * weight, cost * weight])[:, counts] / weight.sum()
    sums: FloatArray = np.stack([np.bincount(got, amount) for amount in amounts]).astype(np.float64)
    stages = len(quality)
    expected = _smoothed(sums, verdicts, smoothing)[1:]
    # A verdict that nobody got is answered like the nearest one that somebody did, of two the worse.
    nearest = np.abs(np.arange(most_votes + 1)[:, None] - verdicts).argmin(axis=1)
    table = _Table(sums[1 : 1 + stages], sums[1 + stages :], nearest)
    answers_by = np.zeros(verdicts.size, np.int64)
    found = [table.policy(answers_by)]
    for verdict, model in _moves(expected[:stages], expected[stages:]):
        answers_by[verdict] = model
        found.append(table.policy(answers_by))
    return found


@dataclass(frozen=True, eq=False)
class _Table:
    """Of each model and verdict that somebody got, shape (C, V): quality and cost, summed over the sample's shares."""

    quality: FloatArray
    cost: FloatArray
    nearest: IndexArray

    def policy(self, answers_by: IndexArray) -> Policy:
        """What answering each of the V verdicts by some model comes to."""
        verdicts = np.arange(answers_by.size)
        asked = np.where(answers_by > 0, self.cost[answers_by, verdicts], 0.0)
        return Policy(
            quality=float(self.quality[answers_by, verdicts].sum()),
            cost=float(self.cost[0].sum() + asked.sum()),
            answers_by=tuple(answers_by[self.nearest].tolist()),
        )


def _smoothed(sums: FloatArray, verdicts: IndexArray, smoothing: float) -> FloatArray:
    """Expectations given each verdict: sums over all verdicts, near ones counting most, over their share."""
    if smoothing > 0:
        sums = sums @ np.exp(-0.5 * ((verdicts[:, None] - verdicts) / smoothing) ** 2)
    expected: FloatArray = sums / sums[0]
    return expected


def _moves(quality: FloatArray, cost: FloatArray) -> list[tuple[int, int]]:
    """(verdict, model) of every step up a hull, largest gain per cost first; of equal ones the worse verdict first."""
    steps = []
    for verdict in range(quality.shape[1]):
        points = [(0.0, float(quality[0, verdict]), 0)]
        points += [
            (float(cost[model, verdict]), float(quality[model, verdict]), model) for model in range(1, len(quality))
        ]
        hull = _upper_hull(points)
        steps += [(_slope(before, after), verdict, after[2]) for before, after in pairwise(hull)]
    steps.sort(key=lambda step: (-step[0], step[1]))
    return [(verdict, model) for _, verdict, model in steps]


def _upper_hull(points: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """The points (cost, quality, model) that maximise quality - λ·cost for some λ >= 0, by rising cost."""
    hull: list[tuple[float, float, int]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1], p[2])):
        if hull and point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(before: tuple[float, float, int], after: tuple[float, float, int]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])
