"""The fields of a problem file, and sentences for what is wrong with one."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cascadia_fast.errors import InputError, UnsupportedError, did_you_mean
from cascadia_fast.workload import MAX_RATE_PER_S, MIN_RATE_PER_S

MAX_GPUS = 1_000_000
MAX_REQUESTS = 10_000_000
# Pydantic's words for a field that is not known, the second for one whose name is not even a text.
UNKNOWN_FIELD = ("extra_forbidden", "invalid_key")
# Fields that one may well expect, and what to use instead.
UNAVAILABLE = {("goal", "slo_s"): "leave it out and compare the plan's p95 with it"}


def _as_tuple(value: Any) -> Any:
    """Take a single name for a list of one, and lists (which YAML has) for tuples (which cannot change)."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=MIN_RATE_PER_S, le=MAX_RATE_PER_S)]
NotNegative = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=500)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CascadeEntry(_Section):
    """One model of the cascade; without `weights` in the format it was published in."""

    model: Name
    weights: Literal["bf16", "fp8", "int8", "int4", "mxfp4"] | None = None
    kv_dtype: Literal["bf16", "fp8"] = "bf16"
    name_in_requests: Name | None = None


class PoolEntry(_Section):
    """GPUs of one type: `nodes` full nodes, or `gpus` in total, of which the last node may be partial."""

    gpu: Name
    nodes: Annotated[int, Field(ge=1, le=MAX_GPUS)] | None = None
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] | None = None
    gpus: Annotated[int, Field(ge=1, le=MAX_GPUS)] | None = None
    price_usd_per_hour: NotNegative | None = None


class ColumnNames(_Section):
    """Which column of the tables is what; several `request` columns identify a request together."""

    request: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=8)] = ("request",)
    model: Name = "model"
    input_tokens: Name = "input_tokens"
    output_tokens: Name = "output_tokens"
    score: Name = "score"
    quality: Name | None = None
    arrival_s: Name = "arrival_s"
    trace_input_tokens: Name = "input_tokens"
    trace_output_tokens: Name = "output_tokens"


class Bootstrap(_Section):
    """Draw `size` requests with replacement from those in the table."""

    size: Annotated[int, Field(ge=1, le=MAX_REQUESTS)]
    seed: Seed = 0


class WorkloadSection(_Section):
    """Scored requests, arrivals or a rate, and which rate is planned."""

    requests: Name
    arrivals: Name | None = None
    rate_per_s: Rate | None = None
    cv: NotNegative | None = None
    rate_from: Literal["mean", "p95_1min", "peak_1min"] = "mean"
    headroom: Annotated[float, Field(ge=1)] = 1.0
    columns: ColumnNames = ColumnNames()
    score_scale: Positive = 100.0
    quality_scale: Positive | None = None
    lengths: Literal["requests", "trace"] = "requests"
    bootstrap: Bootstrap | None = None
    drop_incomplete: bool = False


class JudgeSection(_Section):
    """The judge: latency and price per call; simulated from the quality when an AUC is given."""

    latency_s: NotNegative = 0.0
    usd_per_call: NotNegative = 0.0
    simulated_auc: Annotated[float, Field(gt=0.5, le=1)] | None = None
    seed: Seed = 0


class Goal(_Section):
    """What a plan must reach: the quality floor, and the objective it minimises."""

    q_min: Annotated[float, Field(ge=0, le=100)]
    objective: Name = "max_stage_p95"
    max_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.9
    paper_strict: bool = False
    method: Literal["exact", "alternating"] = "exact"
    latency: Literal["formula", "simulated"] = "formula"


class Engine(_Section):
    """The inference engine that replicas run, its limits, and the calibration profile behind its predicted times."""

    name: Literal["vllm", "sglang", "trtllm"] = "vllm"
    profile: Name | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] = 256
    max_batched_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 8192
    memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9


class ProblemFile(_Section):
    """A whole problem file."""

    cascade: Annotated[tuple[CascadeEntry, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=16)]
    cluster: Annotated[tuple[PoolEntry, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=64)]
    workload: WorkloadSection
    goal: Goal
    judge: JudgeSection = JudgeSection()
    engine: Engine = Engine()


_SECTIONS: dict[str, type[_Section]] = {
    "": ProblemFile,
    "cascade": CascadeEntry,
    "cluster": PoolEntry,
    "workload": WorkloadSection,
    "workload.columns": ColumnNames,
    "workload.bootstrap": Bootstrap,
    "goal": Goal,
    "judge": JudgeSection,
    "engine": Engine,
}
_LISTS = ("cascade", "cluster")


def parse_problem(fields: Mapping[str, Any], where: str) -> ProblemFile:
    """Validate the content of a problem file.

    Parameters
    ----------
    fields
        The parsed YAML.
    where
        Name of the file, for messages.

    Raises
    ------
    InputError
        One sentence about the first thing that is wrong.
    UnsupportedError
        A field that this version does not have yet is given.
    """
    try:
        return ProblemFile.model_validate(dict(fields))
    except ValidationError as error:
        found = error.errors(include_url=False)
    # A misspelt field is reported as unknown and, when it is required, as missing too; the first says more.
    first = next((item for item in found if item["type"] in UNKNOWN_FIELD), found[0])
    if first["loc"] in UNAVAILABLE:
        place = _place(first["loc"])
        raise UnsupportedError(f"{where}: {place} is not available in this version; {UNAVAILABLE[first['loc']]}")
    raise InputError(f"{where}: {_sentence(first)}")


def _sentence(error: Mapping[str, Any]) -> str:
    place = _place(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind in UNKNOWN_FIELD:
        return _unknown_field(error["loc"])
    if kind == "missing":
        return f"{place} is missing; add it"
    value = "empty" if error["input"] is None else reprlib.repr(error["input"])
    expected = {
        "greater_than": "above {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "below {lt}",
        "less_than_equal": "at most {le}",
        "finite_number": "a finite number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number (write 1e3 as 1000.0)",
        "bool_type": "true or false",
        "string_type": "a text",
        "string_too_short": "a text that is not empty",
        "string_too_long": "a text of at most {max_length} characters",
        "literal_error": "one of {expected}",
        "tuple_type": "a list",
        "too_short": "a list of at least {min_length} entry",
        "too_long": "a list of at most {max_length} entries",
        "model_type": "a group of named fields",
    }.get(kind)
    if expected is None:
        return f"{place} is {value}: {error['msg']}"
    limits = {name: _limit(limit) if isinstance(limit, (int, float)) else limit for name, limit in context.items()}
    fix = f"{place} is {value}; it must be {expected.format(**limits)}"
    if kind == "literal_error" and isinstance(error["input"], str):
        fix += did_you_mean(error["input"], context["expected"].replace(" or ", ", ").replace("'", "").split(", "))
    return fix


def _limit(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _unknown_field(location: Sequence[str | int]) -> str:
    name = str(location[-1])
    place = _place(location[:-1])
    section = ".".join(str(part) for part in location[:-1] if not isinstance(part, int))
    own = list(_SECTIONS[section].model_fields)
    at = f"in {place}" if place else "at the top level"
    elsewhere = [path for path, fields in _SECTIONS.items() if name in fields.model_fields]
    hint = did_you_mean(name, own)
    if elsewhere and section not in elsewhere:
        home = f"{elsewhere[0]}[…]" if elsewhere[0] in _LISTS else elsewhere[0]
        hint = f"; it belongs {f'in {home}' if home else 'at the top level'}"
    return f"unknown field {reprlib.repr(name)} {at}{hint or '; known are ' + ', '.join(own)}"


def _place(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
