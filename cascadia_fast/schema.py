"""The fields of a problem file, and sentences for what is wrong with one."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cascadia_fast.errors import InputError, UnsupportedError, did_you_mean
from cascadia_fast.workload import MAX_RATE_PER_S, MIN_RATE_PER_S

MAX_GPUS = 1_000_000
MAX_REQUESTS = 10_000_000
MAX_SLO_S = 1e9
# Pydantic's words for a field that is not known, the second for one whose name is not even a text.
UNKNOWN_FIELD = ("extra_forbidden", "invalid_key")
LatencyMetric = Literal["max_stage_p95", "end_to_end_p95", "ttft_p95"]
LATENCY_METRICS: tuple[LatencyMetric, ...] = get_args(LatencyMetric)


def _as_tuple(value: Any) -> Any:
    """Take a single name for a list of one, and lists (which YAML has) for tuples (which cannot change)."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Name = Annotated[str, Field(min_length=1, max_length=500)]
Positive = Annotated[float, Field(gt=0)]
LinkSpeed = Annotated[float, Field(gt=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=MAX_GPUS)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=64)]
Rate = Annotated[float, Field(ge=MIN_RATE_PER_S, le=MAX_RATE_PER_S)]
NotNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Weights = Literal["bf16", "fp8", "int8", "int4", "mxfp4"]
KvFormat = Literal["bf16", "fp8"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CascadeEntry(_Section):
    """One model of the cascade; without `weights` in the format it was published in.

    The other fields pin its deployment: how many replicas it has at least and at most, their shape, and on which pools.
    With a minimum of 1 or more the model is part of every cascade that is planned.
    """

    model: Name
    weights: Weights | None = None
    kv_dtype: KvFormat = "bf16"
    name_in_requests: Name | None = None
    min_replicas: Annotated[int, Field(ge=0, le=MAX_GPUS)] = 0
    max_replicas: Count | None = None
    tp: Count | None = None
    pp: Count | None = None
    pools: Names | None = None


class PoolEntry(_Section):
    """GPUs of one type: `nodes` full nodes, or `gpus` in total, of which the last node may be partial.

    The last `reserved` GPUs are kept for others. Links that are not given are the catalog's, per GPU and direction.
    """

    name: Name | None = None
    gpu: Name
    nodes: Count | None = None
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] | None = None
    gpus: Count | None = None
    reserved: Annotated[int, Field(ge=0, le=MAX_GPUS)] = 0
    price_usd_per_hour: NotNegative | None = None
    link_gb_per_s: LinkSpeed | None = None
    internode_gb_per_s: LinkSpeed | None = None
    tp_across_nodes: bool = False


class ColumnNames(_Section):
    """Which column of the tables is what; several `request` columns identify a request together.

    A `weight` says how much of the traffic a request stands for, in any unit; without one all count alike.
    """

    request: Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1, max_length=8)] = ("request",)
    model: Name = "model"
    input_tokens: Name = "input_tokens"
    output_tokens: Name = "output_tokens"
    score: Name = "score"
    quality: Name | None = None
    weight: Name | None = None
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
    """The judge: latency and price per call; its scores are simulated from the quality when an AUC is given.

    With a `model` it is hosted: that model reads `instruction_tokens`, the prompt and the answer it judges, and writes
    `output_tokens`, on GPUs of the cluster.
    """

    latency_s: NotNegative = 0.0
    usd_per_call: NotNegative = 0.0
    simulated_auc: Annotated[float, Field(gt=0.5, le=1)] | None = None
    seed: Seed = 0
    model: Name | None = None
    weights: Weights | None = None
    kv_dtype: KvFormat = "bf16"
    output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 16
    instruction_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 200


class Goal(_Section):
    """What a plan must reach, and its objective.

    The quality floor `q_min` holds for the mean of the scored requests or, with `q_confidence`, with that confidence
    for the traffic behind them. With `survive` the plan reaches everything after the loss of any replica or node, too.
    """

    q_min: Annotated[float, Field(ge=0, le=100)]
    q_confidence: Annotated[float, Field(gt=0.5, le=0.999)] | None = None
    objective: Literal[LatencyMetric, "min_cost", "max_rate", "min_gpus"] = "max_stage_p95"
    slo_s: Annotated[float, Field(gt=0, le=MAX_SLO_S)] | None = None
    slo_metric: LatencyMetric | None = None
    budget_usd_per_hour: Positive | None = None
    survive: Literal["none", "replica", "node"] = "none"
    skip_models: bool = True
    mixed_shapes: bool = False
    time_limit_s: Positive = 60.0
    max_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.9
    paper_strict: bool = False
    method: Literal["exact", "alternating"] = "exact"
    latency: Literal["formula", "simulated"] = "formula"

    @property
    def deadline_metric(self) -> LatencyMetric:
        """The latency that `slo_s` limits: the one named, else the objective if it is one, else that of whole paths."""
        if self.slo_metric is not None:
            return self.slo_metric
        return self.objective if self.objective in LATENCY_METRICS else "end_to_end_p95"

    def beyond_the_paper(self) -> Iterator[str]:
        """What is asked for that the paper's program and loop know nothing of."""
        if self.objective != "max_stage_p95":
            yield f"goal.objective {self.objective}"
        for field in ("slo_s", "budget_usd_per_hour", "q_confidence"):
            if getattr(self, field) is not None:
                yield f"goal.{field}"
        if self.survive != "none":
            yield f"goal.survive {self.survive}"
        if self.mixed_shapes:
            yield "goal.mixed_shapes"


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
    """
    try:
        return ProblemFile.model_validate(dict(fields))
    except ValidationError as error:
        raise InputError(f"{where}: {_first_sentence(error)}") from None


def checked_goal(goal: Goal, changes: Mapping[str, Any], where: str) -> Goal:
    """Return a goal with some fields changed.

    Raises
    ------
    InputError
        A value is out of range, or contradicts another field; `where` names the file that this one may stand in.
    UnsupportedError
        Two fields make sense together, and this version cannot plan it.
    """
    for name in changes:
        if name not in Goal.model_fields:
            raise InputError(f"a goal has no field {name!r}{did_you_mean(name, Goal.model_fields)}")
    try:
        changed = Goal.model_validate(goal.model_dump(exclude_unset=True) | dict(changes))
    except ValidationError as error:
        raise InputError(_first_sentence(error)) from None
    check_goal(changed, where)
    return changed


def check_goal(goal: Goal, where: str) -> None:
    """Raise for the first contradiction within a goal; raises as `checked_goal`."""
    if goal.slo_metric is not None and goal.slo_s is None:
        raise InputError(
            f"{where}: goal has slo_metric ({goal.slo_metric}) but no slo_s; add goal.slo_s, the seconds it may take, "
            "or drop slo_metric"
        )
    limited: dict[str, str] = {"objective": goal.objective}
    if goal.slo_s is not None:
        limited["slo_metric"] = goal.deadline_metric
    for field, metric in limited.items():
        if goal.mixed_shapes and metric in ("end_to_end_p95", "ttft_p95"):
            raise UnsupportedError(
                f"{where}: goal.mixed_shapes is true and goal.{field} is {metric}, which is planned with one shape per "
                "stage; drop mixed_shapes, or use max_stage_p95"
            )
    if goal.latency == "simulated" and (goal.method != "exact" or goal.paper_strict):
        other = f"method {goal.method}" if goal.method != "exact" else "paper_strict"
        raise UnsupportedError(f"{where}: {other} plans by the latency formula; drop latency simulated, or {other}")
    check_method(goal, tuple(goal.beyond_the_paper()), where)


def check_method(goal: Goal, beyond: Sequence[str], where: str) -> None:
    """Raise when the way to plan knows nothing of what is `beyond` the paper; raises as `checked_goal`."""
    if not beyond:
        return
    for method, given in (
        ("goal.paper_strict: true", goal.paper_strict),
        ("goal.method: alternating", goal.method == "alternating"),
    ):
        if given:
            raise InputError(f"{where}: {method} plans as the paper does, which knows no {beyond[0]}; drop one of them")
    if goal.latency == "simulated":
        raise UnsupportedError(f"{where}: goal.latency: simulated does not plan with {beyond[0]}; drop one of them")


def _first_sentence(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    # A misspelt field is reported as unknown and, when it is required, as missing too; the first says more.
    return _sentence(next((item for item in found if item["type"] in UNKNOWN_FIELD), found[0]))


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
