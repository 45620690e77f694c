"""Runs of serving benchmarks as their files state them.

Our CSV columns, JSON of ``vllm bench serve`` and JSON lines of ``sglang.bench_serving`` meet here: whatever the file, a
`Run` names its figures alike. What the figures mean (which model, how many GPUs) is for `measurement_rows` to say.

Field names of the result files: vLLM's ``vllm/benchmarks/serve.py`` and SGLang's ``python/sglang/bench_serving.py``,
whose lines carry the server's arguments under ``server_info``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascadia_fast.errors import InputError, did_you_mean
from cascadia_fast.readers import UNREADABLE, open_limited

FORMATS = (".csv", ".csv.gz", ".json", ".json.gz", ".jsonl", ".jsonl.gz")
MAX_ROWS = 1_000_000
MAX_FILE_BYTES = 512 * 1024**2

# What a run's fields are called in each kind of file, by our names for them.
CSV_COLUMNS = {
    "id": "id",
    "engine": "backend",
    "engine_version": "backend_version",
    "model": "model_path",
    "gpu": "system",
    "weights": "precision",
    "gemm_weights": "gemm_quant_mode",
    "expert_weights": "moe_quant_mode",
    "kv": "kvcache_quant_mode",
    "mode": "mode",
    "tokens_in": "isl",
    "tokens_out": "osl",
    "batch_size": "batch_size",
    "concurrency": "concurrency",
    "tp": "tp_size",
    "pp": "pp_size",
    "attention_dp": "attention_dp_size",
    "moe_tp": "moe_tp_size",
    "ep": "moe_ep_size",
    "ttft_ms": "silicon_ttft_ms",
    "tpot_ms": "silicon_tpot_ms",
}
BENCHMARK_FIELDS = {
    "model": "model_id",
    "tokens_in": "total_input_tokens / completed",
    "tokens_out": "total_output_tokens / completed",
    "concurrency": "max_concurrency",
    "request_rate_per_s": "request_rate",
    "ttft_ms": "mean_ttft_ms",
    "tpot_ms": "mean_tpot_ms",
}
# Without these no run can be placed; an option may stand in for the first of them.
_CSV_NEEDED = ("model", "gpu", "engine", "tp", "tokens_in", "tokens_out", "ttft_ms", "tpot_ms")
_BENCHMARK_NEEDED = ("completed", "total_input_tokens", "total_output_tokens", "mean_ttft_ms", "mean_tpot_ms")
# `vllm bench serve --metadata gpu=h100 tp=2` writes these beside the figures.
_METADATA = ("gpu", "engine", "engine_version", "model", "weights", "kv", "tp", "pp", "ep", "attention_dp")
_SERVER_ARGUMENTS = {
    "model": "model_path",
    "engine_version": "version",
    "kv": "kv_cache_dtype",
    "weights": "quantization",
    "pp": "pp_size",
    "ep": "ep_size",
}
# The client's name for the protocol it speaks, where that gives the engine away.
_CLIENTS = {"sglang": "sglang", "vllm": "vllm", "tensorrt": "trtllm", "trt": "trtllm"}


@dataclass(frozen=True, slots=True)
class Run:
    """One run as its file states it.

    Parameters
    ----------
    source
        The run's id, or its place in the file.
    fields
        What the file says, by our names; missing cells are left out.
    names
        What the file calls those fields, for messages.
    """

    source: str
    fields: Mapping[str, Any]
    names: Mapping[str, str]


def read_runs(path: Path, given: Container[str] = ()) -> Iterator[Run]:
    """Read the runs of one file.

    Parameters
    ----------
    path
        A file whose name ends in one of `FORMATS`.
    given
        Our names of the fields that options give, so that the file need not have them.

    Raises
    ------
    InputError
        The file is missing, empty, too large, malformed, or lacks a column.
    """
    suffix = next((known for known in FORMATS if path.name.lower().endswith(known)), None)
    _require_file(path)
    if suffix is None:
        raise InputError(f"{path} is no measurement file this version reads; its name must end in {', '.join(FORMATS)}")
    if suffix.startswith(".csv"):
        yield from _csv_runs(path, given)
        return
    for place, record in _json_records(path, lines_only=suffix.startswith(".jsonl")):
        yield _benchmark_run(place, record)


def _require_file(path: Path) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of a measurement file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', error)}; give another path") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a directory; name the measurement files in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; copy what it delivers to one")
    if status.st_size == 0:
        raise InputError(f"{path} is empty; it needs at least one run")
    if status.st_size > MAX_FILE_BYTES:
        raise InputError(
            f"{path} has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read, so save it without per-request "
            "details or split it"
        )


def _csv_runs(path: Path, given: Container[str]) -> Iterator[Run]:
    try:
        with io.TextIOWrapper(open_limited(path), encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            _require_columns(path, header, given)
            known = [(name, header.index(column)) for name, column in CSV_COLUMNS.items() if column in header]
            yield from _csv_rows(path, rows, known, len(header))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (csv.Error, *UNREADABLE) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}; write it again") from None


def _csv_rows(path: Path, rows: Iterator[list[str]], known: Sequence[tuple[str, int]], width: int) -> Iterator[Run]:
    count = 0
    for row in rows:
        if not row:
            continue
        count += 1
        if len(row) != width:
            raise InputError(f"row {count} of {path} has {len(row)} cells, but its header has {width}; mend the row")
        if count > MAX_ROWS:
            raise InputError(f"{path} has more than {MAX_ROWS:,} rows; give a sample of it")
        fields = {name: cell for name, index in known if (cell := row[index].strip())}
        yield Run(fields.get("id", f"{path.name} row {count}"), fields, CSV_COLUMNS)
    if count == 0:
        raise InputError(f"{path} has no rows; it needs at least one run below the column names")


def _require_columns(path: Path, header: Sequence[str], given: Container[str]) -> None:
    repeated = [name for name in CSV_COLUMNS.values() if header.count(name) > 1]
    if repeated:
        raise InputError(f"{path} has {header.count(repeated[0])} columns named {repeated[0]!r}; rename all but one")
    missing = [name for name in _CSV_NEEDED if CSV_COLUMNS[name] not in header and name not in given]
    if not missing and "concurrency" not in header and "batch_size" not in header:
        missing = ["concurrency"]
    if not missing:
        return
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
    if separator is not None:
        raise InputError(f"{path} separates its cells with {separator!r}; save it with commas")
    column = CSV_COLUMNS[missing[0]]
    shown = ", ".join(map(repr, header[:20])) + (" …" if len(header) > 20 else "")
    option = f"; give --{missing[0]} or add it" if missing[0] in _METADATA else "; add it"
    others = [name for name in header if name and name not in CSV_COLUMNS.values()]
    bare = column.removeprefix("silicon_").removesuffix("_ms")
    nearest = did_you_mean(column, others) or did_you_mean(bare, others)
    raise InputError(f"{path} has no column {column!r} (it has {shown}){option}{nearest}")


def _json_records(path: Path, lines_only: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every result in the file and its place; vLLM's ``--append-result`` puts several into one ``.json``."""
    try:
        with open_limited(path) as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}; write it again") from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"{path} holds more than {MAX_FILE_BYTES:,} bytes; save it without per-request details")
    if not text.strip():
        raise InputError(f"{path} is empty; it needs at least one run")
    if not lines_only:
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            if "Extra data" not in str(error):
                raise InputError(f"{path} is not JSON ({error}); write it again") from None
        else:
            several = isinstance(whole, list)
            for number, record in enumerate(whole if several else [whole], start=1):
                yield _object(f"{path.name} entry {number}" if several else path.name, record)
            return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _object(f"{path.name} line {number}", _parsed_line(f"line {number} of {path}", line))


def _parsed_line(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error}); mend the line") from None


def _object(place: str, record: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(record, dict):
        raise InputError(f"{place} is not an object; it must hold one benchmark result {{…}}")
    for name in _BENCHMARK_NEEDED:
        if name not in record:
            raise InputError(
                f"{place} has no field {name!r}; give what `vllm bench serve --save-result` or "
                f"`sglang.bench_serving --output-file` wrote{did_you_mean(name, map(str, record))}"
            )
    return place, record


def _benchmark_run(place: str, record: Mapping[str, Any]) -> Run:
    fields: dict[str, Any] = {
        "model": record.get("model_id"),
        "engine": _engine(record),
        "completed": record["completed"],
        "total_input_tokens": record["total_input_tokens"],
        "total_output_tokens": record["total_output_tokens"],
        "duration_s": record.get("duration"),
        "request_rate_per_s": record.get("request_rate"),
        "concurrency": record.get("max_concurrency"),
        "ttft_ms": record["mean_ttft_ms"],
        "tpot_ms": record["mean_tpot_ms"],
        "tokens_per_step": record.get("spec_decode_acceptance_length", record.get("accept_length")),
    }
    fields |= _server_fields(record.get("server_info"))
    fields |= {name: record[name] for name in _METADATA if name in record}
    return Run(place, {name: value for name, value in fields.items() if value not in (None, "")}, BENCHMARK_FIELDS)


def _server_fields(server: Any) -> dict[str, Any]:
    """What SGLang's server said about itself; its ``tp_size`` counts the ranks of attention data parallelism too."""
    if not isinstance(server, dict):
        return {}
    if "decode" in server:
        return {"mode": "disagg"}
    fields = {name: server[key] for name, key in _SERVER_ARGUMENTS.items() if server.get(key) not in (None, "")}
    tp, dp = server.get("tp_size"), server.get("dp_size") or 1
    if not server.get("enable_dp_attention"):
        return fields | ({"tp": tp} if tp else {}) | ({"servers": dp} if dp != 1 else {})
    if isinstance(tp, int) and isinstance(dp, int) and dp > 0 and tp % dp == 0:
        fields |= {"tp": tp // dp, "attention_dp": dp}
    return fields


def _engine(record: Mapping[str, Any]) -> str | None:
    client = str(record.get("backend") or record.get("endpoint_type") or "")
    first = re.split(r"[-_]", client.lower())[0]
    return "sglang" if isinstance(record.get("server_info"), dict) else _CLIENTS.get(first)
