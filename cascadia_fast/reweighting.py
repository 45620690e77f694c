"""Makes scored reference requests look like live traffic, by raking.

Live data are censored: nobody knows what the larger models would have scored on a request that the first stage's answer
satisfied. The reference requests have every model's answer. Their weights are fitted, by iterative proportional fitting
(Deming and Stephan, 1940), until the weighted reference shows the traffic's distribution of input lengths, output
lengths and scores at the first stage, which every request visits. What follows at later stages is then right as far as
it depends on those three.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import CascadiaWarning, InputError
from cascadia_fast.traffic import TrafficWindow
from cascadia_fast.workload import Arrivals, Workload

FloatArray = NDArray[np.float64]

# Fewer first-stage visits than this fix no distribution worth planning on.
MIN_REQUESTS = 50
# A sample worth fewer requests than this gives means with standard errors of a fifth of the spread.
MIN_EFFECTIVE_SIZE = 30.0
# Share of the traffic that must lie within the reference's range of every margin.
MIN_COVERAGE = 0.85
# No reference request stands for more than this many average ones: unbounded weights would hand the plan to a few.
MAX_WEIGHT = 10.0
MAX_BINS = 16
MIN_PER_BIN = 5
# Raking converges geometrically where the margins agree; where trimming or empty combinations keep them apart, further
# sweeps only cycle.
MAX_SWEEPS = 100
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Reweighted:
    """A workload made of reference requests that were reweighted to traffic, and how far to trust it.

    Attributes
    ----------
    workload
        The reference with the fitted weights (mean 1, at most 10) and the observed rate and burstiness.
    requests_seen
        Requests (visits to the first stage) the margins were taken from.
    effective_size
        Kish's effective sample size of the weighted reference.
    coverage
        Share of the traffic that lies between the reference's smallest and largest value, by margin (``input_tokens``,
        ``output_tokens``, ``score``); what lies outside is counted with the outermost bin.
    margin_error
        Largest difference left between a bin's weighted share and its target; positive where weights were trimmed or
        the margins contradict the reference.
    """

    workload: Workload
    requests_seen: int
    effective_size: float
    coverage: dict[str, float]
    margin_error: float


@dataclass(frozen=True, slots=True, eq=False)
class Margin:
    """One marginal distribution to fit.

    Attributes
    ----------
    bin_of
        Shape (n,), the bin of each reference request.
    target
        Shape (bins,), positive, sums to 1: the share each bin should have.
    coverage
        Share of the observed values inside the reference's range.
    """

    bin_of: NDArray[np.intp]
    target: FloatArray
    coverage: float


def reweight(reference: Workload, window: TrafficWindow) -> Reweighted:
    """Fit the weights of `reference` to the traffic of `window`, and take over its rate and burstiness.

    Raises
    ------
    InputError
        When the window holds fewer than 50 requests or the reference has another number of models.
    """
    requests = reference.requests
    if len(requests.models) != window.stages:
        raise InputError(
            f"the reference has {len(requests.models)} models and the monitor {window.stages} stages; "
            "give scored requests of the cascade that is observed"
        )
    first = window.at_stage(0)
    times_s, duration_s = window.arrivals()
    seen = min(len(first), times_s.size)
    if seen < MIN_REQUESTS:
        raise InputError(
            f"the monitor saw {seen} requests in its window of {window.window_s:g} s, and a workload needs "
            f"{MIN_REQUESTS}; wait for more traffic or use a longer window_s"
        )
    margins = _margins(reference, first)
    weight, margin_error = rake(requests.weight, list(margins.values()))
    arrivals = dataclasses.replace(Arrivals.from_times(times_s), rate_per_s=times_s.size / duration_s)
    fitted = dataclasses.replace(requests, weight=weight)
    result = Reweighted(
        workload=Workload.build(fitted, arrivals, reference.rate_from, reference.headroom),
        requests_seen=len(first),
        effective_size=fitted.effective_size,
        coverage={name: margin.coverage for name, margin in margins.items()},
        margin_error=margin_error,
    )
    _warn(result)
    return result


def margin_of(reference: FloatArray, observed: FloatArray) -> Margin:
    """Bin one quantity and say what share of the traffic each bin holds.

    Edges are quantiles of both samples together, each sample counting half, so that bins are fine where the traffic is
    and still hold at least 5 reference requests each: no bin is empty in the reference. Values that many requests share
    (a score of 100, a length limit) get a bin of their own. Half a visit per bin is added in the reference's
    proportions, so that a bin the traffic happened to miss keeps a positive target.

    Parameters
    ----------
    reference, observed
        Shapes (n,) and (m,), finite.
    """
    bins = _bin_count(min(reference.size, observed.size))
    both = np.concatenate([reference, observed])
    share = np.concatenate([np.full(reference.size, 0.5 / reference.size), np.full(observed.size, 0.5 / observed.size)])
    cuts = np.quantile(both, np.arange(1, bins) / bins, weights=share, method="inverted_cdf")
    shared = [cut for cut in np.unique(cuts) if share[both == cut].sum() >= 1 / bins]
    edges = _merge_thin_bins(np.union1d(cuts, np.nextafter(shared, math.inf)), reference)
    bin_of = np.searchsorted(edges, reference, side="right")
    in_reference = np.bincount(bin_of, minlength=edges.size + 1) / reference.size
    counts = np.bincount(np.searchsorted(edges, observed, side="right"), minlength=edges.size + 1)
    added = 0.5 * counts.size
    inside = (observed >= reference.min()) & (observed <= reference.max())
    return Margin(
        bin_of=bin_of,
        target=(counts + added * in_reference) / (observed.size + added),
        coverage=float(inside.mean()),
    )


def rake(weight: FloatArray, margins: list[Margin], max_weight: float = MAX_WEIGHT) -> tuple[FloatArray, float]:
    """Fit weights to margins by iterative proportional fitting with trimming.

    Each sweep scales the weights to every margin in turn and then trims them to `max_weight` times their mean.

    Parameters
    ----------
    weight
        Shape (n,), the weights to start from; what the margins do not decide stays in their proportion.
    margins
        The distributions to fit; none leaves the weights as they are.
    max_weight
        Largest weight allowed, as a multiple of the mean.

    Returns
    -------
    tuple
        The weights, mean 1, and the largest difference left between a bin's share and its target.
    """
    fitted = _trimmed(weight / weight.mean(), max_weight)
    for _ in range(MAX_SWEEPS):
        before = fitted
        for margin in margins:
            held = _shares(fitted, margin)
            # A bin whose requests all start at weight zero cannot be raised.
            scale = np.divide(margin.target, held, out=np.ones_like(held), where=held > 0)
            fitted = fitted * scale[margin.bin_of]
        fitted = _trimmed(fitted / fitted.mean(), max_weight)
        if np.abs(fitted - before).max() < TOLERANCE:
            break
    errors = [float(np.abs(_shares(fitted, margin) - margin.target).max()) for margin in margins]
    return fitted, max(errors, default=0.0)


def _margins(reference: Workload, first: NDArray[Any]) -> dict[str, Margin]:
    """Return the margins of the first stage; the score is one only where both sides have enough of them."""
    margins = {}
    for name in ("input_tokens", "output_tokens", "score"):
        expected = getattr(reference.requests, name)[0]
        observed = first[name][~np.isnan(first[name])]
        if observed.size >= MIN_REQUESTS and not np.isnan(expected).any():
            margins[name] = margin_of(expected, observed)
    return margins


def _bin_count(size: int) -> int:
    """Bins for the smaller sample: the noise of the shares grows with their number, the bias within bins shrinks."""
    return min(max(round(math.sqrt(size) / 2), 2), MAX_BINS)


def _merge_thin_bins(edges: FloatArray, reference: FloatArray) -> FloatArray:
    """Drop edges, from the left, until every bin holds at least `MIN_PER_BIN` reference requests."""
    below = np.searchsorted(np.sort(reference), edges, side="left")
    kept: list[float] = []
    taken = 0
    for edge, count in zip(edges.tolist(), below.tolist(), strict=True):
        if count - taken >= MIN_PER_BIN and reference.size - count >= MIN_PER_BIN:
            kept.append(edge)
            taken = count
    return np.array(kept, dtype=np.float64)


def _shares(weight: FloatArray, margin: Margin) -> FloatArray:
    held = np.bincount(margin.bin_of, weights=weight, minlength=margin.target.size)
    return np.asarray(held / weight.sum(), dtype=np.float64)


def _trimmed(weight: FloatArray, max_weight: float) -> FloatArray:
    """Cap weights at `max_weight` times their mean; the mean falls with every cap, hence the loop."""
    while weight.max() > max_weight * weight.mean() * (1 + 1e-12):
        weight = np.minimum(weight, max_weight * weight.mean())
    return np.asarray(weight / weight.mean(), dtype=np.float64)


def _warn(result: Reweighted) -> None:
    sentences = []
    requests = result.workload.requests
    if result.effective_size < MIN_EFFECTIVE_SIZE:
        sentences.append(
            f"the reweighted reference is worth {result.effective_size:.0f} requests of {requests.size:,}, fewer than "
            f"{MIN_EFFECTIVE_SIZE:.0f}; score more requests like the present traffic on every model"
        )
    name, coverage = min(result.coverage.items(), key=lambda item: item[1])
    if coverage < MIN_COVERAGE:
        sentences.append(
            f"only {coverage:.0%} of the traffic has {name} at the first stage within the range of the reference; "
            "score requests like the present traffic on every model"
        )
    if "score" not in result.coverage and len(requests.models) > 1:
        sentences.append(
            f"fewer than {MIN_REQUESTS} of {result.requests_seen:,} requests were scored at the first stage, so the "
            "reference is reweighted by length alone; check the judge"
        )
    for sentence in sentences:
        # The monitor's own frames are native and do not count: the warning points at whoever called it.
        warnings.warn(sentence, CascadiaWarning, stacklevel=3)
