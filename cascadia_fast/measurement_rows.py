"""What one run of a measurement file means: which model on which GPUs, in which formats, at which concurrency.

A run that cannot be used is `Unusable` with its reason; what had to be assumed or repaired is counted in `remarks`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cascadia_fast import catalog
from cascadia_fast.architecture import ArchitectureSpec
from cascadia_fast.catalog import GpuSpec, ModelSpec
from cascadia_fast.errors import InputError
from cascadia_fast.measurement_files import Run
from cascadia_fast.measurement_names import (
    BITS,
    MIXED,
    Unusable,
    engine_named,
    find_model,
    folded,
    kv_named,
    shown,
    weights_in_name,
    weights_named,
)

_ID_SHAPE = re.compile(r"tp(\d+)(?:_0)?_ep(\d+)")

MAX_TOKENS = 10_000_000
MAX_CONCURRENCY = 1_000_000
MAX_GPUS = 100_000
_MAX_TOTAL = 1e15
_MAX_TIME_MS = 1e9
# Below this share of the clients in the system on average, arrivals and not the clients set the load.
_CLOSED_SHARE = 0.9

COUNTED_TWICE = (
    "with GPUs counted as tensor times expert parallelism: read as one worker as wide as the run's id or node says"
)
FP4_THROUGHOUT = "in 4-bit floats throughout: read as int4, the nearest format this version knows"
NATIVE_MXFP4 = "of a checkpoint that exists in mxfp4 only name another precision: read as mxfp4"
ASSUMED_WEIGHTS = "of no stated precision: the checkpoint's own is assumed (--weights says otherwise)"
ASSUMED_FP8_KV = "from TensorRT-LLM with 8-bit or 4-bit float weights: an fp8 KV cache is assumed (--kv says otherwise)"


class Unsaid(Unusable):
    """Neither the file nor an option says something without which no run can be placed."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a serving benchmark: fixed lengths, a fixed number of clients that ask again when answered.

    Parameters
    ----------
    source
        The run's id, or its place in its file.
    model
        A name or the path of a config that `catalog.model` knows.
    gpu
        Catalog name.
    engine, engine_version
        ``vllm``, ``sglang`` or ``trtllm``, and its release when the file says.
    weights, kv
        Formats: ``bf16``, ``fp8``, ``int8``, ``int4`` or ``mxfp4``; ``bf16`` or ``fp8``.
    precision
        The format of the weights, or the file's word for it where `weights` is only the nearest one.
    tp, pp, ep, attention_dp
        Parallelism; the run used ``tp * pp * attention_dp`` GPUs, and experts are spread over `ep` of them.
    tokens_in, tokens_out
        Lengths of every request.
    concurrency
        Clients.
    ttft_s, tpot_s
        What was measured; None where the file does not say.
    """

    source: str
    model: str
    gpu: str
    engine: str
    engine_version: str | None
    weights: str
    kv: str
    precision: str
    tp: int
    pp: int
    ep: int
    attention_dp: int
    tokens_in: float
    tokens_out: float
    concurrency: float
    ttft_s: float | None
    tpot_s: float | None


class RowReader:
    """Turns runs into measurements and counts in `remarks` what it assumed.

    Parameters
    ----------
    defaults
        Fields, by our names, of runs whose file does not give them.
    model_configs
        Config files of models that the catalog lacks, by the name the measurement files have for them.
    """

    def __init__(self, defaults: Mapping[str, Any], model_configs: Mapping[str, str]) -> None:
        self.remarks: Counter[str] = Counter()
        self._defaults = defaults
        self._configs = {folded(name): str(path) for name, path in model_configs.items()}
        self._models: dict[str, tuple[str, ModelSpec] | str] = {}
        self._gpus: dict[str, GpuSpec | str] = {}
        for path in self._configs.values():
            catalog.model_from_config(path)
        self._check_defaults()

    def measurement(self, run: Run) -> Measurement:
        """Return what the run measured.

        Raises
        ------
        Unusable
            The run cannot be used; the message says why.
        """
        row = _Row({**self._defaults, **run.fields}, run)
        _require_aggregated(row)
        name, model = self._model(row.text("model"))
        gpu = self._gpu(row.text("gpu"))
        engine = engine_named(row.text("engine"))
        remarks = [f"say otherwise than --{name.replace('_', '-')}: the file counts" for name in self._overruled(run)]
        weights, precision = _weights(row, model, remarks)
        tp, pp, ep, attention_dp = _parallelism(row, gpu, model.architecture, remarks)
        tokens_in, tokens_out = _lengths(row)
        ttft_ms, tpot_ms = row.time_ms("ttft_ms"), row.time_ms("tpot_ms", absent=tokens_out <= 1)
        if ttft_ms is None and tpot_ms is None:
            raise Unusable(f"neither {row.name('ttft_ms')} nor {row.name('tpot_ms')} is given")
        found = Measurement(
            source=run.source,
            model=name,
            gpu=gpu.name,
            engine=engine,
            engine_version=row.optional_text("engine_version"),
            weights="int4" if weights == "nvfp4" else weights,
            kv=_kv(row, engine, weights, remarks),
            precision=precision,
            tp=tp,
            pp=pp,
            ep=ep,
            attention_dp=attention_dp,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            concurrency=_concurrency(row, tokens_out, ttft_ms, tpot_ms),
            ttft_s=None if ttft_ms is None else ttft_ms / 1e3,
            tpot_s=None if tpot_ms is None else tpot_ms / 1e3,
        )
        self.remarks.update(remarks)
        return found

    def labels(self, run: Run) -> dict[str, str | None]:
        """Return model, GPU, engine and precision of a run that cannot be used, each None where it cannot be read."""
        row = _Row({**self._defaults, **run.fields}, run)
        ways: dict[str, Callable[[], str]] = {
            "model": lambda: self._model(row.text("model"))[0],
            "gpu": lambda: self._gpu(row.text("gpu")).name,
            "engine": lambda: engine_named(row.text("engine")),
            "precision": lambda: _weights(row, self._model(row.text("model"))[1], [])[1],
        }
        found: dict[str, str | None] = {}
        for name, way in ways.items():
            try:
                found[name] = way()
            except Unusable:
                found[name] = None
        if found["precision"] is None:
            found["precision"] = " + ".join(dict.fromkeys(_weight_words(row).values())) or None
        return found

    def _overruled(self, run: Run) -> list[str]:
        """Options that a run's own fields contradict."""
        ways: dict[str, Callable[[str], str]] = {"gpu": lambda text: self._gpu(text).name, "engine": engine_named}
        ways["model"] = lambda text: self._model(text)[0]
        given = {name: value for name, value in self._defaults.items() if run.fields.get(name) not in (None, "")}
        same = {name: ways.get(name, str.lower) for name in given}
        return [name for name in given if same[name](str(run.fields[name])) != same[name](str(given[name]))]

    def _check_defaults(self) -> None:
        """Refuse an option that would make every run unusable."""
        checks: dict[str, Callable[[str], object]] = {"gpu": self._gpu, "engine": engine_named, "model": self._model}
        checks |= {"weights": weights_named, "kv": kv_named}
        for name, check in checks.items():
            if name in self._defaults:
                try:
                    check(str(self._defaults[name]))
                except Unusable as reason:
                    raise InputError(f"{name} is given as {shown(self._defaults[name])}: {reason}") from None

    def architecture(self, row: Measurement) -> ArchitectureSpec:
        """Return the sizes of a measurement's model, read before."""
        return self._model(row.model)[1].architecture

    def _model(self, text: str) -> tuple[str, ModelSpec]:
        """The name `catalog.model` knows a file's model by, and the model."""
        if text not in self._models:
            self._models[text] = find_model(text, self._configs)
        found = self._models[text]
        if isinstance(found, str):
            raise Unusable(found)
        self._models.setdefault(found[0], found)
        return found

    def _gpu(self, text: str) -> GpuSpec:
        if text not in self._gpus:
            try:
                self._gpus[text] = catalog.gpu(text)
            except InputError as error:
                self._gpus[text] = str(error)
        found = self._gpus[text]
        if isinstance(found, str):
            raise Unusable(found)
        return found


@dataclass(frozen=True, slots=True)
class _Row:
    """The fields of one run, checked as they are asked for."""

    fields: Mapping[str, Any]
    run: Run

    def name(self, field: str) -> str:
        return self.run.names.get(field, field)

    def text(self, field: str) -> str:
        value = self.optional_text(field)
        if value is None:
            raise Unsaid(f"{self.name(field)} is not given; give it with --{field}")
        return value

    def optional_text(self, field: str) -> str | None:
        value = self.fields.get(field)
        return str(value).strip() or None if value is not None else None

    def number(self, field: str, most: float, default: float | None = None) -> float:
        value = self.fields.get(field, default)
        if value is None:
            raise Unsaid(f"{self.name(field)} is not given; give it with --{field}")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise Unusable(f"{self.name(field)} is {shown(value)}; it must be a number") from None
        if not 0 < number <= most:
            raise Unusable(f"{self.name(field)} is {shown(value)}; it must be more than 0 and at most {most:,.0f}")
        return number

    def count(self, field: str, default: int | None = None) -> int:
        number = self.number(field, MAX_GPUS, default)
        if number != int(number):
            raise Unusable(f"{self.name(field)} is {number:g}; it must be a whole number")
        return int(number)

    def time_ms(self, field: str, absent: bool = False) -> float | None:
        if absent or self.fields.get(field) is None:
            return None
        return self.number(field, _MAX_TIME_MS)


def _require_aggregated(row: _Row) -> None:
    mode = (row.optional_text("mode") or "agg").lower()
    if mode not in ("agg", "aggregated"):
        raise Unusable(f"mode is {shown(mode)}; only workers that prefill and decode alike (agg) are modelled")
    if row.fields.get("servers") is not None:
        raise Unusable(f"{shown(row.fields['servers'])} servers shared the load (dp_size); measure one of them")
    drafted = row.fields.get("tokens_per_step")
    if drafted is not None and drafted != 1:
        raise Unusable(f"speculative decoding accepted {shown(drafted)} tokens a step; measure without it")


def _weights(row: _Row, model: ModelSpec, remarks: list[str]) -> tuple[str, str]:
    """The format of the weights, and the file's word for it where no format this version knows is that.

    It is the file's, an option's, the one in the checkpoint's name, or the checkpoint's own.
    """
    words = _weight_words(row)
    if not model.architecture.experts:
        words.pop("expert_weights", None)
    said = (*words.values(), row.optional_text("weights"), weights_in_name(row.text("model")))
    formats = ((weights_named(text, row.name("weights")), text.lower()) for text in said if text)
    native = model.native_weights
    if not any(said):
        remarks.append(ASSUMED_WEIGHTS)
    found, word = next(((name, text) for name, text in formats if name), (native, native))
    if native == "mxfp4":
        if found not in ("mxfp4", "nvfp4"):
            remarks.append(NATIVE_MXFP4)
        return "mxfp4", "mxfp4"
    _require_one_format(row, words, word if model.architecture.experts else "")
    # Only the experts of an mxfp4 checkpoint are in it.
    if found == "nvfp4" or (found == "mxfp4" and not model.architecture.experts):
        remarks.append(FP4_THROUGHOUT)
        return "nvfp4", word
    return found, found


def _weight_words(row: _Row) -> dict[str, str]:
    """What the file itself says of the weights, by our names of its columns."""
    fields = ("weights", "expert_weights", "gemm_weights")
    return {field: str(row.run.fields[field]).strip() for field in fields if row.run.fields.get(field)}


def _require_one_format(row: _Row, words: Mapping[str, str], word: str) -> None:
    """Refuse dense weights and experts of different widths: one format's bytes would be counted for both."""
    if MIXED in (word, words.get("expert_weights", "").lower()):
        raise Unusable(f"{MIXED} keeps experts in 4 bits and the rest in 8; only one width throughout is modelled")
    dense = "gemm_weights" if "gemm_weights" in words else "weights"
    if dense not in words or "expert_weights" not in words:
        return
    known = [weights_named(words[field], row.name(field)) for field in (dense, "expert_weights")]
    if known == ["bf16", "mxfp4"]:
        return  # what mxfp4 means: only the experts are in it
    if len({BITS[name] for name in known if name}) > 1:
        columns = " and ".join(f"{row.name(field)} {shown(words[field])}" for field in (dense, "expert_weights"))
        raise Unusable(f"mixed precision, {columns}; only one width throughout is modelled")


def _kv(row: _Row, engine: str, weights: str, remarks: list[str]) -> str:
    """The format of the KV cache. Engines keep the model's 16 bits unless told; NVIDIA's checkpoints tell theirs."""
    said = kv_named(row.optional_text("kv") or "auto", row.name("kv"))
    if said is None and engine == "trtllm" and weights in ("fp8", "nvfp4"):
        remarks.append(ASSUMED_FP8_KV)
        return "fp8"
    return said or "bf16"


def _parallelism(
    row: _Row, gpu: GpuSpec, architecture: ArchitectureSpec, remarks: list[str]
) -> tuple[int, int, int, int]:
    """Tensor, pipeline, expert and attention-data parallelism.

    Published tables hold rows of one n-GPU worker with expert parallelism n whose columns multiply the two: the run's
    id, or without a shape in it a worker wider than its node, gives them away.
    """
    tp, pp, attention_dp = row.count("tp"), row.count("pp", 1), row.count("attention_dp", 1)
    moe_tp, ep = row.count("moe_tp", 1), row.count("ep", 1)
    said = _ID_SHAPE.search(row.optional_text("id") or "")
    squared = math.isqrt(tp * attention_dp)
    width = 0
    if said and int(said[1]) < tp * attention_dp == int(said[1]) * int(said[2]):
        width, ep = int(said[1]), int(said[2])
    elif (
        not said
        and tp * attention_dp > gpu.gpus_per_node
        and tp * attention_dp == moe_tp * ep == squared**2
        and squared in (moe_tp, tp)
    ):
        width, ep = squared, squared
    if width:
        remarks.append(COUNTED_TWICE)
        tp, attention_dp = (1, width) if tp == 1 else (width, 1)
    if architecture.experts == 0:
        return tp, pp, 1, attention_dp
    if (tp * attention_dp) % ep:
        raise Unusable(f"{row.name('ep')} is {ep}; it must divide the {tp * attention_dp} GPUs of a stage")
    return tp, pp, ep, attention_dp


def _lengths(row: _Row) -> tuple[float, float]:
    if "completed" not in row.fields:
        return row.number("tokens_in", MAX_TOKENS), row.number("tokens_out", MAX_TOKENS)
    completed = row.number("completed", _MAX_TOTAL)
    total_in, total_out = (row.number(f"total_{way}_tokens", _MAX_TOTAL) for way in ("input", "output"))
    lengths = total_in / completed, total_out / completed
    if max(lengths) > MAX_TOKENS:
        raise Unusable(f"a request has {max(lengths):,.0f} tokens; at most {MAX_TOKENS:,} are modelled")
    return lengths


def _concurrency(row: _Row, tokens_out: float, ttft_ms: float | None, tpot_ms: float | None) -> float:
    if "completed" in row.fields:
        return _clients(row, tokens_out, ttft_ms or 0.0, tpot_ms or 0.0)
    if "concurrency" in row.fields:
        return row.number("concurrency", MAX_CONCURRENCY)
    if "batch_size" in row.fields:
        # Batches are counted per rank of attention data parallelism.
        return row.number("batch_size", MAX_CONCURRENCY) * row.count("attention_dp", 1)
    raise Unusable("neither concurrency nor batch_size is given")


def _clients(row: _Row, tokens_out: float, ttft_ms: float, tpot_ms: float) -> float:
    """Clients of a benchmark run: all its requests at once without a limit; an arrival rate must not be what limits."""
    completed = row.number("completed", _MAX_TOTAL)
    limit = min(row.number("concurrency", MAX_CONCURRENCY, default=MAX_CONCURRENCY), completed)
    rate = row.fields.get("request_rate_per_s", "inf")
    if str(rate).lower() in ("inf", "infinity"):
        return limit
    closed = "give --max-concurrency and no --request-rate when measuring"
    if "concurrency" not in row.fields or "duration_s" not in row.fields:
        raise Unusable(f"open loop at {shown(rate)} requests/s: {closed}")
    rate_per_s = completed / row.number("duration_s", _MAX_TOTAL)
    inside = rate_per_s * (ttft_ms + tpot_ms * (tokens_out - 1)) / 1e3  # Little's law
    if inside < _CLOSED_SHARE * limit:
        raise Unusable(f"open loop at {shown(rate)} requests/s, {inside:.3g} of {limit:g} clients busy: {closed}")
    return limit
