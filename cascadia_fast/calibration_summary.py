"""A calibration or an evaluation as text for people: tables of errors, what was left out, what stayed as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cascadia_fast.summary_blocks import Block
from cascadia_fast.summary_blocks import plain as plain
from cascadia_fast.summary_blocks import show as show
from cascadia_fast.summary_layout import Table

if TYPE_CHECKING:
    from cascadia_fast.calibration import Calibrated

_NOTHING = "–"
_GROUP = ("model", "gpu", "engine", "precision")
_LEFT = frozenset({*_GROUP, "runs that", "left out", "reason"})
_LEFT_OUT = {"model": "one model at a time", "tp": "one number of GPUs at a time", "gpu": "one GPU type at a time"}
# Reasons differ in their figures from run to run; the counts of the most frequent ones tell what to mend.
_REASONS_SHOWN = 10


def evaluation_text(found: Mapping[str, Any]) -> list[Block]:
    """What `calibration.evaluate` found."""
    counted = ", ".join(f"{count:,} {status}" for status, count in found["overall"]["statuses"].items())
    groups: list[Block] = ["Median errors by group", _groups_table(found["groups"])] if found["groups"] else []
    return [
        f"Profile {found['profile']!r} against {_plural(found['rows'], 'measured run')}"
        + (f" ({counted})" if counted else "")
        + "; errors are predicted over measured minus one",
        _metrics_table("runs that", {name: found[name] for name in ("overall", "unsaturated", "saturated")}),
        *groups,
        *_unpredicted(found),
        *_notes(found["notes"]),
    ]


def calibration_text(fitted: Calibrated) -> list[Block]:
    """What `calibration.fit` did."""
    before, after = fitted.before, fitted.after
    lines: list[Block] = [
        f"Fitted to {_plural(after['rows'], 'run')}; median absolute errors before (profile {before['profile']!r}) and "
        "after",
        _before_and_after(before, after),
    ]
    for by, validation in fitted.cross_validation.items():
        if validation:
            kinds = {name: metrics for name, metrics in validation.items() if name != "folds"}
            lines += [
                "Cross-validation: errors of runs that the fit did not see, each fit started from the kernel timings, "
                f"leaving out {_LEFT_OUT[by]} (without runs that queued or contradict others)",
                _metrics_table("left out", kinds | dict(validation["folds"])),
            ]
        else:
            lines.append(f"No cross-validation by {by}: the runs have only one")
    if fitted.kept:
        total = len(fitted.profile.numbers())
        lines.append(
            f"{len(fitted.kept)} of {total} numbers stay at their start, because the runs pull them too little: "
            f"{_by_section(fitted.kept)}"
        )
    return [*lines, *_unpredicted(after), *_notes(after["notes"])]


def _metrics_table(first: str, lines: Mapping[str, Mapping[str, Any]]) -> Table:
    header = (first, "runs", "TPOT median", "mean", "bias", "Spearman", "TTFT median", "mean", "bias", "Spearman")
    rows = tuple((_RUNS_THAT.get(name, name), *_metrics(found)) for name, found in lines.items())
    return Table(header, rows, _LEFT)


_RUNS_THAT = {"overall": "are measured", "unsaturated": "did not queue", "saturated": "queued"}


def _groups_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    header = (*_GROUP, "runs", "TPOT", "bias", "Spearman", "TTFT", "bias", "Spearman")
    rows = []
    for group in groups:
        runs, tpot, _, *tpot_rest, ttft, _, ttft_bias, ttft_rank = _metrics(group)
        rows.append((*_named(group), runs, tpot, *tpot_rest, ttft, ttft_bias, ttft_rank))
    return Table(header, tuple(rows), _LEFT)


def _named(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The group, its model by the end of its Hugging Face id or of the path of its config."""
    model = str(group["model"])
    parts = model.removesuffix("/config.json").split("/")
    return (parts[-1], *(str(group[name]) for name in _GROUP[1:]))


def _metrics(found: Mapping[str, Any]) -> tuple[str, ...]:
    cells = [_coverage(found)]
    for metric in ("tpot", "ttft"):
        errors = found[metric]
        cells += [_percent(errors[name]) for name in ("median_abs_error", "mean_abs_error")]
        cells += [_percent(errors["bias"], sign="+"), _rank(errors["spearman"])]
    return tuple(cells)


def _coverage(found: Mapping[str, Any]) -> str:
    """How many runs were measured, and of how many of them there is a prediction where it is not all."""
    rows, predicted = (max(found[metric][name] for metric in ("tpot", "ttft")) for name in ("rows", "predicted"))
    return f"{rows:,}" if predicted == rows else f"{predicted:,} of {rows:,}"


def _before_and_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    header = (*_GROUP, "runs", "TPOT before", "TPOT after", "TTFT before", "TTFT after")
    rows = []
    for name, one, other in (
        *zip([None] * len(before["groups"]), before["groups"], after["groups"], strict=True),
        ("all runs", before["overall"], after["overall"]),
        ("without queueing", before["unsaturated"], after["unsaturated"]),
    ):
        said = _named(one) if name is None else (name, "", "", "")
        errors = (_percent(side[metric]["median_abs_error"]) for metric in ("tpot", "ttft") for side in (one, other))
        rows.append((*said, _coverage(other), *errors))
    return Table(header, tuple(rows), _LEFT)


def _by_section(places: Sequence[str]) -> str:
    """``dense.fp8.gemm_s`` and its like, by what comes before the last dot."""
    sections: dict[str, list[str]] = {}
    for place in places:
        section, _, name = place.rpartition(".")
        sections.setdefault(section, []).append(name)
    return "; ".join(f"{section}: {', '.join(names)}" for section, names in sections.items())


def _unpredicted(found: Mapping[str, Any]) -> list[Block]:
    reasons = list(found["unpredicted_reasons"].items())
    if not reasons:
        return []
    rest = sum(count for _, count in reasons[_REASONS_SHOWN:])
    rows = [(f"{count:,}", reason) for reason, count in reasons[:_REASONS_SHOWN]]
    rows += [(f"{rest:,}", "other reasons (--json prints each)")] if rest else []
    total = sum(count for _, count in reasons)
    lines = [f"{count.rjust(len(rows[0][0]))}  {reason}" for count, reason in rows]
    return ["\n".join([f"{_plural(total, 'run')} without a prediction, by reason:", *lines])]


def _notes(notes: Sequence[str]) -> list[Block]:
    return ["\n".join(["Notes:", *(f"- {note}" for note in notes)])] if notes else []


def _percent(share: float | None, sign: str = "") -> str:
    return _NOTHING if share is None else f"{100 * share:{sign}.1f} %"


def _rank(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.3f}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
