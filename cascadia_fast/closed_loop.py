"""Times to first token and per output token of engines under a fixed number of clients: how benchmarks measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core, catalog
from cascadia_fast.engine_parts import native_architecture, native_gpu
from cascadia_fast.measurement_rows import Measurement
from cascadia_fast.profile import Profile, Status

__all__ = ["Prediction", "Runs", "predict"]

# Benchmarks start engines with room for all their clients: the least of these that has it. Room costs memory. Each rank
# of attention data parallelism has the limits of a whole engine.
_MAX_NUM_SEQS = (256, 512, 1024, 2048)
_MAX_BATCHED_TOKENS = 8192
_MAX_RANKS = 32  # more ranks than any measured engine, and what the limits of the native model bear
# Benchmark clients send about ten requests each, of lengths drawn within some 10 % of the stated ones: clients that
# started together drift apart. Of equal lengths they would stay together, and their prompts meet in every round.
_ROUNDS = 10
_SPREAD = np.linspace(0.9, 1.1, 5)
_REMEMBERED = 32  # predictions per setup: a gradient changes one number at a time, and most setups do not depend on it

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Predicted mean times of some runs, NaN where there is a reason against one.

    Parameters
    ----------
    ttft_s, tpot_s
        Shape (rows,).
    reasons
        Per row, why it has no prediction, or None.
    """

    ttft_s: Vector
    tpot_s: Vector
    reasons: tuple[str | None, ...]


@dataclass(frozen=True)
class _Setup:
    """Runs that differ in concurrency only; `engine` makes their engine from its efficiencies."""

    weights: str
    kv: str
    engine_name: str
    engine: Callable[[_core.Efficiency], _core.Replica]
    tokens_in: float
    tokens_out: float
    concurrency: Vector
    rows: NDArray[np.intp]
    remembered: dict[tuple[float, ...], tuple[Vector, Vector]]


class Runs:
    """Runs of a benchmark, made ready for any number of predictions.

    Parameters
    ----------
    rows
        The runs; their measured times are not looked at.
    """

    def __init__(self, rows: Sequence[Measurement]) -> None:
        self._rows = tuple(rows)
        places: dict[tuple[Measurement, int], list[int]] = {}
        for place, row in enumerate(self._rows):
            key = dataclasses.replace(row, source="", engine_version=None, concurrency=1.0, ttft_s=None, tpot_s=None)
            places.setdefault((key, _max_num_seqs(row)), []).append(place)
        self._reasons: list[str | None] = [None] * len(self._rows)
        self._setups: list[_Setup] = []
        probe = _core.Efficiency(**Profile.kernels().efficiency("bf16", "bf16", "vllm"))
        for (key, max_num_seqs), inside in places.items():
            concurrency = np.array([self._rows[place].concurrency for place in inside])
            setup = _setup(key, max_num_seqs, np.array(inside), concurrency)
            reason = _objection(setup, probe, key)
            if reason is None:
                self._setups.append(setup)
            else:
                for place in inside:
                    self._reasons[place] = reason

    def predict(self, profile: Profile) -> Prediction:
        """Return the predicted times of every run."""
        ttft_s, tpot_s = np.full(len(self._rows), np.nan), np.full(len(self._rows), np.nan)
        reasons = list(self._reasons)
        for setup in self._setups:
            numbers = profile.efficiency(setup.weights, setup.kv, setup.engine_name)
            key = tuple(numbers.values())
            found = setup.remembered.get(key)
            if found is None:
                found = _closed_loop(setup, setup.engine(_core.Efficiency(**numbers)))
                if len(setup.remembered) >= _REMEMBERED:
                    del setup.remembered[next(iter(setup.remembered))]
                setup.remembered[key] = found
            finite = np.isfinite(found).all(axis=0)
            ttft_s[setup.rows], tpot_s[setup.rows] = np.where(finite, found, np.nan)
            for place in setup.rows[~finite]:
                reasons[place] = f"profile {profile.name!r} predicts no finite time"
        return Prediction(ttft_s, tpot_s, tuple(reasons))

    def statuses(self, profile: Profile) -> tuple[Status | None, ...]:
        """Return how far each prediction can be trusted, or None where there is none."""
        return tuple(
            _status(row, profile) if reason is None else None
            for row, reason in zip(self._rows, self._reasons, strict=True)
        )


def predict(rows: Sequence[Measurement], profile: Profile) -> Prediction:
    """Return the predicted mean times to first token and per output token of every run."""
    return Runs(rows).predict(profile)


def _setup(row: Measurement, max_num_seqs: int, rows: NDArray[np.intp], concurrency: Vector) -> _Setup:
    spec = catalog.gpu(row.gpu)
    limits = _core.EngineLimits(
        max_num_seqs=max_num_seqs,
        max_batched_tokens=_MAX_BATCHED_TOKENS * _ranks(row),
        gpus_per_node=spec.gpus_per_node,
    )
    architecture = native_architecture(catalog.model(row.model).architecture)
    precision = _core.Precision(weights=row.weights, kv=row.kv)
    gpu = native_gpu(spec)

    def engine(efficiency: _core.Efficiency) -> _core.Replica:
        return _core.Replica(
            architecture=architecture,
            precision=precision,
            gpu=gpu,
            efficiency=efficiency,
            shape=_shape(row),
            limits=limits,
        )

    return _Setup(
        row.weights, row.kv, row.engine, engine, row.tokens_in, row.tokens_out, concurrency, rows, remembered={}
    )


def _max_num_seqs(row: Measurement) -> int:
    limits = [limit * _ranks(row) for limit in _MAX_NUM_SEQS]
    return next((limit for limit in limits if limit >= row.concurrency), limits[-1])


def _ranks(row: Measurement) -> int:
    return min(row.attention_dp, _MAX_RANKS)


def _shape(row: Measurement) -> _core.Shape:
    return _core.Shape(row.tp, row.pp, row.attention_dp, row.ep)


def _objection(setup: _Setup, probe: _core.Efficiency, row: Measurement) -> str | None:
    """Why these runs cannot be predicted, if they cannot."""
    try:
        engine = setup.engine(probe)
    except ValueError as error:
        return str(error)
    gpus = f"{engine.shape.gpus} {row.gpu}"
    if engine.kv_capacity_bytes <= 0:
        return f"the {row.weights} weights of {row.model} do not fit {gpus}{_missing(-engine.kv_capacity_bytes)}"
    short_bytes = engine.kv_bytes(row.tokens_in + row.tokens_out * _SPREAD[-1]) - engine.kv_capacity_bytes
    if short_bytes > 0:
        held = f"beside its {row.weights} weights on {gpus}, {row.model}"
        return f"{held} has no room for the KV cache of one request{_missing(short_bytes)}"
    return None


def _missing(short_bytes: float) -> str:
    return f": {short_bytes / 1e9:,.2g} GB are missing"


def _status(row: Measurement, profile: Profile) -> Status:
    model = catalog.model(row.model)
    found = profile.status(
        row.gpu,
        row.engine,
        row.weights,
        model.architecture,
        _shape(row),
        model=model.name,
        kv=row.kv,
        tokens_in=row.tokens_in,
        tokens_out=row.tokens_out,
        concurrency=row.concurrency,
    )
    if row.precision == row.weights or found.level == "roofline":
        return found
    reason = f"{row.precision} has no numbers of its own; those of {row.weights} are assumed to hold"
    return Status("transferred", reason)


def _closed_loop(setup: _Setup, engine: _core.Replica) -> tuple[Vector, Vector]:
    ttft_s, tpot_s, _, _ = _core.closed_loop(
        replica=engine,
        tokens_in=np.full(len(_SPREAD), setup.tokens_in),
        tokens_out=setup.tokens_out * _SPREAD,
        share=np.full(len(_SPREAD), 1 / len(_SPREAD)),
        concurrency=np.maximum(setup.concurrency, 1.0),
        rounds=_ROUNDS,
    )
    return ttft_s, tpot_s
