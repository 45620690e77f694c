"""Strict records and their JSON: types checked on construction, unknown fields refused on reading, atomic writing."""

from __future__ import annotations

import hashlib
import math
import operator
import os
import re
import threading
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import orjson

from cascadia_fast.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan

NEVER = "never"
"""JSON word for an infinite threshold, and the mark of fields that may hold one."""

TRUSTED = "trusted"
"""Mark of large tuples that are checked when read, but not when constructed: 10,000 replicas would cost 40 ms."""

# A plan of 100,000 one-GPU replicas is 10 MB; anything far beyond is not a plan.
_MAX_BYTES = 64 * 1024 * 1024
_MAX_SHOWN = 60
# Python reads such bytes as lone surrogates.
_NO_TEXT = re.compile("[\ud800-\udfff]")


class Record:
    """Base of the plan's frozen dataclasses: fields are converted to plain Python types and checked on construction."""

    __slots__ = ()

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for field, hint in _hints(cls).items():
            value = getattr(self, field)
            object.__setattr__(self, field, _conform(value, hint, f"{cls.__name__}.{field}", trusted=True))


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def _conform(value: Any, hint: Any, where: str, trusted: bool = False) -> Any:
    """`value` as the plain Python type `hint`, or an InputError that names `where`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        if hint.__metadata__ == (TRUSTED,):
            return value if trusted and isinstance(value, tuple) else _conform(value, args[0], where)
        return _threshold(value, where)
    if origin in (Union, types.UnionType):
        inner = next(arg for arg in args if arg is not types.NoneType)
        if value is None or (inner is float and _is_real(value) and not math.isfinite(value)):
            return None
        return _conform(value, inner, where, trusted)
    if origin is Literal:
        if value not in args:
            raise InputError(f"{where} is {_shown(value)}; give one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        return _tuple(value, args, where, trusted)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is {_shown(value)}; give an object")
        return {_text(str(k)): _conform(v, args[1], f"{where}.{k}", trusted) for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return value if isinstance(value, hint) else _record(hint, value, where)
    return _scalar(value, hint, where)


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float:
        if _is_real(value) and math.isfinite(value):
            return float(value)
        raise InputError(f"{where} is {_shown(value)}; give a finite number")
    if hint is int:
        if not isinstance(value, (bool, float)) and hasattr(value, "__index__"):
            return operator.index(value)
        raise InputError(f"{where} is {_shown(value)}; give a whole number")
    if hint is bool:
        if type(value).__name__ in ("bool", "bool_"):
            return bool(value)
        raise InputError(f"{where} is {_shown(value)}; give true or false")
    if isinstance(value, str):
        return _text(value)
    raise InputError(f"{where} is {_shown(value)}; give a string")


def _text(value: str) -> str:
    """Plain text: the bytes of a file name that are no UTF-8 have no place in JSON and are replaced."""
    return _NO_TEXT.sub("\ufffd", value)


def _threshold(value: Any, where: str) -> float:
    if isinstance(value, str) and value == NEVER:
        return math.inf
    if _is_real(value) and (math.isfinite(value) or value == math.inf):
        return float(value)
    raise InputError(f"{where} is {_shown(value)}; give a number or {NEVER!r}")


def _tuple(value: Any, args: tuple[Any, ...], where: str, trusted: bool) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where} is {_shown(value)}; give a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_conform(item, args[0], f"{where}[{i}]", trusted) for i, item in enumerate(value))
    if len(value) != len(args):
        raise InputError(f"{where} has {len(value)} entries; give {len(args)}")
    pairs = zip(value, args, strict=True)
    return tuple(_conform(item, arg, f"{where}[{i}]", trusted) for i, (item, arg) in enumerate(pairs))


def _record(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise InputError(f"{where} is {_shown(data)}; give an object")
    hints = _hints(cls)
    for name in data:
        if name not in hints:
            raise InputError(f"{where} has an unknown field {name!r}{did_you_mean(str(name), hints)}")
    missing = [field.name for field in fields(cls) if field.name not in data and field.default is MISSING]
    if missing:
        raise InputError(f"{where} lacks the field {missing[0]!r}; add it")
    return cls(**{name: _conform(value, hints[name], f"{where}.{name}") for name, value in data.items()})


def _is_real(value: Any) -> bool:
    return not isinstance(value, (bool, str)) and hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _named(thresholds: tuple[float, ...]) -> list[float | str]:
    return [NEVER if value == math.inf else value for value in thresholds]


def _shallow(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _body(plan: Plan) -> dict[str, Any]:
    """The plan's fields in order; what is left as a dataclass is plain enough for orjson to write as it stands."""
    body = _shallow(plan)
    routing = plan.routing
    body["routing"] = {
        **_shallow(routing),
        "thresholds": _named(routing.thresholds),
        "threshold_intervals": [[low, *_named((high,))] for low, high in routing.threshold_intervals],
        "gears": [{**_shallow(gear), "thresholds": _named(gear.thresholds)} for gear in routing.gears],
    }
    trace = [{**_shallow(step), "thresholds": _named(step.thresholds)} for step in plan.solver.trace]
    body["solver"] = {**_shallow(plan.solver), "trace": trace}
    return body


def plan_id(plan: Plan, version: int) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON without timings."""
    body = _body(plan)
    solver = body["solver"]
    del solver["seconds"]
    if plan.solver.highs is not None:
        solver["highs"] = {name: value for name, value in _shallow(plan.solver.highs).items() if name != "seconds"}
    text = orjson.dumps({"schema_version": version, **body}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()[:16]


def write_plan(plan: Plan, version: int) -> bytes:
    """Canonical JSON of a plan."""
    document = {"schema_version": version, "plan_id": plan.plan_id, **_body(plan)}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def read_plan_bytes(cls: type[Plan], text: bytes | str, source: str, version: int) -> Plan:
    """Plan of a JSON text, checked field by field."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{source} is not JSON ({error}); give a file written by cascadia-fast plan -o") from None
    if not isinstance(document, dict) or "schema_version" not in document:
        raise InputError(f"{source} has no schema_version; give a file written by cascadia-fast plan -o")
    found = document.pop("schema_version")
    if type(found) is not int or found != version:
        raise InputError(
            f"{source} has schema_version {_shown(found)} and this version of cascadia-fast reads {version}; plan again"
        )
    claimed = document.pop("plan_id", None)
    try:
        plan: Plan = _record(cls, document, "plan")
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    if claimed != plan.plan_id:
        raise InputError(
            f"{source} has plan_id {_shown(claimed)}, but its content hashes to {plan.plan_id!r}: it was edited after "
            "planning; plan again, or put that plan_id in to vouch for the edit"
        )
    return plan


def load_file(path: Path) -> bytes:
    """Content of a file that may be a plan."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a plan.json") from None
    if len(text) > _MAX_BYTES:
        raise InputError(f"{path} is larger than {_MAX_BYTES} bytes; a plan is not, so give a plan.json")
    return text


def replace_file(path: Path, content: bytes) -> None:
    """Write beside the target, then rename over it, so that no reader and no interruption sees half a file."""
    # Renaming over a link replaces the link: over /dev/stdout, for root, it would break the machine.
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        raise InputError(f"{path} is not a regular file; give the path of a file to write")
    temporary = path.with_name(f".plan.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give a path in a writable folder") from None
    finally:
        # Where the folder cannot be written or is none, there is nothing to remove, and the reason is said above.
        with suppress(OSError):
            temporary.unlink()
