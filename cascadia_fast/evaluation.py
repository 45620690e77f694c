"""Errors of predicted serving times against measured ones: overall, by group, and why some have no prediction."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.closed_loop import Prediction, Runs
from cascadia_fast.measurements import Measurement, Measurements
from cascadia_fast.profile import Profile

__all__ = ["errors", "evaluate", "measured", "saturated"]

# Where the first token takes longer than this share of the decoding, requests queued: for memory, or for the engine's
# own limit on the batch, which measurement files do not state.
_QUEUED_SHARE = 0.25
_GROUP = ("model", "gpu", "engine", "precision")
_LABEL = operator.attrgetter(*_GROUP)

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


def evaluate(measurements: Measurements, profile: Profile) -> dict[str, Any]:
    """Compare a profile's predictions with measurements, without fitting.

    Returns
    -------
    dict
        ``overall`` covers every run, those too that the reader had to reject; ``unsaturated`` and ``saturated`` split
        the others, and each of ``groups`` covers one model, GPU, engine and precision, the rejected runs too of which
        these can be read. All hold ``ttft`` and ``tpot``
        with ``rows``, ``predicted``, ``median_abs_error``, ``mean_abs_error``, ``bias`` (the median) and ``spearman``;
        errors are predicted over measured minus one, and None where no row has one. ``statuses`` counts how far
        predictions can be trusted. ``unpredicted`` gives the reason of every run without a prediction,
        ``unpredicted_reasons`` counts them.
    """
    rows = measurements.rows
    runs = Runs(rows)
    prediction = runs.predict(profile)
    statuses = [status.level if status else None for status in runs.statuses(profile)]

    def over(keep: Mask) -> dict[str, Any]:
        counts = Counter(status for status, kept in zip(statuses, keep.tolist(), strict=True) if kept and status)
        return {**_both(rows, prediction, keep), "statuses": dict(sorted(counts.items()))}

    queued = saturated(rows)
    labels = [_LABEL(row) for row in rows]
    refused = Counter(_LABEL(run) for run in measurements.rejected)
    groups = []
    for label in dict.fromkeys([*labels, *(label for label in refused if None not in label)]):
        keep = np.array([other == label for other in labels], bool)
        named = dict(zip(_GROUP, label, strict=True))
        groups.append({**named, **_with_refused(over(keep), refused[label])})
    overall = _with_refused(over(np.full(len(rows), True)), len(measurements.rejected))
    unpredicted = [(row.source, reason) for row, reason in zip(rows, prediction.reasons, strict=True) if reason]
    unpredicted += [(run.source, run.reason) for run in measurements.rejected]
    return {
        "profile": profile.name,
        "files": [{"name": name, "sha256": digest} for name, digest in measurements.files],
        "rows": len(rows),
        "rejected": len(measurements.rejected),
        "overall": overall,
        "unsaturated": over(~queued),
        "saturated": over(queued),
        "groups": groups,
        "unpredicted": [{"source": source, "reason": reason} for source, reason in unpredicted],
        "unpredicted_reasons": dict(Counter(reason for _, reason in unpredicted).most_common()),
        "notes": [*measurements.notes, *_seen(measurements, profile)],
    }


def _with_refused(found: dict[str, Any], refused: int) -> dict[str, Any]:
    """Count runs that the reader had to reject among those without a prediction."""
    for metric in ("ttft", "tpot"):
        found[metric]["rows"] += refused
    return found


def _seen(measurements: Measurements, profile: Profile) -> list[str]:
    """A sentence if the profile was fitted to a file of these runs."""
    fitted_to = {digest for _, digest in profile.provenance.files}
    names = [name for name, digest in measurements.files if digest in fitted_to]
    files = f"this file ({names[0]})" if len(names) == 1 else f"these files ({', '.join(names)})"
    return [f"the profile was fitted to {files}: these are not errors of unseen runs"] if names else []


def measured(rows: Sequence[Measurement]) -> tuple[Vector, Vector]:
    """Return the measured TTFT and TPOT in seconds, NaN where a run has none; shape (rows,) each."""
    ttft_s = np.array([np.nan if row.ttft_s is None else row.ttft_s for row in rows], float)
    tpot_s = np.array([np.nan if row.tpot_s is None else row.tpot_s for row in rows], float)
    return ttft_s, tpot_s


def saturated(rows: Sequence[Measurement]) -> Mask:
    """Return which runs spent their time queueing; shape (rows,)."""
    ttft_s, tpot_s = measured(rows)
    tokens_out = np.array([row.tokens_out for row in rows], float)
    found: Mask = ttft_s > _QUEUED_SHARE * tokens_out * tpot_s  # False where either was not measured
    return found


def errors(predicted_s: Vector, measured_s: Vector) -> dict[str, Any]:
    """Return the errors of some predictions; runs without a finite prediction or without a measurement have none."""
    both = np.isfinite(predicted_s) & np.isfinite(measured_s)
    error = predicted_s[both] / measured_s[both] - 1
    found = (
        {
            "median_abs_error": np.median(np.abs(error)),
            "mean_abs_error": np.mean(np.abs(error)),
            "p90_abs_error": np.quantile(np.abs(error), 0.9),
            "bias": np.median(error),
        }
        if len(error)
        else dict.fromkeys(("median_abs_error", "mean_abs_error", "p90_abs_error", "bias"))
    )
    return {
        "rows": int((~np.isnan(measured_s)).sum()),
        "predicted": int(both.sum()),
        **{name: None if value is None else round(float(value), 4) for name, value in found.items()},
        "spearman": _spearman(predicted_s[both], measured_s[both]),
    }


def _both(rows: Sequence[Measurement], prediction: Prediction, keep: Mask) -> dict[str, Any]:
    ttft_s, tpot_s = measured(rows)
    return {
        "ttft": errors(prediction.ttft_s[keep], ttft_s[keep]),
        "tpot": errors(prediction.tpot_s[keep], tpot_s[keep]),
    }


def _spearman(one: Vector, other: Vector) -> float | None:
    """Rank correlation, ties sharing their mean rank; None where one side does not vary."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return round(float(np.corrcoef(_ranks(one), _ranks(other))[0, 1]), 4)


def _ranks(values: Vector) -> Vector:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank: Vector = np.cumsum(counts) - (counts - 1) / 2
    return mean_rank[inverse]
