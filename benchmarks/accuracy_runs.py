"""Measured serving runs beside several predictions of them, and the tables that say how far these are off."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import catalog
from cascadia_fast.calibration import By, Fold, contradictory, cross_validate, repeats_merged
from cascadia_fast.closed_loop import Runs
from cascadia_fast.errors import InputError
from cascadia_fast.evaluation import errors, measured, saturated
from cascadia_fast.measurements import Measurement, Measurements
from cascadia_fast.profile import Profile
from cascadia_fast.summary_layout import Table

LEFT_OUT: dict[By, str] = {"model": "model left out", "tp": "number of GPUs left out", "gpu": "GPU type left out"}
METRICS = {"tpot": "TPOT", "ttft": "TTFT"}
KINDS = ("dense", "MoE", "all")
NOTHING = "–"
_RIVAL_COLUMNS = ("id", "pred_ttft_ms", "pred_tpot_ms", "error")
_REASON_LENGTH = 90

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictor:
    """What one model predicts of every run, NaN where it has no prediction; shape (runs,) each.

    `reasons` counts why there is none.
    """

    name: str
    ttft_s: Vector
    tpot_s: Vector
    reasons: Mapping[str, int]

    def of(self, metric: str) -> Vector:
        return self.ttft_s if metric == "ttft" else self.tpot_s


@dataclass(frozen=True)
class Comparison:
    """Runs, repeats merged, with their predictions.

    Parameters
    ----------
    rows, ttft_s, tpot_s
        The runs and what they measured, NaN where they did not.
    fitted
        By the profile.
    left_out
        By fits that saw nothing of the model, the number of GPUs or the GPU type; without what has only one value.
    rival
        By another tool.
    moe, queued, contradictory
        Which runs are of mixtures of experts, spent their time queueing, contradict others of the same setup.
    statuses
        How far the profile's predictions can be trusted.
    """

    rows: tuple[Measurement, ...]
    ttft_s: Vector
    tpot_s: Vector
    fitted: Predictor
    left_out: Mapping[By, Predictor]
    rival: Predictor | None
    moe: Mask
    queued: Mask
    contradictory: Mask
    statuses: tuple[str | None, ...]

    @property
    def counted(self) -> Mask:
        """Runs whose errors say something about the model."""
        return ~self.queued & ~self.contradictory

    @property
    def predictors(self) -> list[Predictor]:
        rival = [self.rival] if self.rival else []
        return [self.fitted, *self.left_out.values(), *rival]

    @property
    def blind(self) -> Predictor | None:
        """The predictions to judge the model by: of runs whose model it never saw."""
        return self.left_out.get("model")

    def kind(self, kind: str) -> Mask:
        return {"dense": ~self.moe, "MoE": self.moe}.get(kind, np.full(len(self.rows), True))

    def errors(self, predictor: Predictor, metric: str, keep: Mask) -> dict[str, Any]:
        truth_s = self.ttft_s if metric == "ttft" else self.tpot_s
        return errors(predictor.of(metric)[keep], truth_s[keep])

    def shared(self, predictors: Sequence[Predictor]) -> Mask:
        """Runs that all of them predict."""
        missing = [np.isnan(predictor.ttft_s) | np.isnan(predictor.tpot_s) for predictor in predictors]
        found: Mask = ~np.any(missing, axis=0)
        return found


def compare(
    measurements: Measurements,
    profile: Profile,
    rival: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Predict every run with the profile, with fits that leave it out, and as another tool did."""
    rows = repeats_merged(measurements.rows)
    if not rows:
        first = measurements.rejected[0]
        raise InputError(f"no run can be used, such as {first.source}: {first.reason}")
    beside = read_rival(rival, rows) if rival else None
    runs = Runs(rows)
    found = runs.predict(profile)
    ttft_s, tpot_s = measured(rows)
    return Comparison(
        rows=rows,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        fitted=Predictor(f"profile {profile.name!r}", found.ttft_s, found.tpot_s, _counted(found.reasons)),
        left_out=_left_out(rows, _folds(measurements, say)),
        rival=beside,
        moe=np.array([catalog.model(row.model).architecture.experts > 0 for row in rows], bool),
        queued=saturated(rows),
        contradictory=contradictory(rows),
        statuses=tuple(status.level if status else None for status in runs.statuses(profile)),
    )


def _folds(measurements: Measurements, say: Callable[[str], None]) -> list[Fold]:
    """Leave out models here and all else in a second process: each takes half of the time."""
    start = Profile.kernels()
    with ProcessPoolExecutor(1) as pool:
        others = pool.submit(cross_validate, measurements, start, by=("tp", "gpu"))
        folds = cross_validate(measurements, start, by=("model",), progress=say)
        say("leaving out numbers of GPUs and GPU types")
        return folds + others.result()


def _left_out(rows: Sequence[Measurement], folds: Sequence[Fold]) -> dict[By, Predictor]:
    places = {row: place for place, row in enumerate(rows)}
    found: dict[By, Predictor] = {}
    for by, name in LEFT_OUT.items():
        of_kind = [fold for fold in folds if fold.by == by]
        if not of_kind:
            continue
        ttft_s, tpot_s = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        for fold in of_kind:
            inside = [places[row] for row in fold.rows]
            ttft_s[inside], tpot_s[inside] = fold.prediction.ttft_s, fold.prediction.tpot_s
        reasons = _counted([reason for fold in of_kind for reason in fold.prediction.reasons])
        found[by] = Predictor(name, ttft_s, tpot_s, reasons)
    return found


def read_rival(path: Path, rows: Sequence[Measurement]) -> Predictor:
    """Read another tool's predictions of the runs, by their ids.

    Raises
    ------
    InputError
        The file cannot be read, lacks a column, holds what is no time, or predicts none of the runs.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            missing = [name for name in _RIVAL_COLUMNS if name not in (lines.fieldnames or ())]
            if missing:
                raise InputError(f"{path} has no column {missing[0]!r}; give {', '.join(_RIVAL_COLUMNS)}")
            by_id = {line["id"]: line for line in lines}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); give a CSV file of predictions") from None
    known = [by_id.get(row.source) for row in rows]
    if not any(known):
        raise InputError(f"{path} predicts none of the {len(rows)} runs; its ids must be theirs")
    times_s = [[_seconds(line, name, path) for name in _RIVAL_COLUMNS[1:3]] for line in known]
    ttft_s, tpot_s = np.array(times_s, float).T
    absent = [
        _said(line) if math.isnan(first_s) or math.isnan(each_s) else None
        for line, (first_s, each_s) in zip(known, times_s, strict=True)
    ]
    name = path.stem.removesuffix("_predictions").replace("_", " ")
    return Predictor(name, ttft_s, tpot_s, _counted(absent))


def _seconds(line: Mapping[str, str] | None, column: str, path: Path) -> float:
    text = (line or {}).get(column) or ""
    if not text:
        return math.nan
    try:
        time_s = float(text) / 1e3
    except ValueError:
        time_s = -1.0
    if not 0 < time_s < math.inf:
        raise InputError(f"{column} of {line and line['id']} in {path} is {text!r}; give milliseconds or nothing")
    return time_s


def _said(line: Mapping[str, str] | None) -> str:
    text = (line or {}).get("error") or "no reason given"
    return text if len(text) <= _REASON_LENGTH else f"{text[: _REASON_LENGTH - 1]}…"


def _counted(reasons: Sequence[str | None]) -> dict[str, int]:
    return dict(Counter(reason for reason in reasons if reason).most_common())


def headline(comparison: Comparison, metric: str) -> Table:
    """Errors of every predictor, dense, MoE and all, over the runs that count."""
    keep = comparison.counted
    return _errors_table(comparison, metric, [(kind, comparison.kind(kind) & keep) for kind in KINDS])


def same_runs(comparison: Comparison, metric: str) -> Table | None:
    """Errors over the runs that count and that the other tool predicts too."""
    if comparison.rival is None:
        return None
    keep = comparison.counted & comparison.shared(comparison.predictors)
    return _errors_table(comparison, metric, [(kind, comparison.kind(kind) & keep) for kind in KINDS])


def apart(comparison: Comparison, metric: str) -> Table:
    """Errors over the runs that do not count."""
    masks = (("queued", comparison.queued), ("contradictory", comparison.contradictory & ~comparison.queued))
    return _errors_table(comparison, metric, masks)


def _errors_table(comparison: Comparison, metric: str, masks: Sequence[tuple[str, Mask]]) -> Table:
    header = ("of", "predicted by", "runs", "predicted", "median", "mean", "90th", "bias", "Spearman")
    rows = [
        (kind, predictor.name, *_figures(comparison.errors(predictor, metric, keep)))
        for kind, keep in masks
        if keep.any()
        for predictor in comparison.predictors
    ]
    return Table(header, tuple(rows), frozenset(header[:2]))


def _figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (percent(found[name]) for name in ("median_abs_error", "mean_abs_error", "p90_abs_error"))
    return (
        f"{found['rows']:,}",
        f"{found['predicted']:,}",
        *shares,
        percent(found["bias"], "+"),
        rank(found["spearman"]),
    )


def brief(comparison: Comparison) -> Table:
    """One line per metric and kind, one column per predictor: median absolute error (Spearman)."""
    ours = [predictor for predictor in comparison.predictors if predictor is not comparison.rival]
    header = ("median error (Spearman)", "runs", "profile", *(predictor.name for predictor in ours[1:]))
    return _brief_table(comparison, header, ours, comparison.counted)


def brief_same_runs(comparison: Comparison) -> Table | None:
    """As `brief`, beside the other tool on the runs that it predicts too."""
    if comparison.rival is None:
        return None
    blind = [comparison.blind] if comparison.blind else []
    shown = [comparison.fitted, *blind, comparison.rival]
    header = ("median error (Spearman)", "runs both predict", "profile", *(predictor.name for predictor in shown[1:]))
    return _brief_table(comparison, header, shown, comparison.counted & comparison.shared(comparison.predictors))


def _brief_table(
    comparison: Comparison, header: tuple[str, ...], predictors: Sequence[Predictor], counted: Mask
) -> Table:
    rows = []
    for metric, name in METRICS.items():
        for kind in KINDS:
            keep = counted & comparison.kind(kind)
            found = [comparison.errors(predictor, metric, keep) for predictor in predictors]
            cells = (f"{percent(one['median_abs_error'])} ({rank(one['spearman'])})" for one in found)
            rows.append((f"{name}, {kind}", f"{max(one['predicted'] for one in found):,}", *cells))
    return Table(header, tuple(rows), frozenset(header[:1]))


def groups(comparison: Comparison) -> Table:
    """Errors per model, GPU, engine and format over the runs that count, and how many do not."""
    blind, rival = comparison.blind, comparison.rival
    header: tuple[str, ...] = ("model", "GPU", "engine", "weights", "runs", "predicted", "not counted")
    header += ("status", "TPOT median", "TPOT 90th", "TPOT bias", *(["TPOT, model left out"] if blind else []))
    header += ((f"TPOT, {rival.name}",) if rival else ()) + ("TTFT median", "TTFT bias")
    header += (f"TTFT, {rival.name}",) if rival else ()
    labels = [(row.model, row.gpu, row.engine, row.weights) for row in comparison.rows]
    rows = []
    for label in sorted(set(labels)):
        every = np.array([other == label for other in labels])
        keep = every & comparison.counted
        tpot, ttft = (comparison.errors(comparison.fitted, metric, keep) for metric in METRICS)
        cells = [percent(tpot["median_abs_error"]), percent(tpot["p90_abs_error"]), percent(tpot["bias"], "+")]
        if blind:
            cells.append(percent(comparison.errors(blind, "tpot", keep)["median_abs_error"]))
        cells += [_coverage(comparison, "tpot", keep)] if rival else []
        cells += [percent(ttft["median_abs_error"]), percent(ttft["bias"], "+")]
        cells += [_coverage(comparison, "ttft", keep)] if rival else []
        counts = (every, every & comparison.shared([comparison.fitted]), every & ~comparison.counted)
        numbers = [f"{int(mask.sum()):,}" for mask in counts]
        name = label[0].rsplit("/", 1)[-1]
        rows.append((name, *label[1:], *numbers, _statuses(comparison, every), *cells))
    return Table(header, tuple(rows), frozenset({*header[:4], "status"}))


def _coverage(comparison: Comparison, metric: str, keep: Mask) -> str:
    """The other tool's median error, and of how many runs where not of all."""
    assert comparison.rival is not None
    found = comparison.errors(comparison.rival, metric, keep)
    of = "" if found["predicted"] == found["rows"] else f" ({found['predicted']} of {found['rows']})"
    return f"{percent(found['median_abs_error'])}{of}"


def _statuses(comparison: Comparison, keep: Mask) -> str:
    counts = Counter(status or "none" for status, kept in zip(comparison.statuses, keep.tolist(), strict=True) if kept)
    return counts.most_common(1)[0][0] if len(counts) == 1 else ", ".join(f"{n} {s}" for s, n in sorted(counts.items()))


def percent(share: float | None, sign: str = "") -> str:
    """A share in percent; infinite where a model calls unstable what a simulation does not."""
    if share is None:
        return NOTHING
    return "unbounded" if math.isinf(share) else f"{100 * share:{sign},.1f} %"


def whole(share: float) -> str:
    """A limit in percent."""
    return f"{100 * share:.0f} %"


def rank(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
