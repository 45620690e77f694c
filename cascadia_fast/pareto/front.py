"""The front of a problem: every plan that no other plan beats at once in all that is asked for.

The threshold grid has finitely many routings, so the front is a list of points, each a plan, and not a curve: weights
or distances from an ideal point, which other methods steer by, are not needed to reach each of them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from cascadia_fast.blueprint import Metric, Pool
from cascadia_fast.blueprint_routing import Threshold
from cascadia_fast.errors import InputError, did_you_mean
from cascadia_fast.plan_json import NEVER, Record, replace_file

SCHEMA_VERSION = 1

Axis = Literal["latency", "quality", "cost"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True, slots=True)
class FrontPoint(Record):
    """One plan of a front, or a single model beside it.

    `models` are those that run, small to large, `stage_gpus` the GPUs of each and `thresholds` what lies between them;
    `gpus` are those of all, a hosted judge's included.
    """

    latency_s: float
    quality: float
    usd_per_hour: float | None
    gpus: int
    models: tuple[str, ...]
    stage_gpus: tuple[int, ...]
    thresholds: tuple[Threshold, ...]

    def value(self, axis: Axis) -> float | None:
        """What the point reaches on an axis."""
        return {"latency": self.latency_s, "quality": self.quality, "cost": self.usd_per_hour}[axis]


@dataclass(frozen=True, slots=True)
class Front(Record):
    """All plans that no plan beats on all `axes` at once, by the first axis, and what they were looked for among.

    `metric` is the latency that counts. `singles` are the models alone, each the best it can, for comparison; those
    that cannot carry the rate are missing. `complete` says that the search was not stopped by a time limit.
    """

    axes: tuple[Axis, ...]
    metric: Metric
    points: tuple[FrontPoint, ...]
    singles: tuple[FrontPoint, ...]
    pools: tuple[Pool, ...]
    rate_per_s: float
    q_min: float
    slo_s: float | None
    slo_metric: Metric | None
    budget_usd_per_hour: float | None
    certificate: str
    complete: bool
    seconds: float

    def __post_init__(self) -> None:
        # Not super(): classes with slots are made anew, and it would look for the old one.
        Record.__post_init__(self)
        checked_axes(self.axes)
        if "cost" in self.axes and any(point.usd_per_hour is None for point in self.points):
            raise InputError("a front by cost needs a price for every pool; give price_usd_per_hour")

    def rows(self) -> list[dict[str, Any]]:
        """The points as flat rows, for tables and data frames."""
        return [
            {
                "latency_s": point.latency_s,
                "quality": point.quality,
                "usd_per_hour": point.usd_per_hour,
                "gpus": point.gpus,
                "models": " > ".join(point.models),
                "stage_gpus": " / ".join(map(str, point.stage_gpus)),
                "thresholds": " / ".join(map(str, _named(point.thresholds))),
            }
            for point in self.points
        ]

    def to_json(self) -> bytes:
        """The front as JSON: UTF-8, two-space indent, a final newline; the same bytes for the same front."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["points"], fields["singles"] = ([_document(p) for p in points] for points in (self.points, self.singles))
        document = {"schema_version": SCHEMA_VERSION, **fields}
        return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def to_csv(self) -> str:
        """The points as CSV with a header."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]) if rows else ["latency_s"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def write(self, path: str | Path) -> None:
        """Write to a file in one step: CSV where its name ends in .csv, else JSON.

        Raises
        ------
        InputError
            The file cannot be written there.
        """
        path = Path(path)
        replace_file(path, self.to_csv().encode() if path.suffix == ".csv" else self.to_json())


def checked_axes(axes: tuple[str, ...]) -> tuple[Axis, ...]:
    """Return the axes of a front.

    Raises
    ------
    InputError
        An axis is unknown, given twice, or alone.
    """
    known: Mapping[str, Axis] = {axis: axis for axis in AXES}
    for axis in axes:
        if axis not in known:
            raise InputError(
                f"a front has no axis {axis!r}; use two or all of {', '.join(AXES)}{did_you_mean(axis, AXES)}"
            )
        if axes.count(axis) > 1:
            raise InputError(f"a front has the axis {axis} twice; give each once")
    if len(axes) < 2:
        raise InputError(f"a front has {len(axes)} axis; give two or all of {', '.join(AXES)}")
    return tuple(known[axis] for axis in axes)


def _document(point: FrontPoint) -> dict[str, Any]:
    fields = {field.name: getattr(point, field.name) for field in dataclasses.fields(point)}
    return {**fields, "thresholds": _named(point.thresholds)}


def _named(thresholds: tuple[float, ...]) -> list[float | str]:
    return [NEVER if value == math.inf else value for value in thresholds]
