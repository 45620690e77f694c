"""Two halves of a case's traffic: one that plans are made from, and one that they are tried on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import InputError
from cascadia_fast.simulation.traffic import PLANNING, ROTATION, SPLIT, stream_of
from cascadia_fast.workload import Arrivals, ScoredRequests

FloatArray = NDArray[np.float64]

# Assignments that are drawn, of which the one is taken whose halves agree best; fewer of large samples, whose halves
# agree anyhow.
DRAWS = 1024
MOST_TOSSES = 4_000_000


@dataclass(frozen=True, eq=False)
class Halves:
    """The planning half and the test half of scored requests; no independent request is in both."""

    planning: ScoredRequests
    test: ScoredRequests


def split(requests: ScoredRequests, seed: int) -> Halves:
    """Return halves of equal work: coins part pairs of similar length, and the best of many tosses is taken.

    That is rerandomisation (Morgan & Rubin, Annals of Statistics 40(2), 2012): of up to 1,024 assignments the one is
    kept whose halves differ least in total weight and, by model, in mean lengths; each difference counts by its
    standard deviation over the assignments. Neither scores nor quality are looked at: halves of equal quality would
    tell systems that use one model for all that they meet the floor. What repeats one independent request (`source`)
    stays together, so that no half knows an answer of the other. Of an odd number one, drawn at random, is left without
    a partner and tosses a coin of its own.

    Raises
    ------
    InputError
        There are fewer than two independent requests.
    """
    _, member = np.unique(requests.source, return_inverse=True)
    mass = np.bincount(member, weights=requests.weight).astype(np.float64)
    candidates = np.flatnonzero(mass > 0)  # without weight a request is never sent
    if candidates.size < 2:
        raise InputError(
            "the table of requests has one independent request, and a comparison plans on half of them and tries the "
            "plans on the others; give at least two"
        )
    rng = stream_of(seed, SPLIT)
    sums = _sums_by(member, requests)[candidates]
    first, second, alone = _pairs(sums[:, -1] / sums[:, 0], rng)
    coins = first.size + alone.size
    draws = max(1, min(DRAWS, MOST_TOSSES // coins))
    heads = rng.integers(0, 2, (draws, coins), dtype=np.int8).astype(bool)
    best = heads[_most_alike(heads, sums, first, second, alone)]
    plans = np.zeros(mass.size, bool)
    # Two requests make a pair, so that neither half is ever empty.
    plans[candidates[np.where(best[: first.size], first, second)]] = True
    plans[candidates[alone]] = best[first.size :]
    sent = mass[member] > 0
    return Halves(requests.select(sent & plans[member]), requests.select(sent & ~plans[member]))


def planning_seed(seed: int) -> int:
    """Return what systems draw from when they plan with a seed: nothing that its trial is drawn from."""
    return int(stream_of(seed, PLANNING).integers(2**31))


def rotated(arrivals: Arrivals, seed: int) -> Arrivals:
    """Return the same trace begun at another of its arrivals, drawn by seed; what goes before comes after its end."""
    times_s = arrivals.times_s
    if times_s is None:
        return arrivals
    start = int(stream_of(seed, ROTATION).integers(times_s.size))
    # One mean gap between the last arrival and the first one keeps the rate.
    before_s = times_s[:start] + (times_s[-1] - times_s[0] + 1 / arrivals.rate_per_s)
    turned_s = np.concatenate([times_s[start:], before_s]) - times_s[start]
    turned_s.setflags(write=False)
    return dataclasses.replace(arrivals, times_s=turned_s)


def _sums_by(member: NDArray[np.intp], requests: ScoredRequests) -> FloatArray:
    """Weights, and weighted input tokens and output tokens by model, summed by independent request."""
    columns = [np.ones(requests.size), *requests.input_tokens, *requests.output_tokens]
    return np.stack([np.bincount(member, weights=requests.weight * column) for column in columns], axis=1)


def _pairs(length: FloatArray, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Neighbours by the largest model's output as pairs; who is left over last."""
    places = np.arange(length.size)
    out = rng.integers(places.size, size=places.size % 2)
    paired = np.delete(places, out)
    ordered = paired[np.argsort(length[paired], kind="stable")]
    return ordered[0::2], ordered[1::2], out


def _most_alike(
    heads: NDArray[np.bool_],
    sums: FloatArray,
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    alone: NDArray[np.intp],
) -> int:
    """Which of some tosses has the halves that differ least."""
    # What the planning half has more of where the coin shows heads: one of a pair instead of the other.
    gain = np.concatenate([sums[first] - sums[second], sums[alone]])
    least = sums[second].sum(axis=0)
    planning = np.stack([least + toss @ gain for toss in heads])
    test = sums.sum(axis=0) - planning
    differences = planning / planning[:, :1] - test / test[:, :1]
    differences[:, 0] = planning[:, 0] - test[:, 0]
    spread = differences.std(axis=0)
    standardised = np.divide(differences, spread, out=np.zeros_like(differences), where=spread > 0)
    return int(np.argmin(np.square(standardised).sum(axis=1)))
