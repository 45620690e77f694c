"""The sections of the accuracy report."""

from __future__ import annotations

import hashlib
import math
import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks import accuracy_load, accuracy_plots, accuracy_runs, accuracy_targets
from benchmarks.accuracy_page import Captioned, Listing, Part, Picture, Section, Text
from benchmarks.accuracy_runs import METRICS, Comparison, Predictor, percent, whole
from benchmarks.choosing import WITHIN, Choice, group_losses, share_within
from cascadia_fast.measurements import Measurements
from cascadia_fast.profile import Profile
from cascadia_fast.summary_layout import Table

BAND = 0.1
LIBRARIES = ("cascadia-fast", "numpy", "scipy", "matplotlib")
ERRORS = "Errors are predicted over measured minus one; medians, means and 90th percentiles are of their sizes."


@dataclass(frozen=True)
class Inputs:
    """What the report is made from: measurement files and the optional other files."""

    tables: Sequence[Path]
    against: Path | None
    load: Path | None
    profile: Path | None

    @property
    def command(self) -> str:
        """The command, with files by name: where they lie is this machine's business."""
        words = ["python", "-m", "benchmarks.accuracy", *(path.name for path in self.tables)]
        for option in ("against", "load", "profile"):
            path = getattr(self, option)
            words += [f"--{option}", path.name] if path else []
        return shlex.join(words)


@dataclass(frozen=True)
class Found:
    """Everything the report shows."""

    measurements: Measurements
    profile: Profile
    comparison: Comparison
    choices: Sequence[Choice]
    answers: Sequence[accuracy_load.Answer]

    @property
    def load(self) -> list[accuracy_load.Line]:
        return accuracy_load.lines(self.answers)


def headline(found: Found) -> list[tuple[str, Table]]:
    """Return the tables that the terminal shows too, with their titles."""
    comparison = found.comparison
    tables = [
        ("Targets", accuracy_targets.reach(comparison, found.choices, found.load)),
        ("Median absolute error (Spearman's rank correlation)", accuracy_runs.brief(comparison)),
    ]
    same = accuracy_runs.brief_same_runs(comparison)
    if same is not None and comparison.rival is not None:
        tables.append((f"The same, on the runs that {comparison.rival.name} predicts too", same))
    if found.answers:
        tables.append(("p95 under load against simulation, errors", accuracy_load.brief_load_table(found.load)))
    return tables


def sections(found: Found, inputs: Inputs) -> list[Section]:
    """Return the whole report."""
    return [
        _short(found),
        *_error_sections(found.comparison, found.measurements),
        _choice_section(found.choices),
        *([_load_section(found.answers, found.load)] if found.answers else []),
        _provenance(inputs, found.measurements, found.profile),
    ]


def summary(found: Found) -> str:
    """Return how many runs there are, and how many of them say something about the model."""
    comparison, measurements = found.comparison, found.measurements
    contradictory = int((comparison.contradictory & ~comparison.queued).sum())
    return (
        f"{len(measurements.rows):,} measured serving runs, {len(comparison.rows):,} once repeats are merged: "
        f"{int(comparison.counted.sum()):,} count, {int(comparison.queued.sum()):,} spent their time queueing and "
        f"{contradictory:,} contradict others of the same setup (shown apart); {len(measurements.rejected):,} cannot "
        f"be used. {ERRORS}"
    )


def _short(found: Found) -> Section:
    return Section("In short", [Text(_seen(found)), *(Captioned(title, table) for title, table in headline(found))])


def _seen(found: Found) -> str:
    """Which figures are of runs that the numbers were fitted to."""
    training = {digest for _, digest in found.profile.provenance.files}
    own = any(digest in training for _, digest in found.measurements.files)
    seen = "was fitted to these very runs" if own else "was not fitted to these files"
    blind = ", ".join(predictor.name for predictor in found.comparison.left_out.values())
    beside = (
        f"Fits that start from kernel timings and do not see the runs they predict: {blind}."
        if blind
        else "The runs are too alike to leave a model, a number of GPUs or a GPU type out of a fit."
    )
    return f"Profile {found.profile.name!r} {seen}. {beside}"


def _error_sections(comparison: Comparison, measurements: Measurements) -> list[Section]:
    tables: list[Part] = []
    for metric, name in METRICS.items():
        tables.append(Captioned(f"{name}, runs that count", accuracy_runs.headline(comparison, metric)))
        same = accuracy_runs.same_runs(comparison, metric)
        if same is not None:
            tables.append(Captioned(f"{name}, runs that count and that every one predicts", same))
        if not comparison.counted.all():
            tables.append(Captioned(f"{name}, runs that do not count", accuracy_runs.apart(comparison, metric)))
    return [
        Section("Errors", [_distributions(comparison), *tables]),
        Section("Predicted against measured", _scatters(comparison)),
        Section("Groups", [Text(_GROUPS), Captioned("Model, GPU, engine, weights", accuracy_runs.groups(comparison))]),
        Section("Without a prediction, and remarks", _reasons(comparison, measurements)),
    ]


_GROUPS = (
    "Errors are over runs that count, repeats merged. The status says how far the profile's predictions can be "
    "trusted: calibrated (measured like this), interpolated (GPU, engine and format measured, other model or "
    "parallelism), transferred (GPU, engine or format never measured), roofline (no serving run at all)."
)


def _distributions(comparison: Comparison) -> Picture:
    shown = [comparison.fitted, *(one for one in (comparison.blind, comparison.rival) if one)]
    counted = comparison.counted & comparison.shared(shown)
    panels = {}
    for metric, name in METRICS.items():
        truth_s = comparison.ttft_s if metric == "ttft" else comparison.tpot_s
        for kind in ("dense", "MoE"):
            keep = counted & comparison.kind(kind)
            if keep.any():
                lines = {one.name: one.of(metric)[keep] / truth_s[keep] - 1 for one in shown}
                panels[f"{name}, {kind}: {int(keep.sum()):,} runs"] = lines
    caption = "Share of runs by absolute error, over the runs that count and that all of these predict."
    return Picture(accuracy_plots.distributions(panels), caption)


def _scatters(comparison: Comparison) -> list[Part]:
    found: list[Part] = []
    for predictor in (comparison.fitted, comparison.blind):
        if predictor is None:
            continue
        for metric, name in METRICS.items():
            caption = f"{name}, {predictor.name}: predicted against measured, by model and engine."
            found.append(Picture(_scatter(comparison, predictor, metric), caption))
    return found


def _scatter(comparison: Comparison, predictor: Predictor, metric: str) -> str:
    truth_s = comparison.ttft_s if metric == "ttft" else comparison.tpot_s
    scale, unit = (1.0, "s") if metric == "ttft" else (1e3, "ms")
    counts = [row.tp * row.pp * row.attention_dp for row in comparison.rows]
    gpus = [f"{count} GPU" if count == 1 else f"{count} GPUs" for count in counts]
    labels = [(row.model.rsplit("/", 1)[-1], row.engine) for row in comparison.rows]
    panels = []
    for model, engine in sorted(set(labels)):
        inside = [place for place, label in enumerate(labels) if label == (model, engine)]
        keep = comparison.counted.copy()
        keep[[place for place in range(len(labels)) if labels[place] != (model, engine)]] = False
        found = comparison.errors(predictor, metric, keep)
        panels.append(
            accuracy_plots.Panel(
                title=f"{model}, {engine}",
                caption=f"{found['predicted']} runs, median {percent(found['median_abs_error'])}\n"
                f"bias {percent(found['bias'], '+')}",
                truth=scale * truth_s[inside],
                predicted=scale * predictor.of(metric)[inside],
                colour=[gpus[place] for place in inside],
                marker=[comparison.rows[place].gpu for place in inside],
                counted=comparison.counted[inside],
            )
        )
    legend = accuracy_plots.Legend(
        colours=list(dict.fromkeys(name for _, name in sorted(zip(counts, gpus, strict=True)))),
        markers=sorted({row.gpu for row in comparison.rows}),
        hollow=None if comparison.counted.all() else "queued or contradictory",
    )
    return accuracy_plots.scatter(panels, legend, f"measured {METRICS[metric]}", unit, BAND)


def _reasons(comparison: Comparison, measurements: Measurements) -> list[Part]:
    header = ("predictor", "runs", "reason")
    refused = Counter(one.reason for one in measurements.rejected)
    counted = [("not read", refused), *((one.name, one.reasons) for one in comparison.predictors)]
    rows = [(name, f"{count:,}", reason) for name, reasons in counted for reason, count in reasons.items()]
    parts: list[Part] = []
    if not comparison.fitted.reasons and not refused:
        parts.append(Text("The profile predicts every run."))
    if rows:
        parts.append(Captioned("Runs without a prediction", Table(header, tuple(rows), frozenset(header[::2]))))
    if measurements.notes:
        parts += [Text("What reading the files assumed or found:"), Listing(measurements.notes)]
    return parts


def _choice_section(chosen: Sequence[Choice]) -> Section:
    if not chosen:
        return Section("Choosing a shape", [Text("No group was measured in two shapes under three loads each.")])
    losses = group_losses(chosen)
    each = [choice.loss for choice in chosen]
    said = (
        "A group is one model, GPU type, engine, format, prompt and answer length, measured in several shapes. Under a "
        "bound on TPOT (the quartiles of what the group measured) the shape with the highest predicted throughput on 8 "
        f"GPUs is chosen, and its measured throughput is held against the measured best. Within {whole(WITHIN)}: "
        f"{percent(share_within(losses.values()))} of {len(losses)} groups (mean over their bounds), "
        f"{percent(share_within(each))} of {len(each)} choices. Predictions are the profile's."
    )
    missed = accuracy_targets.misses(chosen)
    parts: list[Part] = [Text(said)]
    if missed.rows:
        parts.append(Captioned(f"Choices that lose more than {whole(WITHIN)}", missed))
    return Section("Choosing a shape", parts)


def _load_section(answers: Sequence[accuracy_load.Answer], found: Sequence[accuracy_load.Line]) -> Section:
    panels = []
    for stratum in dict.fromkeys(answer.stratum for answer in answers):
        inside = [answer for answer in answers if answer.stratum == stratum]
        unstable = sum(math.isinf(answer.predicted_p95_s) for answer in inside)
        panels.append(
            accuracy_plots.Panel(
                title=stratum,
                caption=f"{len(inside)} cases" + (f", {unstable} called unstable" if unstable else ""),
                truth=np.array([answer.p95_s for answer in inside], float),
                predicted=np.array([answer.predicted_p95_s for answer in inside], float),
                colour=[f"{answer.band} of capacity" for answer in inside],
                marker=["case"] * len(inside),
                counted=np.array([answer.tight for answer in inside], bool),
            )
        )
    bands = list(dict.fromkeys(answer.band for answer in answers))
    hollow = None if all(answer.tight for answer in answers) else "simulation too noisy"
    legend = accuracy_plots.Legend([f"{band} of capacity" for band in bands], ["case"], hollow)
    svg = accuracy_plots.scatter(panels, legend, "simulated p95", "s", accuracy_load.P95_TARGET)
    picture = Picture(svg, "p95 of latency: predicted against simulated.")
    said = (
        "Random engines and traffic. The simulation packs several prompts per step and allocates KV as it grows; "
        f"utilisation is a share of its capacity. Limits: {accuracy_load.LIMITS}."
    )
    table = Captioned("Absolute errors of the predicted p95", accuracy_load.load_table(found))
    return Section("p95 under load", [Text(said), picture, table])


def _provenance(inputs: Inputs, measurements: Measurements, profile: Profile) -> Section:
    others = [path for path in (inputs.against, inputs.load, inputs.profile) if path]
    read = [*measurements.files, *((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in others)]
    trained = [(name, digest, "fitted to") for name, digest in profile.provenance.files]
    header = ("file", "SHA-256", "use")
    rows = (*((name, digest, "read for this page") for name, digest in read), *trained)
    versions = [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in LIBRARIES)]
    return Section(
        "Provenance",
        [
            Listing(
                [
                    f"Made by `{inputs.command}`",
                    f"Profile {profile.name!r}, made by `{profile.provenance.command}`",
                    f"Versions: {', '.join(versions)}",
                ]
            ),
            Captioned("Files", Table(header, rows, frozenset(header))),
        ],
    )
