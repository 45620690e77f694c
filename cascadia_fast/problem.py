"""A planning problem: cascade, cluster, workload, judge and goal, read from YAML and checked."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from cascadia_fast import catalog
from cascadia_fast.catalog import GpuSpec, ModelSpec
from cascadia_fast.errors import CascadiaWarning, InputError, UnsupportedError, did_you_mean
from cascadia_fast.input_files import MAX_TEXT_BYTES, InputFiles, read_yaml
from cascadia_fast.profile import WEIGHT_FORMATS, Profile
from cascadia_fast.schema import CascadeEntry, Goal, PoolEntry, ProblemFile, parse_problem
from cascadia_fast.workload import ScoredRequests, Workload

OBJECTIVES = ("max_stage_p95",)
UNSUPPORTED_OBJECTIVES = ("end_to_end_p95", "ttft_p95", "min_cost", "max_rate", "min_gpus")


@dataclass(frozen=True)
class Stage:
    """One model of the cascade.

    Parameters
    ----------
    name
        Name in plans; unique in the cascade.
    model
        The model's architecture and context length.
    weights, kv_dtype
        Number formats of the weights and of the KV cache.
    name_in_requests
        The model's name in the table of scored requests.
    """

    name: str
    model: ModelSpec
    weights: str
    kv_dtype: str
    name_in_requests: str


@dataclass(frozen=True)
class Judge:
    """What scores an answer: `kind` is ``external``, or ``simulated`` from the quality with a stated AUC."""

    kind: str
    latency_s: float
    usd_per_call: float
    simulated_auc: float | None
    seed: int

    @property
    def description(self) -> str:
        """A label for people; it says when scores are simulated."""
        if self.simulated_auc is None:
            return f"external judge, {self.latency_s:g} s per call"
        return f"simulated judge (AUC {self.simulated_auc:g}, seed {self.seed}), {self.latency_s:g} s per call"


class Changes(TypedDict, total=False):
    """The fields that `Problem.replace` takes."""

    gpus: int
    price_usd_per_hour: float | None
    workload: Workload
    rate_per_s: float
    rate_from: str
    headroom: float
    q_min: float
    objective: str
    max_utilization: float
    paper_strict: bool
    method: str
    latency: str
    simulated_auc: float | None
    judge_seed: int
    judge_latency_s: float


_PLACE_OF_CHANGE = {
    "rate_per_s": ("workload", "rate_per_s"),
    "rate_from": ("workload", "rate_from"),
    "headroom": ("workload", "headroom"),
    "q_min": ("goal", "q_min"),
    "objective": ("goal", "objective"),
    "max_utilization": ("goal", "max_utilization"),
    "paper_strict": ("goal", "paper_strict"),
    "method": ("goal", "method"),
    "latency": ("goal", "latency"),
    "simulated_auc": ("judge", "simulated_auc"),
    "judge_seed": ("judge", "seed"),
    "judge_latency_s": ("judge", "latency_s"),
}


class Problem:
    """A planning problem; `read`, `from_dict` and `example` build one, and `replace` varies it.

    Attributes
    ----------
    where
        What messages call the problem: its file.
    fields
        The validated content of the problem file.
    stages
        The cascade, small to large.
    gpu, gpus, gpus_per_node, price_usd_per_hour
        GPU type, their total number, how many share a node (the last node may have fewer), and the price of one.
    judge, goal
        How answers are scored, and what a plan must reach.
    engine
        Inference engine of the replicas.
    max_num_seqs, max_batched_tokens, memory_utilization
        Limits of one replica's inference engine.
    """

    def __init__(
        self,
        fields: ProblemFile,
        files: InputFiles,
        where: str,
        own_hash: Mapping[str, str] | None = None,
        workload: Workload | None = None,
    ) -> None:
        self.fields = fields
        self._files = files
        self.where = where
        self._own_hash = dict(own_hash or {})
        self._given_workload = workload
        self.stages = _stages(fields.cascade, files, where)
        self.gpu, self.gpus, self.gpus_per_node, self.price_usd_per_hour = _one_pool(fields.cluster, where)
        simulated_auc = fields.judge.simulated_auc
        self.judge = Judge(
            kind="external" if simulated_auc is None else "simulated",
            latency_s=fields.judge.latency_s,
            usd_per_call=fields.judge.usd_per_call,
            simulated_auc=simulated_auc,
            seed=fields.judge.seed,
        )
        self.goal: Goal = fields.goal
        self.engine = fields.engine.name
        self.max_num_seqs = fields.engine.max_num_seqs
        self.max_batched_tokens = fields.engine.max_batched_tokens
        self.memory_utilization = fields.engine.memory_utilization
        self._check_objective()
        self._check_workload()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a YAML problem file of at most 1 MB; paths in it are relative to it.

        Raises
        ------
        InputError
            One sentence about the first thing that is wrong with the file.
        UnsupportedError
            The problem is sound but beyond this version.
        """
        path = Path(path)
        fields, digest = read_yaml(path)
        return cls(parse_problem(fields, str(path)), InputFiles(path.parent), str(path), {path.name: digest})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], base_dir: str | os.PathLike[str] = ".") -> Self:
        """Build a problem from the fields of a problem file; paths in it are relative to `base_dir`."""
        return cls(parse_problem(fields, "the problem"), InputFiles(Path(base_dir)), "the problem")

    @classmethod
    def example(cls) -> Self:
        """Return the built-in example: Llama-3.1 8B, 70B, 405B on ZeroEval, Azure arrivals, a simulated judge."""
        from cascadia_fast.example import EXAMPLE_DIR

        return cls.read(EXAMPLE_DIR / "problem.yaml")

    def replace(self, **changes: Unpack[Changes]) -> Problem:
        """Return a copy with some fields changed and checked again; files that were read are shared.

        `gpus` keeps the GPUs per node: 20 GPUs in nodes of 8 are two full nodes and one of 4. `rate_per_s` is the mean
        rate of the arrivals, as in the file, which `rate_from` and `headroom` turn into the planned rate. A `workload`
        takes the place of the files; with it, only a rate given in the same or a later call touches its rate.

        Raises
        ------
        InputError
            A field is unknown, its value is out of range, or a workload's models are not the cascade's.
        """
        fields = self.fields.model_dump()
        for name, value in changes.items():
            if name in _PLACE_OF_CHANGE:
                section, key = _PLACE_OF_CHANGE[name]
                fields[section][key] = value
            elif name not in Changes.__annotations__:
                known = did_you_mean(name, Changes.__annotations__)
                raise InputError(f"a problem has no field {name!r} to replace{known}")
        if "gpus" in changes or "price_usd_per_hour" in changes:
            pool = {"gpu": self.gpu.name, "gpus": self.gpus, "gpus_per_node": self.gpus_per_node}
            pool["price_usd_per_hour"] = self.price_usd_per_hour
            pool.update((name, value) for name, value in changes.items() if name in pool)
            fields["cluster"] = [pool]
        workload = changes.get("workload", self._given_workload)
        if workload is not None and {"rate_per_s", "rate_from", "headroom"} & changes.keys():
            arrivals = workload.arrivals
            if "rate_per_s" in changes:
                arrivals = arrivals.rescaled(changes["rate_per_s"])
            rate_from = changes.get("rate_from", workload.rate_from)
            headroom = changes.get("headroom", workload.headroom)
            workload = Workload.build(workload.requests, arrivals, rate_from, headroom)
        return Problem(parse_problem(fields, self.where), self._files, self.where, self._own_hash, workload)

    @cached_property
    def workload(self) -> Workload:
        """The workload, read from its files on first use."""
        if self._given_workload is not None:
            return self._given_workload
        section = self.fields.workload
        models = tuple(stage.name_in_requests for stage in self.stages)
        requests = self._files.requests(section, models, self.fields.judge)
        self._warn_of_long_requests(requests)
        return Workload.build(requests, self._files.arrivals(section), section.rate_from, section.headroom)

    def input_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every input file by its name in the problem, and of a workload given in memory."""
        hashes = self._own_hash | {name: self._files.sha256(name) for name in self._input_names()}
        if self._given_workload is not None:
            hashes["workload"] = self._given_workload.content_hash()
        return hashes

    def input_paths(self) -> tuple[Path, ...]:
        """Return where every input file lies, the problem file first."""
        names = [*self._own_hash, *self._input_names()]
        return tuple(self._files.path(name) for name in names)

    def _input_names(self) -> list[str]:
        """Names of the input files in the problem."""
        section = self.fields.workload
        models = [entry.model for entry in self.fields.cascade]
        names = [name for name in models if os.path.isfile(self._files.path(name))]
        if self.fields.engine.profile is not None:
            names.append(self.fields.engine.profile)
        if self._given_workload is None:
            names += [name for name in (section.requests, section.arrivals) if name is not None]
        return names

    def __repr__(self) -> str:
        cascade = ", ".join(stage.name for stage in self.stages)
        return f"Problem([{cascade}] on {self.gpus} x {self.gpu.name}, q_min {self.goal.q_min:g})"

    @cached_property
    def profile(self) -> Profile:
        """The calibration behind predicted times: the file that the problem names, or the shipped one."""
        name = self.fields.engine.profile
        if name is None:
            return Profile.shipped()
        try:
            profile = Profile.read(self._files.path(name))
            profile.require(self.gpu.name, self.engine)
        except InputError as error:
            raise InputError(f"{self.where}: engine.profile {name!r}: {error}") from None
        return profile

    def _warn_of_long_requests(self, requests: ScoredRequests) -> None:
        for stage, tokens in zip(self.stages, requests.input_tokens + requests.output_tokens, strict=True):
            limit = stage.model.max_model_len
            longer = int((tokens > limit).sum())
            if longer:
                warnings.warn(
                    f"{longer:,} of {requests.size:,} requests are longer, input and output together, than the "
                    f"{limit:,} tokens that {stage.name} takes; an engine would refuse them",
                    CascadiaWarning,
                    stacklevel=3,
                )

    def _check_objective(self) -> None:
        objective = self.goal.objective
        if objective in UNSUPPORTED_OBJECTIVES:
            raise UnsupportedError(
                f"{self.where}: goal.objective {objective!r} is not available in this version; use {OBJECTIVES[0]}"
            )
        if objective not in OBJECTIVES:
            hint = did_you_mean(objective, OBJECTIVES) or f"; use {OBJECTIVES[0]}"
            raise InputError(f"{self.where}: goal.objective {objective!r} is unknown{hint}")

    def _check_workload(self) -> None:
        section = self.fields.workload
        models = tuple(stage.name_in_requests for stage in self.stages)
        if self._given_workload is not None:
            if self._given_workload.requests.models != models:
                given = ", ".join(self._given_workload.requests.models)
                raise InputError(f"the workload scores the models {given}; the cascade has {', '.join(models)}")
            return
        if section.arrivals is None:
            needs = {
                "neither arrivals nor rate_per_s": section.rate_per_s is None,
                f"rate_from: {section.rate_from} but no arrivals": section.rate_from != "mean",
                "lengths: trace but no arrivals": section.lengths == "trace",
            }
            for what, wrong in needs.items():
                if wrong:
                    raise InputError(f"{self.where}: workload has {what}; add arrivals (a trace) or a plain rate_per_s")
        elif section.cv is not None:
            raise InputError(f"{self.where}: workload has both arrivals and cv; a trace has its own CV, so drop cv")


def _stages(cascade: Sequence[CascadeEntry], files: InputFiles, where: str) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for index, entry in enumerate(cascade):
        place = f"{where}: cascade[{index}]"
        path = files.path(entry.model)
        if os.path.isfile(path) and path.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(
                f"{place}.model {entry.model!r} is larger than {MAX_TEXT_BYTES:,} bytes; give a config.json"
            )
        try:
            model = catalog.model(entry.model, files.base_dir)
        except (InputError, UnsupportedError) as error:
            raise type(error)(f"{place}.model: {error}") from None
        weights = entry.weights or model.native_weights
        if weights not in WEIGHT_FORMATS:
            raise UnsupportedError(
                f"{place}.model {entry.model!r} is published in the weight format {weights!r}, which cannot be "
                f"planned; set cascade[{index}].weights to one of {', '.join(WEIGHT_FORMATS)}"
            )
        found.append(Stage(model.name, model, weights, entry.kv_dtype, entry.name_in_requests or entry.model))
    repeated = {name for name, count in Counter(stage.name for stage in found).items() if count > 1}
    stages = tuple(
        Stage(f"{stage.name} ({stage.weights})", stage.model, stage.weights, stage.kv_dtype, stage.name_in_requests)
        if stage.name in repeated
        else stage
        for stage in found
    )
    for attribute, fix in (("name", "use other weights"), ("name_in_requests", "name each its own rows")):
        first_with: dict[str, int] = {}
        for index, stage in enumerate(stages):
            value = getattr(stage, attribute)
            if first_with.setdefault(value, index) != index:
                first = first_with[value]
                raise InputError(
                    f"{where}: cascade[{index}] has the {attribute} {value!r} of cascade[{first}]; {fix} or drop one"
                )
    return stages


def _one_pool(cluster: Sequence[PoolEntry], where: str) -> tuple[GpuSpec, int, int, float | None]:
    """Merge pools of one GPU type and node size: the GPU, their number, GPUs per node, and their mean price."""
    pools: list[tuple[GpuSpec, int, int, float | None]] = []
    for index, entry in enumerate(cluster):
        place = f"{where}: cluster[{index}]"
        try:
            gpu = catalog.gpu(entry.gpu)
        except InputError as error:
            raise InputError(f"{place}.gpu: {error}") from None
        per_node = gpu.gpus_per_node if entry.gpus_per_node is None else entry.gpus_per_node
        if (entry.nodes is None) == (entry.gpus is None):
            both = "both nodes and gpus" if entry.nodes is not None else "neither nodes nor gpus"
            raise InputError(f"{place} has {both}; give the number of full nodes or the number of GPUs in total")
        total = entry.gpus if entry.gpus is not None else (entry.nodes or 0) * per_node
        price = gpu.price_usd_per_hour if entry.price_usd_per_hour is None else entry.price_usd_per_hour
        pools.append((gpu, total, per_node, price))
    gpu, _, per_node, _ = pools[0]
    for index, (other, _, other_per_node, _) in enumerate(pools):
        if (other.name, other_per_node) != (gpu.name, per_node):
            raise UnsupportedError(
                f"{where}: cluster[{index}] has {other_per_node} x {other.name} per node and cluster[0] {per_node} x "
                f"{gpu.name}; this version plans one GPU type and node size, so keep one of them"
            )
    partial = [index for index, (_, total, _, _) in enumerate(pools) if total % per_node]
    if len(partial) > 1:
        raise UnsupportedError(
            f"{where}: cluster[{partial[0]}] and cluster[{partial[1]}] both have a partial node; this version plans "
            f"one, so give multiples of {per_node} GPUs in all pools but one"
        )
    gpus = sum(total for _, total, _, _ in pools)
    prices = [price for _, _, _, price in pools]
    if None in prices:
        return gpu, gpus, per_node, None
    # Weighting one price by a number of GPUs and dividing again would not always give it back.
    if len(set(prices)) == 1:
        return gpu, gpus, per_node, prices[0]
    return gpu, gpus, per_node, sum((price or 0.0) * total for _, total, _, price in pools) / gpus
