"""What engines reach of the hardware's peaks: the numbers behind every predicted time, and how far to trust them.

A profile is a JSON file: numbers, each with its basis and the width of its prior; the measurements they were fitted to;
and the errors that were left. ``data/kernels.json`` knows kernel timings only, ``data/profile.json`` is that fitted to
serving runs; ``cascadia-fast calibrate`` makes others.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from cascadia_fast.catalog import checkpoints_of
from cascadia_fast.catalog import gpu as catalog_gpu
from cascadia_fast.errors import InputError, did_you_mean
from cascadia_fast.plan_json import Record, replace_file
from cascadia_fast.profile_fields import (
    Common,
    DenseFormat,
    Engine,
    ExpertFormat,
    Group,
    KvFormat,
    Number,
    Provenance,
    Residual,
)

if TYPE_CHECKING:
    from cascadia_fast._core import Shape
    from cascadia_fast.architecture import ArchitectureSpec

__all__ = [
    "ENGINES",
    "WEIGHT_FORMATS",
    "Group",
    "Number",
    "Profile",
    "Provenance",
    "Residual",
    "Status",
]

SCHEMA_VERSION = 2
WEIGHT_FORMATS = ("bf16", "fp8", "int8", "int4", "mxfp4")
DENSE_FORMATS = ("bf16", "fp8", "int8", "int4")  # mxfp4 checkpoints keep everything but their experts in bf16
KV_FORMATS = ("bf16", "fp8")
ENGINES = ("vllm", "sglang", "trtllm")
DIGITS = 5  # of the numbers in a file: far finer than any of them is known
_MAX_BYTES = 4_000_000
_BEYOND = 2.0  # times a measured range: so far the model's terms are interpolation in practice

Level = Literal["calibrated", "interpolated", "transferred", "roofline"]


class Status(NamedTuple):
    """How far a prediction can be trusted, and why in one sentence."""

    level: Level
    reason: str


@dataclass(frozen=True, slots=True)
class Profile(Record):
    """The numbers of the step-time model, by what they depend on.

    Parameters
    ----------
    name
        Stated with every plan.
    gpus
        Catalog names of the GPUs whose timings made the numbers.
    common, dense, experts, kv, engines
        The numbers; the last four by weight format, weight format, KV format and engine.
    measured
        The serving runs they were fitted to; empty if none were.
    provenance, errors
        How they were made, and what the fits left.
    """

    name: str
    gpus: tuple[str, ...]
    common: Common
    dense: dict[str, DenseFormat]
    experts: dict[str, ExpertFormat]
    kv: dict[str, KvFormat]
    engines: dict[str, Engine]
    measured: tuple[Group, ...]
    provenance: Provenance
    errors: tuple[Residual, ...]

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        for section, known in _KEYS.items():
            _require_keys(f"Profile.{section}", getattr(self, section), known)

    @classmethod
    def shipped(cls) -> Profile:
        """Return the profile in the catalog: H100 and H200 under vLLM, SGLang and TensorRT-LLM."""
        return _shipped("profile.json")

    @classmethod
    def kernels(cls) -> Profile:
        """Return the numbers of the kernel timings alone, where calibration starts."""
        return _shipped("kernels.json")

    @classmethod
    def read(cls, path: str | Path) -> Profile:
        """Read a profile, checked field by field.

        Raises
        ------
        InputError
            The file is missing, too large, not JSON, of another schema version, or has a field that is unknown,
            missing or out of range.
        """
        try:
            with Path(path).open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); give a profile.json") from None
        if len(text) > _MAX_BYTES:
            raise InputError(f"{path} is larger than {_MAX_BYTES:,} bytes; a profile is not, so give a profile.json")
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: bytes, source: str = "profile.json") -> Profile:
        """Profile of a JSON text; `source` names it in errors."""
        made_by = "give a file written by cascadia-fast calibrate -o"
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise InputError(f"{source} is not JSON ({error}); {made_by}") from None
        if not isinstance(document, dict) or "schema_version" not in document:
            raise InputError(f"{source} has no schema_version; {made_by}")
        found = document.pop("schema_version")
        if type(found) is not int or found != SCHEMA_VERSION:
            raise InputError(
                f"{source} has schema_version {found!r} and this version of cascadia-fast reads {SCHEMA_VERSION}; "
                "calibrate again"
            )
        try:
            _require_keys("the profile", document, tuple(field.name for field in dataclasses.fields(cls)))
            return cls(**document)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None

    def to_json(self) -> bytes:
        """Canonical JSON: two-space indent, a final newline; the same bytes for the same profile."""
        document = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def write(self, path: str | Path) -> None:
        """Write the profile in one step: readers see the old file or the whole new one."""
        replace_file(Path(path), self.to_json())

    def numbers(self) -> dict[str, Number]:
        """Return every number by its place in the file, such as ``dense.fp8.gemm_s``."""
        return dict(_numbers("", {section: getattr(self, section) for section in ("common", *_KEYS)}))

    def with_numbers(self, changed: Mapping[str, Number]) -> Profile:
        """Return a copy in which the numbers at the given places are replaced."""
        sections = {}
        for section in ("common", *_KEYS):
            inside = {
                place.removeprefix(f"{section}."): number
                for place, number in changed.items()
                if place.startswith(f"{section}.")
            }
            sections[section] = _replaced(getattr(self, section), inside)
        return replace(self, **sections)

    def efficiency(self, weights: str, kv: str, engine: str) -> dict[str, float]:
        """Return the keyword arguments of ``_core.Efficiency`` for one engine and its formats.

        Raises
        ------
        InputError
            A format or the engine is unknown.
        """
        _require_known("weight format", weights, WEIGHT_FORMATS)
        _require_known("KV format", kv, KV_FORMATS)
        _require_known("engine", engine, ENGINES)
        common, host = self.common, self.engines[engine]
        dense = self.dense[weights if weights in DENSE_FORMATS else "bf16"]
        expert = self.experts[weights]
        scale, expert_scale = host.overhead_scale.value, host.expert_scale.value
        scaled = {
            "gemm_s": scale * dense.gemm_s.value,
            "attention_s": scale * common.attention_s.value,
            "latent_attention_s": scale * common.latent_attention_s.value,
            "layer_s": scale * common.layer_s.value,
            "expert_s": expert_scale * expert.expert_s.value,
        }
        plain = {
            name: getattr(section, name).value
            for section in (common, dense, expert, self.kv[kv], host)
            for name in _field_names(section)
            if name not in scaled and name not in ("overhead_scale", "expert_scale")
        }
        return plain | scaled

    def require(self, gpu: str, engine: str) -> None:
        """Refuse a GPU or an engine whose timings did not make this profile.

        For profiles that a user names: those were made for one purpose. The shipped one is a stated transfer instead.

        Raises
        ------
        InputError
            The profile does not know the GPU or the engine.
        """
        if catalog_gpu(gpu).name not in self.gpus:
            raise InputError(
                f"profile {self.name!r} was measured on {', '.join(self.gpus)}, not on {gpu}; calibrate one on that "
                "GPU, or leave the profile out to use the shipped one, transferred"
            )
        engines = sorted({group.engine for group in self.measured} or set(ENGINES))
        if engine not in engines:
            raise InputError(
                f"profile {self.name!r} was measured with {', '.join(engines)}, not with {engine}; calibrate one with "
                "that engine, or leave the profile out to use the shipped one, transferred"
            )

    def status(
        self,
        gpu: str,
        engine: str,
        weights: str,
        architecture: ArchitectureSpec,
        shape: Shape,
        *,
        model: str | None = None,
        kv: str | None = None,
        tokens_in: float | None = None,
        tokens_out: float | None = None,
        concurrency: float | None = None,
    ) -> Status:
        """Say how far a prediction for these can be trusted; what is None is not looked at.

        `model` is the catalog's name: models of equal sizes may still compute differently, as those do whose sparse
        attention is approximated by dense attention.
        """
        gpu = catalog_gpu(gpu).name
        if not self.measured:
            return Status("roofline", f"profile {self.name!r} rests on kernel timings and no serving run")
        alike = [group for group in self.measured if (group.gpu, group.engine, group.weights) == (gpu, engine, weights)]
        if not alike:
            return Status("transferred", _untransferable(self.measured, gpu, engine, weights))
        same = [group for group in alike if group.architecture == fingerprint(architecture)]
        setting = f"{gpu} with {engine} in {weights}"
        if not same:
            models = ", ".join(sorted({model for group in alike for model in group.models}))
            return Status("interpolated", f"on {setting} other models were measured: {models}")
        group = same[0]
        wanted = (shape.tp, shape.pp, shape.attention_dp, shape.ep)
        if wanted not in group.shapes:
            return Status("interpolated", f"{group.models[0]} on {setting} was measured, but not as {_words(wanted)}")
        if model is not None and not checkpoints_of(model).intersection(group.models):
            reason = f"{model} was not measured itself, only {' and '.join(group.models)} of the same sizes"
            return Status("interpolated", f"{reason}, on {setting}")
        beyond = _beyond(group, kv, tokens_in, tokens_out, concurrency)
        if beyond is not None:
            return Status("interpolated", f"beyond what was measured: {beyond} ({group.models[0]} on {setting})")
        left = "" if group.tpot_error is None else f", their TPOT met within {group.tpot_error:.1%} in the median"
        return Status("calibrated", f"{group.rows} runs of {group.models[0]} on {setting}{left}")


_KEYS = {"dense": DENSE_FORMATS, "experts": WEIGHT_FORMATS, "kv": KV_FORMATS, "engines": ENGINES}


def fingerprint(architecture: ArchitectureSpec) -> str:
    """Return 16 hex digits that tell architectures apart, whatever their models are called."""
    sizes = orjson.dumps(dataclasses.asdict(architecture), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(sizes).hexdigest()[:16]


@functools.cache
def _shipped(file: str) -> Profile:
    text = resources.files("cascadia_fast").joinpath("data", file).read_bytes()
    return Profile.from_json(text, f"the catalog's {file}")


def _field_names(record: Any) -> tuple[str, ...]:
    return tuple(record.__dataclass_fields__)


def _numbers(place: str, node: Any) -> Iterator[tuple[str, Number]]:
    if isinstance(node, Number):
        yield place, node
        return
    inside = node if isinstance(node, dict) else {name: getattr(node, name) for name in _field_names(node)}
    for name, child in inside.items():
        yield from _numbers(f"{place}.{name}" if place else name, child)


def _replaced(node: Any, changed: Mapping[str, Number]) -> Any:
    """`node` with the numbers at the places `changed` names, relative to it."""
    if not changed:
        return node
    if "" in changed:
        return changed[""]
    by_child: dict[str, dict[str, Number]] = {}
    for place, number in changed.items():
        child, _, rest = place.partition(".")
        by_child.setdefault(child, {})[rest] = number
    if isinstance(node, dict):
        return node | {name: _replaced(node[name], inside) for name, inside in by_child.items()}
    return replace(node, **{name: _replaced(getattr(node, name), inside) for name, inside in by_child.items()})


def _require_known(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = did_you_mean(value, known) or f"; known are {', '.join(known)}"
        raise InputError(f"unknown {what} {value!r}{hint}")


def _require_keys(where: str, found: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in found:
        if name not in known:
            raise InputError(f"{where} has an unknown field {name!r}{did_you_mean(str(name), known)}")
    missing = [name for name in known if name not in found]
    if missing:
        raise InputError(f"{where} lacks the field {missing[0]!r}; add it")


def _untransferable(measured: tuple[Group, ...], gpu: str, engine: str, weights: str) -> str:
    """Which of the three was never measured, or that they were never measured together."""
    for what, value, known in (
        ("on", gpu, {group.gpu for group in measured}),
        ("with", engine, {group.engine for group in measured}),
        ("in", weights, {group.weights for group in measured}),
    ):
        if value not in known:
            return f"nothing was measured {what} {value}; the numbers of {', '.join(sorted(known))} are assumed to hold"
    return f"{weights} was never measured on {gpu} with {engine}, only on other GPUs or with other engines"


def _beyond(
    group: Group, kv: str | None, tokens_in: float | None, tokens_out: float | None, concurrency: float | None
) -> str | None:
    """What lies more than `_BEYOND` times outside what was measured, and what that was."""
    if kv is not None and kv not in group.kv:
        return f"a KV cache in {kv}, measured {' and '.join(group.kv)}"
    for value, (low, high), words in (
        (tokens_in, group.tokens_in, "prompts of {} tokens"),
        (tokens_out, group.tokens_out, "answers of {} tokens"),
        (concurrency, group.concurrency, "{} clients"),
    ):
        if value is not None and not low / _BEYOND <= value <= high * _BEYOND:
            measured = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
            return f"{words.format(f'{value:,.0f}')}, measured {measured}"
    return None


def _words(shape: tuple[int, int, int, int]) -> str:
    names = ("tp", "pp", "attention_dp", "ep")
    return " ".join(f"{name}{size}" for name, size in zip(names, shape, strict=True) if size > 1 or name == "tp")
