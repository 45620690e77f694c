"""The p95 under load beside the event simulation's, from the rows that ``load_accuracy.py --json`` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.accuracy_runs import percent, whole
from cascadia_fast.errors import InputError
from cascadia_fast.summary_layout import Table

# Known within this share of themselves, simulated p95s can be held against predicted ones.
HALF_WIDTH = 0.02
MEDIAN_TARGET, P95_TARGET, BURSTY_P95_TARGET = 0.05, 0.15, 0.2
LIMITS = f"≤ {whole(MEDIAN_TARGET)} median, ≤ {whole(P95_TARGET)} (bursty {whole(BURSTY_P95_TARGET)}) 95th percentile"


@dataclass(frozen=True)
class Answer:
    """One configuration: simulated and predicted p95 of latency and of time to first token, inf where unstable."""

    stratum: str
    band: str
    p95_s: float
    half_width: float
    ttft_p95_s: float
    predicted_p95_s: float
    predicted_ttft_p95_s: float

    @property
    def tight(self) -> bool:
        return self.half_width <= HALF_WIDTH


@dataclass(frozen=True)
class Line:
    """The configurations of one stratum and band whose simulated p95 is well enough known."""

    stratum: str
    band: str
    median: float
    p95: float
    bias: float
    ttft_median: float
    ttft_p95: float
    tight: int
    loose: int
    unstable: int

    @property
    def met(self) -> bool:
        limit = BURSTY_P95_TARGET if self.stratum.startswith("bursty") else P95_TARGET
        return self.median <= MEDIAN_TARGET and self.p95 <= limit


def read_answers(path: Path) -> list[Answer]:
    """Read the rows.

    Raises
    ------
    InputError
        The file cannot be read or holds something else.
    """
    fix = "give a file written by benchmarks/load_accuracy.py --json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {fix}") from None
    except ValueError:
        raise InputError(f"{path} is not JSON; {fix}") from None
    if not isinstance(content, list) or not content:
        raise InputError(f"{path} holds no list of rows; {fix}")
    found = []
    for number, row in enumerate(content, 1):
        try:
            case, reference, predicted = row["case"], row["reference"], row["predicted"]
            replicated = f", {case['dispatch'].replace('_', ' ')}" if case["replicas"] > 1 else ""
            found.append(
                Answer(
                    stratum=f"{case['stratum']}{replicated}",
                    band=case["band"].replace("<=", "≤").replace("-", "–"),
                    p95_s=float(reference["p95_s"]),
                    half_width=float(reference["half_width"]),
                    ttft_p95_s=float(reference["ttft_p95_s"]),
                    predicted_p95_s=float(predicted["p95_s"]),
                    predicted_ttft_p95_s=float(predicted["ttft_p95_s"]),
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"row {number} of {path} is no row of such a file ({error!r}); {fix}") from None
    return found


def lines(answers: Sequence[Answer]) -> list[Line]:
    """One line per stratum and band, in the order of the file's strata."""
    strata = list(dict.fromkeys(answer.stratum for answer in answers))
    bands = list(dict.fromkeys(answer.band for answer in answers))
    found = (_line(answers, stratum, band) for stratum in strata for band in bands)
    return [line for line in found if line is not None]


def _line(answers: Sequence[Answer], stratum: str, band: str) -> Line | None:
    inside = [answer for answer in answers if (answer.stratum, answer.band) == (stratum, band)]
    tight = [answer for answer in inside if answer.tight]
    if not tight:
        return None
    error = np.array([answer.predicted_p95_s / answer.p95_s - 1 for answer in tight])
    ttft_error = np.array([answer.predicted_ttft_p95_s / answer.ttft_p95_s - 1 for answer in tight])
    return Line(
        stratum,
        band,
        _quantile(np.abs(error), 0.5),
        _quantile(np.abs(error), 0.95),
        _quantile(error, 0.5),
        _quantile(np.abs(ttft_error), 0.5),
        _quantile(np.abs(ttft_error), 0.95),
        len(tight),
        len(inside) - len(tight),
        sum(math.isinf(answer.predicted_p95_s) for answer in tight),
    )


def _quantile(values: np.ndarray, level: float) -> float:
    # No interpolation: it would make no number of a finite and an infinite error.
    return float(np.quantile(values, level, method="higher"))


def brief_load_table(found: Sequence[Line]) -> Table:
    """One row per stratum and band: errors of the p95 of latency."""
    header = ("stratum", "utilisation", "cases", "median", "95th", "bias", "unstable", "within limits")
    return Table(header, tuple((*_figures(line), *_verdict(line)) for line in found), frozenset(header[:2]))


def load_table(found: Sequence[Line]) -> Table:
    """The same with the p95 of the time to first token, and how many cases the simulation left too noisy."""
    header = (
        *("stratum", "utilisation", "cases", "median", "95th", "bias", "TTFT median", "TTFT 95th", "too noisy"),
        *("unstable", "within limits"),
    )
    rows = [
        (*_figures(line), percent(line.ttft_median), percent(line.ttft_p95), f"{line.loose:,}", *_verdict(line))
        for line in found
    ]
    return Table(header, tuple(rows), frozenset(header[:2]))


def _figures(line: Line) -> tuple[str, ...]:
    bias = percent(line.bias, "+")
    return line.stratum, line.band, f"{line.tight:,}", percent(line.median), percent(line.p95), bias


def _verdict(line: Line) -> tuple[str, str]:
    return f"{line.unstable:,}", "yes" if line.met else "no"
