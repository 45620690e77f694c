"""Fit a profile to measured serving runs, and say how well it predicts runs that the fit did not see.

Robust regression on log errors with strong priors. The runs of one model on one GPU under one engine err together: an
engine's build, or a kernel chosen for one model, moves all of them at once. So a thousand runs of ten such groups tell
little more than ten, and each group has about the same say, however many runs it has. Errors beyond `_ERROR` and
numbers beyond a tenth of their prior's width count linearly, so that a few numbers move as far as they must and the
others stay where kernels put them. Both were chosen by leaving models out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import catalog
from cascadia_fast.closed_loop import Prediction, Runs
from cascadia_fast.errors import InputError
from cascadia_fast.evaluation import errors, evaluate, measured, saturated
from cascadia_fast.measurements import Measurement, Measurements, apart
from cascadia_fast.profile import DIGITS, Profile, fingerprint
from cascadia_fast.profile_fields import Group, Provenance, Residual

__all__ = ["Calibrated", "Fold", "contradictory", "cross_validate", "evaluate", "fit", "repeats_merged"]

_ERROR = 0.08  # of a run's time, natural log
_PRIOR = 10.0  # a number's step of its whole log-sigma weighs as much as this many such errors
_GROUP_SAY = 65.0  # a group of many runs weighs as much as this many independent ones,
_FEW = 5.0  # one of this many runs half of that
_STRANGE = 3.0  # on GPUs that did not make the start, priors are this much wider
_TTFT_WEIGHT = 0.15  # a first token hangs on what no file states: the front end, the client, when prompts met
_DOUBTED_WEIGHT = 0.3  # saturated and contradictory runs: limits and options that no file states
_STEP = 1e-3  # of a number's logarithm, for derivatives
_MAX_EVALUATIONS = 30
_UNFINISHED = "The optimiser stopped at its limit of {} evaluations: the numbers may not be the best fit."

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]
By = Literal["model", "tp", "gpu"]


@dataclass(frozen=True)
class Fold:
    """Predictions of the runs that were left out of a fit, by a profile fitted to the others.

    Parameters
    ----------
    by, left_out
        What was left out.
    rows
        Those runs.
    prediction
        Of those runs.
    """

    by: By
    left_out: str
    rows: tuple[Measurement, ...]
    prediction: Prediction


@dataclass(frozen=True)
class Calibrated:
    """A fitted profile.

    Parameters
    ----------
    profile
        The profile.
    before, after
        `evaluate` of the start and of the fitted profile.
    cross_validation
        Errors of runs left out of the fit, by what was left out (``model``, ``tp``, ``gpu``): of all runs, of ``dense``
        models, of ``moe`` models, and of each of the ``folds``; ``ttft`` and ``tpot`` as in `evaluate`, over runs that
        neither queued nor contradict others.
    kept
        Places of the numbers that stayed at their start, because the runs pull them too little to leave their prior.
    contradictory
        Runs whose setup was measured with very different times; they count less.
    """

    profile: Profile
    before: dict[str, Any]
    after: dict[str, Any]
    cross_validation: dict[str, Any]
    kept: tuple[str, ...]
    contradictory: tuple[str, ...]


def fit(
    measurements: Measurements,
    start: Profile,
    *,
    name: str = "calibrated",
    command: str = "cascadia-fast calibrate",
    by: Sequence[By] = ("model", "tp", "gpu"),
    progress: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Fit the numbers of `start` to measured runs.

    Cross-validation starts from `Profile.kernels` whatever `start` is, since a profile fitted before may have seen the
    very runs that are left out.

    Parameters
    ----------
    measurements
        The runs.
    start
        Where the numbers start, and what holds those the runs do not speak about.
    name, command
        For the profile and its provenance.
    by
        What to leave out in turn for cross-validation.
    progress
        Called with a few words before every step that takes long.

    Raises
    ------
    InputError
        No run can be predicted at all, or SciPy is missing.
    """
    rows = repeats_merged(measurements.rows)
    task = _Task(rows, start)
    if not task.usable.any():
        reasons = "; ".join(sorted({reason for reason in task.reasons if reason})) or "there are none"
        raise InputError(f"none of the {len(rows)} runs can be predicted, so there is nothing to fit: {reasons}")
    progress(f"fitting to {int(task.usable.sum())} runs")
    found = task.fit(np.full(len(rows), True))
    if found.unfinished:
        measurements = replace(measurements, notes=(*measurements.notes, _UNFINISHED.format(_MAX_EVALUATIONS)))
    folds = cross_validate(measurements, Profile.kernels(), by=by, progress=progress)
    validation: dict[str, Any] = {kind: _fold_errors([fold for fold in folds if fold.by == kind]) for kind in by}
    profile = replace(
        found.profile,
        name=name,
        gpus=tuple(sorted({row.gpu for row in rows})),
        measured=_groups(rows, task.runs.predict(found.profile), _model_names(measurements.rows)),
        provenance=Provenance(command, measurements.files, (f"Started from {start.name!r}.", *measurements.notes)),
        errors=_residuals(rows, task.runs.predict(found.profile), validation),
    )
    before, after = evaluate(measurements, start), evaluate(measurements, profile)
    doubted = tuple(row.source for row, said in zip(rows, task.contradictory.tolist(), strict=True) if said)
    return Calibrated(profile, before, after, validation, found.kept, doubted)


def cross_validate(
    measurements: Measurements,
    start: Profile,
    *,
    by: Sequence[By] = ("model", "tp", "gpu"),
    progress: Callable[[str], None] = lambda _: None,
) -> list[Fold]:
    """Leave out each model, each TP degree and each GPU in turn, fit to the rest, and predict what was left out.

    Repeats are merged before, so that no run is predicted from its own twin; `start` must not have seen the runs.
    """
    rows = repeats_merged(measurements.rows)
    task = _Task(rows, start)
    folds = []
    for kind in by:
        labels = _labels(rows, kind)
        for label in dict.fromkeys(labels) if len(set(labels)) > 1 else ():
            progress(f"leaving out {kind} {label}")
            left_out = np.array([other == label for other in labels])
            if not (task.usable & ~left_out).any():
                continue
            fitted = task.fit(~left_out).profile
            kept = [row for row, out in zip(rows, left_out.tolist(), strict=True) if out]
            folds.append(Fold(kind, label, tuple(kept), Runs(kept).predict(fitted)))
    return folds


class _Fitted(NamedTuple):
    """A fitted profile, the places of the numbers that stayed, and whether the optimiser ran out of evaluations."""

    profile: Profile
    kept: tuple[str, ...]
    unfinished: bool


class _Task:
    """What stays the same from fold to fold."""

    def __init__(self, rows: Sequence[Measurement], start: Profile) -> None:
        self.rows, self.start = rows, start
        self.runs = Runs(rows)
        self.ttft_s, self.tpot_s = measured(rows)
        self.reasons = self.runs.predict(start).reasons
        self.usable: Mask = np.array([reason is None for reason in self.reasons], bool)
        self.queued = saturated(rows)
        self.contradictory = contradictory(rows)

    def fit(self, keep: Mask) -> _Fitted:
        """The profile that fits the kept runs; numbers that these pull too little to leave their prior stay."""
        keep = keep & self.usable
        weight = self._weights(keep)
        start = self.start.numbers()
        origin = np.log([number.value for number in start.values()])
        known = any(row.gpu in self.start.gpus for row, kept in zip(self.rows, keep.tolist(), strict=True) if kept)
        sigma = np.array([number.log_sigma for number in start.values()]) * (1 if known else _STRANGE)
        base = self._residuals(self.start, keep, weight)
        slopes = np.empty((len(base), len(start)))
        for i, place in enumerate(start):
            stepped = self._with(start, {place: origin[i] + _STEP})
            slopes[:, i] = (self._residuals(stepped, keep, weight) - base) / _STEP
        # However runs err, they pull a number by at most the sum of its slopes, and its prior holds it by this much.
        moves = np.abs(slopes).sum(axis=0) > _PRIOR / sigma
        names = [place for place, moving in zip(start, moves.tolist(), strict=True) if moving]
        kept = tuple(place for place in start if place not in set(names))
        if not names:
            return _Fitted(self.start, kept, unfinished=False)

        def residuals(point: Vector) -> Vector:
            profile = self._with(start, dict(zip(names, point.tolist(), strict=True)))
            return np.concatenate(
                [self._residuals(profile, keep, weight), _PRIOR * (point - origin[moves]) / sigma[moves]]
            )

        least_squares = _least_squares()
        options = {"loss": "soft_l1", "x_scale": "jac", "diff_step": _STEP, "ftol": 1e-3}
        found = least_squares(residuals, origin[moves], max_nfev=_MAX_EVALUATIONS, **options)
        fitted = {}
        for place, value in zip(names, np.exp(found.x).tolist(), strict=True):
            fitted[place] = replace(start[place], value=float(f"{value:.{DIGITS}g}"), basis="fitted")
        return _Fitted(self.start.with_numbers(fitted), kept, unfinished=found.status == 0)

    def _with(self, start: Mapping[str, Any], logs: Mapping[str, float]) -> Profile:
        return self.start.with_numbers(
            {place: replace(start[place], value=math.exp(log)) for place, log in logs.items()}
        )

    def _weights(self, keep: Mask) -> Vector:
        """Say of each run, such that a model's runs on one GPU under one engine together have about that of one."""
        models = _labels(self.rows, "model")
        labels = [(model, row.gpu, row.engine) for model, row in zip(models, self.rows, strict=True)]
        count: dict[Any, int] = {}
        for label, kept in zip(labels, keep.tolist(), strict=True):
            count[label] = count.get(label, 0) + kept
        weight = np.array([math.sqrt(_GROUP_SAY / (count[label] + _FEW)) for label in labels])
        return weight * np.where(self.queued | self.contradictory, _DOUBTED_WEIGHT, 1.0)

    def _residuals(self, profile: Profile, keep: Mask, weight: Vector) -> Vector:
        found = self.runs.predict(profile)
        tpot = keep & ~np.isnan(self.tpot_s)
        ttft = keep & ~np.isnan(self.ttft_s) & ~self.queued
        return (
            np.concatenate(
                [
                    (np.log(found.tpot_s / self.tpot_s) * weight)[tpot],
                    (np.log(found.ttft_s / self.ttft_s) * weight * _TTFT_WEIGHT)[ttft],
                ]
            )
            / _ERROR
        )


def _least_squares() -> Any:
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise InputError(
            "calibration needs SciPy, which is not installed; run `pip install cascadia-fast[calibrate]`"
        ) from None
    return least_squares


def _labels(rows: Sequence[Measurement], by: By) -> list[str]:
    """What each run belongs to; all names of one architecture are one model."""
    if by == "gpu":
        return [row.gpu for row in rows]
    if by == "tp":
        gpus = [row.tp * row.attention_dp * row.pp for row in rows]
        return [f"{count} GPU" if count == 1 else f"{count} GPUs" for count in gpus]
    names = _model_names(rows)
    prints = {model: fingerprint(catalog.model(model).architecture) for model in {row.model for row in rows}}
    return [", ".join(names[prints[row.model]]) for row in rows]


def _model_names(rows: Sequence[Measurement]) -> dict[str, tuple[str, ...]]:
    """Catalog names of the measured models by the fingerprint of their architecture."""
    names: dict[str, set[str]] = {}
    for model in map(catalog.model, {row.model for row in rows}):
        names.setdefault(fingerprint(model.architecture), set()).add(model.name)
    return {architecture: tuple(sorted(found)) for architecture, found in names.items()}


def _by_setup(rows: Sequence[Measurement]) -> list[list[int]]:
    """Places of the runs of each setup, whatever they measured."""
    setups: dict[Any, list[int]] = {}
    for place, (row, model) in enumerate(zip(rows, _labels(rows, "model"), strict=True)):
        key = replace(row, source="", model=model, engine_version=None, ttft_s=None, tpot_s=None)
        setups.setdefault(key, []).append(place)
    return list(setups.values())


def contradictory(rows: Sequence[Measurement]) -> Mask:
    """Runs of setups that were measured with TPOTs far apart; shape (rows,)."""
    found = np.full(len(rows), False)
    for places in _by_setup(rows):
        found[places] = apart([rows[place] for place in places])
    return found


def repeats_merged(rows: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Each setup once, with the geometric mean of its times; contradictory runs stay, each time once."""
    merged: list[Measurement] = []
    for places in _by_setup(rows):
        # The same run may stand under two names of its model.
        same = list({(row.ttft_s, row.tpot_s): row for row in (rows[place] for place in reversed(places))}.values())
        if apart(same):
            merged += same
        else:
            ttft_s, tpot_s = _mean([row.ttft_s for row in same]), _mean([row.tpot_s for row in same])
            merged.append(replace(same[0], ttft_s=ttft_s, tpot_s=tpot_s))
    return tuple(merged)


def _mean(times: Sequence[float | None]) -> float | None:
    known = [math.log(time) for time in times if time is not None]
    return math.exp(sum(known) / len(known)) if known else None


def _fold_errors(folds: Sequence[Fold]) -> dict[str, Any]:
    if not folds:
        return {}
    rows = [row for fold in folds for row in fold.rows]
    whole = Prediction(
        np.concatenate([fold.prediction.ttft_s for fold in folds]),
        np.concatenate([fold.prediction.tpot_s for fold in folds]),
        tuple(reason for fold in folds for reason in fold.prediction.reasons),
    )
    return {**_by_kind(rows, whole), "folds": {fold.left_out: _sound(fold.rows, fold.prediction) for fold in folds}}


def _by_kind(rows: Sequence[Measurement], prediction: Prediction) -> dict[str, Any]:
    moe = np.array([catalog.model(row.model).architecture.experts > 0 for row in rows], bool)
    kinds = {"all": np.full(len(rows), True), "dense": ~moe, "moe": moe}
    return {kind: _sound(rows, prediction, keep) for kind, keep in kinds.items() if keep.any()}


def _sound(rows: Sequence[Measurement], prediction: Prediction, keep: Mask | None = None) -> dict[str, Any]:
    """Errors over the runs that neither queued nor contradict others."""
    sound = ~saturated(rows) & ~contradictory(rows)
    sound = sound if keep is None else sound & keep
    ttft_s, tpot_s = measured(rows)
    return {
        "ttft": errors(prediction.ttft_s[sound], ttft_s[sound]),
        "tpot": errors(prediction.tpot_s[sound], tpot_s[sound]),
    }


def _groups(
    rows: Sequence[Measurement], prediction: Prediction, names: Mapping[str, tuple[str, ...]]
) -> tuple[Group, ...]:
    """What was measured, for the profile's statuses."""
    found = []
    models = _labels(rows, "model")
    labels = [(row.gpu, row.engine, row.precision, model) for row, model in zip(rows, models, strict=True)]
    for label in sorted(set(labels)):
        keep = np.array([other == label for other in labels]) & np.array([not reason for reason in prediction.reasons])
        inside = [row for row, kept in zip(rows, keep.tolist(), strict=True) if kept]
        if not inside:
            continue
        architecture = catalog.model(inside[0].model).architecture
        kind: Literal["dense", "moe", "mla"] = "moe" if architecture.experts else "dense"
        remaining = _sound(rows, prediction, keep)
        if remaining["tpot"]["predicted"] == 0:
            continue  # runs that all queued, or contradict each other, have taught nothing
        found.append(
            Group(
                gpu=label[0],
                engine=label[1],
                weights=label[2],
                models=names[fingerprint(architecture)],
                architecture=fingerprint(architecture),
                kind="mla" if architecture.kv_lora_rank else kind,
                shapes=tuple(sorted({(row.tp, row.pp, row.attention_dp, row.ep) for row in inside})),
                kv=tuple(sorted({row.kv for row in inside})),
                tokens_in=_range([row.tokens_in for row in inside]),
                tokens_out=_range([row.tokens_out for row in inside]),
                concurrency=_range([row.concurrency for row in inside]),
                rows=len(inside),
                tpot_error=remaining["tpot"]["median_abs_error"],
                ttft_error=remaining["ttft"]["median_abs_error"],
            )
        )
    return tuple(found)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _residuals(
    rows: Sequence[Measurement], prediction: Prediction, validation: Mapping[str, Any]
) -> tuple[Residual, ...]:
    lines = {f"{kind} models": found for kind, found in _by_kind(rows, prediction).items()}
    for by, whole in validation.items():
        kinds = {kind: found for kind, found in whole.items() if kind != "folds"}
        lines |= {f"{kind} models, by {by} left out": found for kind, found in kinds.items()}
    return tuple(
        Residual(
            of=f"{metric}, {label}",
            rows=found[metric]["predicted"],
            **{name: found[metric][name] for name in ("median_abs_error", "p90_abs_error", "bias", "spearman")},
        )
        for label, found in lines.items()
        for metric in ("tpot", "ttft")
    )
