"""Measured runs of real engines, from any number of files: read, checked, and each counted once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascadia_fast.errors import InputError, did_you_mean
from cascadia_fast.measurement_files import read_runs
from cascadia_fast.measurement_names import Unusable
from cascadia_fast.measurement_rows import Measurement, RowReader, Unsaid
from cascadia_fast.measurement_units import with_plausible_units

__all__ = ["OPTIONS", "Measurement", "Measurements", "Rejected", "apart", "read_measurements"]

# What options may say of runs whose files do not.
OPTIONS = ("model", "gpu", "engine", "engine_version", "weights", "kv", "tp", "pp", "ep", "attention_dp")
# Repeats of one run differ by less; a flag that nobody wrote down makes more.
_CONTRADICTION = 1.2


@dataclass(frozen=True, slots=True)
class Rejected:
    """A run that cannot be used, and why; and what it was of, where that could be read."""

    source: str
    reason: str
    model: str | None = None
    gpu: str | None = None
    engine: str | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Measurements:
    """What files hold.

    Parameters
    ----------
    rows
        The usable runs, each once.
    rejected
        The others.
    notes
        Sentences about what was converted, assumed, repaired, counted once, or contradicts itself.
    files
        Name and SHA-256 of every file.
    """

    rows: tuple[Measurement, ...]
    rejected: tuple[Rejected, ...]
    notes: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


def read_measurements(
    paths: Sequence[Path],
    *,
    defaults: Mapping[str, Any] | None = None,
    model_configs: Mapping[str, str] | None = None,
) -> Measurements:
    """Read the runs of serving benchmarks.

    Parameters
    ----------
    paths
        CSV files in our columns, JSON of ``vllm bench serve --save-result``, JSONL of ``sglang.bench_serving``.
    defaults
        Any of `OPTIONS` for runs whose file does not say it.
    model_configs
        Hugging Face ``config.json`` files by the name the measurement files have for the model.

    Raises
    ------
    InputError
        A file cannot be read, or neither it nor `defaults` say what is needed.
    """
    given = dict(defaults or {})
    for name in given:
        if name not in OPTIONS:
            raise InputError(f"unknown default {name!r}{did_you_mean(name, OPTIONS)}")
    if not paths:
        raise InputError("no measurement file is given; name at least one")
    reader = RowReader(given, model_configs or {})
    rows: list[Measurement] = []
    rejected: list[Rejected] = []
    notes: list[str] = []
    files: dict[Path, tuple[str, str]] = {}
    for path in paths:
        if (place := path.resolve()) in files:
            notes.append(f"{path} is named twice; it is read once")
            continue
        found, refused = _read_file(path, reader, given)
        files[place] = (path.name, _sha256(path))
        kept, implausible, converted = with_plausible_units(found, reader.architecture, path.name)
        rows += kept
        rejected += refused
        rejected += [
            Rejected(row.source, reason, row.model, row.gpu, row.engine, row.precision) for row, reason in implausible
        ]
        notes += converted
    notes += [f"{_runs(count)} {remark}" for remark, count in reader.remarks.items()]
    once, said = _each_once(rows, reader)
    return Measurements(tuple(once), tuple(rejected), tuple(notes + said), tuple(files.values()))


def _read_file(path: Path, reader: RowReader, given: Mapping[str, Any]) -> tuple[list[Measurement], list[Rejected]]:
    rows: list[Measurement] = []
    rejected: list[Rejected] = []
    unsaid: list[Unsaid] = []
    for run in read_runs(path, given):
        try:
            rows.append(reader.measurement(run))
        except Unusable as reason:
            rejected.append(Rejected(run.source, str(reason), **reader.labels(run)))
            if isinstance(reason, Unsaid):
                unsaid.append(reason)
    if not rows and not rejected:
        raise InputError(f"{path} holds no run; give the file of a serving benchmark that completed")
    if not rows and len(unsaid) == len(rejected):
        raise InputError(f"{path}: {unsaid[0]}")
    return rows, rejected


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _each_once(rows: Sequence[Measurement], reader: RowReader) -> tuple[list[Measurement], list[str]]:
    """The rows without repeats, and what repeats and contradictions there are.

    Published tables hold the same runs under two names of one architecture: both stay, so that each name has its runs.
    """
    first: dict[Measurement, Measurement] = {}
    for row in rows:
        first.setdefault(dataclasses.replace(row, source=""), row)
    once = list(first.values())
    by_setup: dict[tuple[Any, ...], list[Measurement]] = {}
    for row in once:
        blank = dataclasses.replace(row, source="", model="", engine_version=None, ttft_s=None, tpot_s=None)
        by_setup.setdefault((reader.architecture(row), blank), []).append(row)
    notes = []
    if len(once) < len(rows):
        notes.append(f"{_runs(len(rows) - len(once))} repeated to the last digit; each is counted once")
    spread = [group for group in by_setup.values() if apart(group)]
    if spread:
        worst = sorted((row for row in max(spread, key=_spread) if row.tpot_s), key=lambda row: row.tpot_s or 0.0)
        notes.append(
            f"{_runs(len(spread), 'setup')} measured with TPOTs more than {_CONTRADICTION - 1:.0%} apart, all kept: "
            f"for instance {_said(worst[0])} and {_said(worst[-1])}"
        )
    return once, notes


def apart(rows: Sequence[Measurement]) -> bool:
    """Return whether runs of one setup were measured with TPOTs so far apart that their options must have differed."""
    return _spread(rows) > _CONTRADICTION


def _spread(group: Sequence[Measurement]) -> float:
    times = [row.tpot_s for row in group if row.tpot_s is not None]
    return max(times) / min(times) if times else 1.0


def _runs(count: int, noun: str = "run") -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _said(row: Measurement) -> str:
    return f"{(row.tpot_s or 0.0) * 1e3:.3g} ms ({row.source})"
