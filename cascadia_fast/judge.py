"""A judge simulated from known quality, for planning before a real judge has scored anything."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadia_fast.errors import InputError

# Quality differences are collected in a histogram this fine: the AUC is then exact to about 1e-4, and the
# autocorrelation that counts pairs costs microseconds where the pairs of 60,000 answers would cost minutes.
QUALITY_BINS = 1024
BISECTIONS = 36
# Beyond 8 standard deviations the normal distribution is 0 or 1 in double precision.
NORMAL_LIMIT = 8.0
NORMAL_NODES = 8192

FloatArray = NDArray[np.float64]


def simulated_scores(quality: ArrayLike, auc: float, seed: int, prompt_share: float = 0.5) -> FloatArray:
    """Score answers as a judge of a given accuracy would.

    The score is ``100 Φ(z + noise)``: z is the quality standardised over the whole table, and the noise is Gaussian,
    with a part that all answers to one prompt share. Its standard deviation is solved so that the score orders two
    answers of unequal quality, drawn from anywhere in the table, rightly with probability `auc`.

    Parameters
    ----------
    quality
        Shape (C, n): quality of each model's answer to each prompt, on any scale.
    auc
        P(score orders two answers of unequal quality rightly), above 0.5 and at most 1; 1 reproduces their order.
    seed
        Equal seeds give equal scores.
    prompt_share
        Part of the noise variance that the answers to one prompt have in common, at least 0 and below 1.

    Returns
    -------
    numpy.ndarray
        Shape (C, n), scores from 0 to 100.

    Raises
    ------
    InputError
        When a number is out of range, or all qualities are equal, so that there is nothing to order.
    """
    values = np.asarray(quality, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"quality has shape {values.shape}; it must be (models, requests), both at least 1")
    if seed < 0:
        raise InputError(f"the seed of the simulated judge is {seed}; it must not be negative")
    standardised = _standardised(values)
    noise_sd = solve_noise_sd(standardised, auc, prompt_share)
    if noise_sd == 0:
        return 100 * normal_cdf(standardised)
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(values.shape[1]) * (noise_sd * math.sqrt(prompt_share))
    own = rng.standard_normal(values.shape)
    own *= noise_sd * math.sqrt(1 - prompt_share)
    scores: FloatArray = 100 * normal_cdf(standardised + shared + own)
    return scores


def solve_noise_sd(quality: ArrayLike, auc: float, prompt_share: float = 0.5) -> float:
    """Return the standard deviation of the judge's noise, in the units of `quality`, that gives `auc`.

    Two answers whose qualities differ by d are ordered rightly with probability Φ(d / (σ√2)) when their prompts
    differ and, as the shared part cancels, Φ(d / (σ√(2(1 − share)))) when they answer the same prompt. The mean over
    all pairs of unequal quality falls from 1 to 1/2 as σ grows, so bisection finds the root.
    """
    if not 0.5 < auc <= 1:
        raise InputError(f"simulated_auc is {auc:g}; it must be above 0.5 (guessing) and at most 1 (always right)")
    if not 0 <= prompt_share < 1:
        raise InputError(f"prompt_share is {prompt_share:g}; it must be at least 0 and below 1")
    values = np.asarray(quality, dtype=np.float64)
    distance, pairs, pairs_of_a_prompt = _unequal_pairs(values)
    if auc == 1:
        return 0.0
    weight = np.concatenate([np.maximum(pairs - pairs_of_a_prompt, 0), pairs_of_a_prompt]) / pairs.sum()
    scaled = np.concatenate([distance / math.sqrt(2), distance / math.sqrt(2 * (1 - prompt_share))])
    present = weight > 0
    weight, scaled = weight[present], scaled[present]
    low, high = math.log(scaled.min() / NORMAL_LIMIT), math.log(scaled.max()) + 20
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if float(weight @ normal_cdf(scaled / math.exp(middle))) > auc:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def normal_cdf(values: ArrayLike) -> FloatArray:
    """Return the standard normal distribution function, within 2e-7.

    NumPy has no error function and importing SciPy costs more than a plan. A table on an even grid is monotone, which
    the order of scores needs, and takes 20 ns per value; `numpy.interp` would search the grid and take 75 ns.
    """
    heights = _normal_table()
    position = np.clip(np.asarray(values, dtype=np.float64), -NORMAL_LIMIT, NORMAL_LIMIT)
    position = (position + NORMAL_LIMIT) * (NORMAL_NODES / (2 * NORMAL_LIMIT))
    node = np.minimum(position.astype(np.int64), NORMAL_NODES - 1)
    below: FloatArray = heights[node]
    above: FloatArray = heights[node + 1]
    return below + (position - node) * (above - below)


@cache
def _normal_table() -> FloatArray:
    nodes = np.linspace(-NORMAL_LIMIT, NORMAL_LIMIT, NORMAL_NODES + 1)
    return np.array([0.5 * math.erfc(-node / math.sqrt(2)) for node in nodes])


def _standardised(values: FloatArray) -> FloatArray:
    if not np.isfinite(values).all():
        raise InputError("a quality is missing or infinite; the simulated judge needs the quality of every answer")
    spread = values.std()
    if spread == 0:
        raise InputError(f"every answer has quality {values.flat[0]:g}; a simulated judge needs unequal qualities")
    return np.asarray((values - values.mean()) / spread)


def _unequal_pairs(values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count pairs of unequal quality by distance: (distances, all pairs, pairs that answer one prompt)."""
    ordered = np.sort(values, axis=None)
    low, high = float(ordered[0]), float(ordered[-1])
    if low == high:
        raise InputError(f"every answer has quality {low:g}; a simulated judge needs unequal qualities")
    width = (high - low) / (QUALITY_BINS - 1)
    bins = np.rint((values - low) / width).astype(np.int64)
    histogram = np.bincount(bins.ravel(), minlength=QUALITY_BINS)
    spectrum = np.fft.rfft(histogram, 2 * QUALITY_BINS)
    pairs = np.rint(np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[:QUALITY_BINS])
    of_a_prompt = np.zeros(QUALITY_BINS)
    for first in range(len(values)):
        for second in range(first):
            of_a_prompt += np.bincount(np.abs(bins[first] - bins[second]), minlength=QUALITY_BINS)
            of_a_prompt[0] -= np.count_nonzero(values[first] == values[second])
    # Unequal answers in one bin are a third of its width apart on average.
    distance = width * np.arange(QUALITY_BINS, dtype=np.float64)
    distance[0] = width / 3
    run_ends = np.flatnonzero(np.diff(ordered, append=np.inf))
    pairs[0] = _pairs_within(histogram) - _pairs_within(np.diff(run_ends, prepend=-1))
    return distance, pairs, of_a_prompt


def _pairs_within(counts: NDArray[np.int64]) -> float:
    return float((counts * (counts - 1) // 2).sum())
