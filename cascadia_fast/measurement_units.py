"""Times in the wrong unit, found by what hardware can do.

A decode step launches the kernels of every layer and reads the weights a token uses, so there is a shortest step; and a
first token takes at least one. Seconds in a column of milliseconds are a thousand times too fast.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence

from cascadia_fast import _core, catalog
from cascadia_fast.architecture import ArchitectureSpec
from cascadia_fast.measurement_rows import Measurement

# Below the fastest layer of the runs that the shipped profile was fitted to, which took 78 µs.
_LEAST_LAYER_S = 2e-5
# Over the shortest step those runs lie at 1.2 to 53 times; given in seconds, at 0.0012 to 0.053. Drafted tokens, which
# come several to a step, stay above a fifth.
_TOO_FAST = 5.0
_TOO_SLOW = 1000.0
# The smallest measured TTFT is 6 TPOT in the runs the profile was fitted to; in seconds it would be 0.006.
_LEAST_TTFT_OVER_TPOT = 0.25
_MS_PER_S = 1e3


def with_plausible_units(
    rows: Sequence[Measurement], architecture: Callable[[Measurement], ArchitectureSpec], place: str
) -> tuple[list[Measurement], list[tuple[Measurement, str]], list[str]]:
    """Bring the times of one file to seconds where all of a column is a thousand times too small.

    Parameters
    ----------
    rows
        The measurements of one file.
    architecture
        The sizes of a measurement's model.
    place
        The file, for the notes.

    Returns
    -------
    kept
        Measurements whose times hardware can reach.
    refused
        The others, each with the reason.
    notes
        One sentence for each column that was converted.
    """
    notes: list[str] = []
    floors = [_shortest_step_s(row, architecture(row)) for row in rows]
    tpots = [None if row.tpot_s is None else row.tpot_s / floor for row, floor in zip(rows, floors, strict=True)]
    found = list(rows)
    if _in_seconds([ratio for ratio in tpots if ratio is not None], 1 / _TOO_FAST, share=1.0):
        found = [_scaled(row, "tpot_s") for row in found]
        notes.append(_converted("TPOT", place, "shorter than the shortest step"))
    references = [floor if row.tpot_s is None else row.tpot_s for row, floor in zip(found, floors, strict=True)]
    ttfts = [None if row.ttft_s is None else row.ttft_s / least for row, least in zip(found, references, strict=True)]
    # Runs whose requests queued for minutes keep a long TTFT in seconds too.
    if _in_seconds([ratio for ratio in ttfts if ratio is not None], _LEAST_TTFT_OVER_TPOT, share=0.9):
        found = [_scaled(row, "ttft_s") for row in found]
        notes.append(_converted("TTFT", place, "far below a single TPOT"))
    kept: list[Measurement] = []
    refused: list[tuple[Measurement, str]] = []
    for row, floor in zip(found, floors, strict=True):
        reason = _implausible(row, floor)
        if reason is None:
            kept.append(row)
        else:
            refused.append((row, reason))
    return kept, refused, notes


def _in_seconds(ratios: Sequence[float], least: float, share: float) -> bool:
    """Whether a column whose plausible ratios start at `least` is a thousand times too small.

    `share` of the rows, and not just the median, must lie below what hardware can do.
    """
    if not ratios:
        return False
    middle = statistics.median(ratios)
    below = sum(ratio < 1 for ratio in ratios)
    return middle < least <= middle * _MS_PER_S and below >= share * len(ratios)


def _scaled(row: Measurement, field: str) -> Measurement:
    value = getattr(row, field)
    return row if value is None else dataclasses.replace(row, **{field: value * _MS_PER_S})


def _converted(what: str, place: str, why: str) -> str:
    return f"{what} of {place} is read as seconds: as milliseconds it would be {why}"


def _implausible(row: Measurement, floor_s: float) -> str | None:
    if row.tpot_s is not None and row.tpot_s * _TOO_FAST < floor_s:
        times = floor_s / row.tpot_s
        return (
            f"TPOT is {row.tpot_s * _MS_PER_S:.3g} ms, {times:.0f} times shorter than {row.gpu} needs to read the "
            "weights layer by layer; give milliseconds"
        )
    if row.tpot_s is not None and row.tpot_s > floor_s * _TOO_SLOW:
        return (
            f"TPOT is {row.tpot_s * _MS_PER_S:,.0f} ms, {row.tpot_s / floor_s:,.0f} times the shortest step of "
            f"{floor_s * _MS_PER_S:.3g} ms; give milliseconds"
        )
    least_s = _LEAST_TTFT_OVER_TPOT * (floor_s if row.tpot_s is None else row.tpot_s)
    if row.ttft_s is not None and row.ttft_s < least_s:
        return (
            f"TTFT is {row.ttft_s * _MS_PER_S:.3g} ms, less than a quarter of one step ({least_s * _MS_PER_S:.3g} ms); "
            "give milliseconds"
        )
    return None


def _shortest_step_s(row: Measurement, architecture: ArchitectureSpec) -> float:
    """Seconds in which the run's GPUs together read the weights of one token at full bandwidth, plus the launches."""
    gpus = row.tp * row.pp * row.attention_dp
    read_s = _active_bytes(architecture, row.weights) / (gpus * catalog.gpu(row.gpu).bandwidth_bytes_per_s)
    return read_s + architecture.layers * _LEAST_LAYER_S


@functools.cache
def _active_bytes(architecture: ArchitectureSpec, weights: str) -> float:
    core = _core.Architecture(**dataclasses.asdict(architecture))
    return core.weight_bytes(_core.Precision(weights=weights)) * core.active_parameters / core.total_parameters
