"""The files behind a problem: read once, shared by the problems that `replace` makes from one another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascadia_fast.errors import InputError
from cascadia_fast.samples import (
    ScoredTable,
    Trace,
    read_scored_requests,
    read_trace,
    with_simulated_scores,
    with_trace_lengths,
)
from cascadia_fast.workload import Arrivals, ScoredRequests

if TYPE_CHECKING:
    from cascadia_fast.schema import JudgeSection, WorkloadSection

MAX_TEXT_BYTES = 1_000_000
_KINDS = {str: "a text", list: "a list", int: "a number", float: "a number", bool: "true or false"}


class InputFiles:
    """Reads the files that a problem names, relative to `base_dir`, and remembers what it read."""

    def __init__(self, base_dir: Path) -> None:
        self.base_dir = base_dir
        self._tables: dict[ScoredTable, ScoredRequests] = {}
        self._traces: dict[tuple[Any, ...], Trace] = {}
        self._requests: dict[tuple[Any, ...], ScoredRequests] = {}
        self._arrivals: dict[tuple[Any, ...], Arrivals] = {}
        self._hashes: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """Return where a file named in the problem lies."""
        return self.base_dir / os.path.expanduser(name)

    def requests(self, section: WorkloadSection, models: tuple[str, ...], judge: JudgeSection) -> ScoredRequests:
        """Read the scored requests, resample them, and let the simulated judge score the result.

        The judge comes last, so that copies of one request get different scores, as repeated traffic would.
        """
        key = (
            section.requests,
            section.columns,
            models,
            section.score_scale,
            section.quality_scale,
            section.drop_incomplete,
            section.bootstrap,
            section.lengths,
            section.arrivals,
            judge.simulated_auc,
            judge.seed,
        )
        if key not in self._requests:
            self._requests[key] = self._sample(section, models, judge)
        return self._requests[key]

    def _sample(self, section: WorkloadSection, models: tuple[str, ...], judge: JudgeSection) -> ScoredRequests:
        table = ScoredTable(
            path=self.path(section.requests),
            columns=section.columns,
            models=models,
            score_scale=section.score_scale,
            quality_scale=section.quality_scale,
            needs_score=judge.simulated_auc is None,
            drop_incomplete=section.drop_incomplete,
        )
        if table not in self._tables:
            self._tables[table] = read_scored_requests(table)
        requests = self._tables[table]
        if section.bootstrap is not None:
            requests = requests.bootstrap(section.bootstrap.seed, section.bootstrap.size)
        if section.lengths == "trace" and section.arrivals is not None:
            requests = with_trace_lengths(requests, self._trace(section), self.path(section.arrivals))
        if judge.simulated_auc is not None:
            requests = with_simulated_scores(requests, judge.simulated_auc, judge.seed)
        return requests

    def arrivals(self, section: WorkloadSection) -> Arrivals:
        """Return the trace's arrivals, stretched to the rate when one is given, or the rate alone."""
        key = (section.arrivals, section.columns, section.rate_per_s, section.cv)
        if key not in self._arrivals:
            self._arrivals[key] = self._measure(section)
        return self._arrivals[key]

    def _measure(self, section: WorkloadSection) -> Arrivals:
        if section.arrivals is None:
            if section.rate_per_s is None:
                raise InputError("workload has neither arrivals nor rate_per_s; give one of them or both")
            return Arrivals.from_rate(section.rate_per_s, 1.0 if section.cv is None else section.cv)
        trace = self._trace(section)
        try:
            measured = Arrivals.from_times(trace.times_s)
        except InputError as error:
            raise InputError(f"{self.path(section.arrivals)}: {error}") from None
        return measured if section.rate_per_s is None else measured.rescaled(section.rate_per_s)

    def _trace(self, section: WorkloadSection) -> Trace:
        key = (section.arrivals, section.columns)
        if key not in self._traces:
            self._traces[key] = read_trace(self.path(section.arrivals or ""), section.columns)
        return self._traces[key]

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file's bytes."""
        if name not in self._hashes:
            try:
                with self.path(name).open("rb") as file:
                    self._hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise InputError(f"{self.path(name)} cannot be read: {error.strerror or error}") from None
        return self._hashes[name]


def read_yaml(path: Path) -> tuple[Mapping[str, Any], str]:
    """Read a YAML file of at most 1 MB: its fields, and the SHA-256 of its bytes.

    Raises
    ------
    InputError
        The file is missing, too large, not UTF-8, not YAML, names a field twice, or is not a group of named fields.
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory; name the problem file in it")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; give the path of a problem file") from None
    if len(content) > MAX_TEXT_BYTES:
        raise InputError(f"{path} is larger than {MAX_TEXT_BYTES:,} bytes; put tables in files of their own")
    fields = _parse_yaml(content, path)
    if fields is None:
        raise InputError(f"{path} is empty; start from the built-in example (--write-example)")
    if not isinstance(fields, dict):
        raise InputError(
            f"{path} holds {_KINDS.get(type(fields), 'a value')}; it must hold named fields such as cascade and goal"
        )
    return fields, hashlib.sha256(content).hexdigest()


def _parse_yaml(content: bytes, path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loading that also refuses a field given twice, which YAML forbids and PyYAML lets pass."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                place = f"line {key.start_mark.line + 1} of {path}"
                if not isinstance(key, yaml.ScalarNode) or not key.value:
                    raise InputError(f"a field in {place} has no plain name; write `name: value`")
                if key.value in seen:
                    raise InputError(f"field {key.value!r} in {place} is given twice; keep one")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(content.decode("utf-8-sig"), Loader)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path} is not YAML{line}: {error.problem}; mend that line") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {str(error).splitlines()[0]}; mend it") from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is nested too deeply or holds an impossible date or number; simplify it") from None
