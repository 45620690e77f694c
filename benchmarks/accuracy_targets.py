"""What the latency model must reach, what it reaches, and where choosing a shape by it costs throughput."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy_load import LIMITS, Line
from benchmarks.accuracy_runs import NOTHING, Comparison, percent, rank, whole
from benchmarks.choosing import WITHIN, Choice, group_losses, share_within
from cascadia_fast.summary_layout import Table

TPOT_TARGETS = {"dense": 0.08, "MoE": 0.13}
TPOT_RANK_TARGET = 0.97
TTFT_TARGET, TTFT_RANK_TARGET = 0.25, 0.85
CHOICE_TARGET = 0.9

Row = tuple[str, str, str, str]


def reach(comparison: Comparison, choices: Sequence[Choice], load: Sequence[Line]) -> Table:
    """Every target with the figure it is about."""
    rows = [*_blind_rows(comparison), _predicted_row(comparison), _choice_row(choices)]
    rows += [_load_row(load)] if load else []
    header = ("what", "target", "reached", "met")
    return Table(header, tuple(rows), frozenset(header[:1]))


def _blind_rows(comparison: Comparison) -> list[Row]:
    blind = comparison.blind
    if blind is None:
        return []
    rows = []
    for kind, target in TPOT_TARGETS.items():
        keep = comparison.counted & comparison.kind(kind)
        if keep.any():
            median = comparison.errors(blind, "tpot", keep)["median_abs_error"]
            rows.append(_most(f"TPOT, median error, {kind}, model left out", target, median))
    tpot, ttft = (comparison.errors(blind, metric, comparison.counted) for metric in ("tpot", "ttft"))
    return [
        *rows,
        _least("TPOT, Spearman, model left out", TPOT_RANK_TARGET, tpot["spearman"]),
        _most("TTFT, median error, model left out", TTFT_TARGET, ttft["median_abs_error"]),
        _least("TTFT, Spearman, model left out", TTFT_RANK_TARGET, ttft["spearman"]),
    ]


def _most(what: str, target: float, found: float | None) -> Row:
    return what, f"≤ {whole(target)}", percent(found), _met(found is not None and found <= target)


def _least(what: str, target: float, found: float | None) -> Row:
    return what, f"≥ {target:.2f}", rank(found), _met(found is not None and found >= target)


def _predicted_row(comparison: Comparison) -> Row:
    predicted = int(comparison.shared([comparison.fitted]).sum())
    reasoned = sum(comparison.fitted.reasons.values())
    said = f"{predicted:,} of {len(comparison.rows):,}" + (f", {reasoned:,} with a reason" if reasoned else "")
    return "runs predicted, or with a reason why not", "all", said, _met(predicted + reasoned == len(comparison.rows))


def _choice_row(choices: Sequence[Choice]) -> Row:
    what = f"groups whose chosen shape is within {whole(WITHIN)} of the measured best"
    target = f"≥ {whole(CHOICE_TARGET)}"
    if not choices:
        return what, target, NOTHING, NOTHING
    losses = group_losses(choices)
    share = share_within(losses.values())
    return what, target, f"{percent(share)} of {len(losses)}", _met(share >= CHOICE_TARGET)


def _load_row(load: Sequence[Line]) -> Row:
    met = sum(line.met for line in load)
    return f"p95 under load: strata × bands {LIMITS}", "all", f"{met} of {len(load)}", _met(met == len(load))


def _met(met: bool) -> str:
    return "yes" if met else "no"


def misses(choices: Sequence[Choice]) -> Table:
    """Choices that lose more than the target allows, worst first."""
    header = (
        *("model", "GPU", "engine", "weights", "prompt", "answer", "TPOT bound", "chosen", "measured best"),
        "throughput lost",
    )
    rows = []
    for choice in sorted(choices, key=lambda choice: -choice.loss):
        if choice.loss <= WITHIN:
            break
        model, gpu, engine, weights, tokens_in, tokens_out = choice.group
        place = (model.rsplit("/", 1)[-1], gpu, engine, weights, f"{tokens_in:,.0f}", f"{tokens_out:,.0f}")
        bound = f"{choice.bound_s * 1e3:.1f} ms"
        rows.append((*place, bound, _shape(choice.chosen), _shape(choice.best), percent(choice.loss)))
    return Table(header, tuple(rows), frozenset({*header[:4], "chosen", "measured best"}))


def _shape(text: str) -> str:
    """A shape without the degrees that are one, but for its tensor parallelism."""
    first, *others = text.split()
    return " ".join([first, *(part for part in others if part.strip("abcdefghijklmnopqrstuvwxyz_") != "1")])
