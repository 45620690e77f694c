"""Signals that other systems route by: a learned score, the probability to win, a model's verdict on its own answer.

None of them can be had from a table of scored requests, so each is simulated from quality with a stated accuracy, its
AUC. A `Signal` of a plan holds what was fitted to the requests it was planned with; other requests then get the signals
that the same predictor would give them. Noise belongs to the request, by its id, and to the model: the same request has
the same signal among any others, and learned scores do not depend on which other models there are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.blueprint_routing import Signal
from cascadia_fast.errors import InputError
from cascadia_fast.judge import normal_cdf, solve_noise_sd

if TYPE_CHECKING:
    from cascadia_fast.workload import ScoredRequests

FloatArray = NDArray[np.float64]
Words = NDArray[np.uint64]
SignalKind = Literal["learned_score", "win_probability", "verification"]

# Of the noise of learned scores, as of a simulated judge's: the part that all answers to one request share.
PROMPT_SHARE = 0.5
# The AUC of verdicts is found with qualities in so many bins and noise at so many points: exact to 1e-3, in 10 ms.
_BINS, _NOISE_POINTS, _BISECTIONS = 128, 48, 30
_LEAST_DRAWN = 4096  # requests of unequal weight stand in for themselves so many times
_NOISE_SD = (1e-3, 1e3)  # all but none, and so much that nothing is left of the quality
_SHARPER = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

_GAIN, _VERDICTS, _SHARED, _OWN = range(4)  # purposes of noise


def fit_signal(kind: SignalKind, requests: ScoredRequests, auc: float, seed: int, votes: int = 0) -> Signal:
    """Return the signal of a kind that has a given accuracy on some requests.

    Parameters
    ----------
    kind, auc, seed, votes
        Those of the signal; see `Signal`. The AUC is over pairs of answers of unequal quality (for ``win_probability``:
        of requests of unequal gain, the largest model's quality less the smallest's), drawn by the requests' weights;
        ties of the signal count half.
    requests
        Those that are planned with, with the models that the signal is of.

    Raises
    ------
    InputError
        A number is out of range, or so few votes cannot be so accurate.
    """
    quality = _fitted_to(kind, requests)[:, _by_weight(requests.weight)]
    center, spread = float(quality.mean()), float(quality.std())
    if spread == 0:  # nothing to tell apart: the signal is the same for all
        return Signal(kind, auc, seed, center, 1.0, 0.0, votes)
    signal = Signal(kind, auc, seed, center, spread, 0.0, votes)
    standardised = (quality - center) / spread
    if kind == "verification":
        sharper, noise_sd = _verdicts(standardised[0], auc, votes)
        return dataclasses.replace(signal, spread=spread / sharper, noise_sd=noise_sd)
    share = PROMPT_SHARE if kind == "learned_score" else 0.0
    return dataclasses.replace(signal, noise_sd=solve_noise_sd(standardised, auc, share))


def signal_values(signal: Signal, requests: ScoredRequests) -> FloatArray:
    """Return what the signal says of n requests, which have the models of the plan.

    Returns
    -------
    numpy.ndarray
        ``learned_score``: shape (C, n), 0 to 100. ``win_probability``: (n,), 0 to 1. ``verification``: (n,), the share
        of the votes for the first model's answer, 0 to 1.
    """
    standardised = (_fitted_to(signal.kind, requests) - signal.center) / signal.spread
    names = _hashed(requests.request_ids)
    if signal.kind == "learned_score":
        noise = [_learned_noise(signal.seed, names, model) for model in requests.models]
        return 100 * normal_cdf(standardised + signal.noise_sd * np.stack(noise))
    certain = normal_cdf(standardised[0] + signal.noise_sd * _normal(signal.seed, _GAIN, 0, names))
    if signal.kind == "win_probability":
        return certain
    votes = sum(_uniform(signal.seed, _VERDICTS, vote, names) < certain for vote in range(signal.votes))
    return np.asarray(votes / signal.votes, dtype=np.float64)


def charged_tokens(signal: Signal | None, requests: ScoredRequests) -> tuple[FloatArray, FloatArray]:
    """Return the tokens that each model reads and writes, each (C, n), the cost of the signal included.

    To verify its answer, the first model reads the prompt and the answer once more and writes a verdict of one token
    per vote; that the votes share what they read favours AutoMix. Other signals cost nothing.
    """
    if signal is None or signal.kind != "verification":
        return requests.input_tokens, requests.output_tokens
    tokens_in, tokens_out = requests.input_tokens.copy(), requests.output_tokens.copy()
    tokens_in[0] += requests.input_tokens[0] + requests.output_tokens[0]
    tokens_out[0] += signal.votes
    return tokens_in, tokens_out


def _fitted_to(kind: str, requests: ScoredRequests) -> FloatArray:
    """The qualities that a signal goes by: (C, n) of all models, or (1, n)."""
    if kind == "win_probability":
        return requests.quality[-1:] - requests.quality[:1]
    return requests.quality[:1] if kind == "verification" else requests.quality


def _by_weight(weight: FloatArray) -> NDArray[np.intp]:
    """Places of requests, in which each comes up in proportion to its weight, as far as that many can."""
    if np.ptp(weight) == 0:
        return np.arange(weight.size)
    mass = np.cumsum(weight)
    count = max(weight.size, _LEAST_DRAWN)
    return np.asarray(np.searchsorted(mass, (np.arange(count) + 0.5) * (mass[-1] / count), side="right"))


def _learned_noise(seed: int, names: Words, model: str) -> FloatArray:
    shared = _normal(seed, _SHARED, 0, names)
    own = _normal(seed, _OWN, int(_hashed(np.array([model]))[0]), names)
    return math.sqrt(PROMPT_SHARE) * shared + math.sqrt(1 - PROMPT_SHARE) * own


def _verdicts(standardised: FloatArray, auc: float, votes: int) -> tuple[float, float]:
    """How much sharper than the qualities' spread to judge, and with which noise, for votes to have an AUC.

    Sharper than the spread only where votes alone would be too noisy: few of them, or a spread that outliers set.
    """
    levels, weight = _levels(standardised)
    pairs = (weight.sum() ** 2 - (weight**2).sum()) / 2

    def auc_of(sharper: float, noise_sd: float) -> float:
        mass = weight[:, None] * _votes_by_level(sharper * levels, noise_sd, votes)
        of_lower_levels = np.cumsum(mass, axis=0) - mass
        # Fewer votes than an answer has, or as many, which counts half.
        fewer = np.cumsum(of_lower_levels, axis=1) - of_lower_levels / 2
        return float((mass * fewer).sum() / pairs)

    best = [auc_of(sharper, 0.0) for sharper in _SHARPER]
    for sharper, found in zip(_SHARPER, best, strict=True):
        if found >= auc:
            return sharper, _noise_sd_for(partial(auc_of, sharper), auc)
    raise InputError(
        f"the AUC of a verification by {votes} votes is {auc:g}; so few votes reach at most {max(best):.2f} here, so "
        "give more votes or a lower AUC"
    )


def _noise_sd_for(auc_of: Callable[[float], float], auc: float) -> float:
    low, high = _NOISE_SD
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if auc_of(middle) > auc else (low, middle)
    return math.sqrt(low * high)


def _levels(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ascending distinct values and how many have each; where there are too many, means of as many bins as can be."""
    levels, counts = np.unique(values, return_counts=True)
    if levels.size > _BINS:
        middle = np.cumsum(counts) - counts / 2
        of_bin = (middle * (_BINS / values.size)).astype(np.int64)  # equally full, as far as ties go
        weight: FloatArray = np.bincount(of_bin, counts, _BINS).astype(np.float64)
        used = weight > 0
        return np.bincount(of_bin, counts * levels, _BINS)[used] / weight[used], weight[used]
    return levels, counts.astype(np.float64)


def _votes_by_level(levels: FloatArray, noise_sd: float, votes: int) -> FloatArray:
    """Shape (levels, votes + 1): how likely each number of votes is, over the noise."""
    points, mass = np.polynomial.hermite_e.hermegauss(_NOISE_POINTS)
    certain = normal_cdf(levels[:, None] + noise_sd * points)
    ways = np.array([math.comb(votes, count) for count in range(votes + 1)])
    counts = np.arange(votes + 1)
    # (levels, points, counts): binomial probabilities.
    each = ways * certain[..., None] ** counts * (1 - certain[..., None]) ** counts[::-1]
    found: FloatArray = np.einsum("p,lpc->lc", mass / mass.sum(), each)
    return found


# Noise from names. A generator that is seeded once draws by position, and would give a request another signal in
# another selection; one generator per request costs 10 µs each.


def _hashed(names: NDArray[np.str_]) -> Words:
    """FNV-1a over the characters of each name, shape (n,)."""
    characters = np.ascontiguousarray(names).view(np.uint32).reshape(names.size, -1)
    found = np.full(names.size, 0xCBF29CE484222325, np.uint64)
    for column in characters.T.astype(np.uint64):
        # Names are padded with zeros to the longest of the array.
        found = np.where(column != 0, (found ^ column) * np.uint64(0x100000001B3), found)
    return found


def _uniform(seed: int, purpose: int, draw: int, names: Words) -> FloatArray:
    """Numbers inside 0 to 1, shape (n,), from the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    key = np.random.SeedSequence(seed, spawn_key=(purpose, draw)).generate_state(1, np.uint64)[0]
    bits = names ^ key
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    found: FloatArray = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return found


def _normal(seed: int, purpose: int, draw: int, names: Words) -> FloatArray:
    """Standard normal numbers, shape (n,), by Box and Muller."""
    radius = np.sqrt(-2 * np.log(_uniform(seed, purpose, 2 * draw, names)))
    found: FloatArray = radius * np.cos(2 * math.pi * _uniform(seed, purpose, 2 * draw + 1, names))
    return found
