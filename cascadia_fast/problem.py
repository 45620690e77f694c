"""A planning problem: cascade, cluster, workload, judge and goal, read from YAML and checked."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

from cascadia_fast.changes import Changes, apply_changes
from cascadia_fast.contradictions import check_together
from cascadia_fast.errors import CascadiaWarning, InputError
from cascadia_fast.input_files import InputFiles, read_yaml
from cascadia_fast.pools import pools_of
from cascadia_fast.profile import Profile
from cascadia_fast.schema import Goal, ProblemFile, parse_problem
from cascadia_fast.stations import Judge as Judge
from cascadia_fast.stations import Stage as Stage
from cascadia_fast.stations import judge_of, stages_of
from cascadia_fast.workload import ScoredRequests, Workload


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
    pools
        The GPUs that may be used, by type, node size and price.
    gpu, gpus_per_node, price_usd_per_hour
        GPU type of the first pool, how many share a node (the last node may have fewer), and the price of one.
    gpus
        GPUs of all pools.
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
        self.stages = stages_of(fields.cascade, files, where)
        self.pools = pools_of(fields.cluster, where)
        self.gpu, self.gpus_per_node = self.pools[0].spec, self.pools[0].gpus_per_node
        self.gpus = sum(pool.gpus for pool in self.pools)
        self.price_usd_per_hour = self.pools[0].price_usd_per_hour
        self.judge = judge_of(fields.judge, files, where)
        self.goal: Goal = fields.goal
        self.engine = fields.engine.name
        self.max_num_seqs = fields.engine.max_num_seqs
        self.max_batched_tokens = fields.engine.max_batched_tokens
        self.memory_utilization = fields.engine.memory_utilization
        check_together(fields, self.stages, self.pools, where)
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

        `gpus` counts those that may be used and keeps the GPUs per node: 20 GPUs in nodes of 8 are two full nodes and
        one of 4. `rate_per_s` is the mean rate of the arrivals, as in the file, which `rate_from` and `headroom` turn
        into the planned rate. A `workload` takes the place of the files; with it, only a rate given in the same or a
        later call touches its rate. Where there are several pools, `pools` says of which GPUs are changed.

        Raises
        ------
        InputError
            A field is unknown, its value is out of range, it contradicts another, or a workload's models are not the
            cascade's.
        """
        # What was not given stays that way: only what was given can contradict something.
        fields = self.fields.model_dump(exclude_unset=True)
        apply_changes(fields, changes, [stage.name for stage in self.stages], self.pools)
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
        if self.fields.judge.model is not None:
            models.append(self.fields.judge.model)
        names = [name for name in models if os.path.isfile(self._files.path(name))]
        if self.fields.engine.profile is not None:
            names.append(self.fields.engine.profile)
        if self._given_workload is None:
            names += [name for name in (section.requests, section.arrivals) if name is not None]
        return names

    def __repr__(self) -> str:
        cascade = ", ".join(stage.name for stage in self.stages)
        gpus = " + ".join(f"{pool.gpus} x {pool.spec.name}" for pool in self.pools)
        return f"Problem([{cascade}] on {gpus}, q_min {self.goal.q_min:g})"

    def pools_for(self, stage: Stage) -> tuple[int, ...]:
        """Return the indexes of the pools that a model may run on."""
        return tuple(index for index, pool in enumerate(self.pools) if not stage.pools or pool.name in stage.pools)

    @cached_property
    def profile(self) -> Profile:
        """The calibration behind predicted times: the file that the problem names, or the shipped one."""
        name = self.fields.engine.profile
        if name is None:
            return Profile.shipped()
        try:
            profile = Profile.read(self._files.path(name))
            for pool in self.pools:
                profile.require(pool.spec.name, self.engine)
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
        if self.judge.model is None:
            return
        prompts = self.judge.prompt_tokens(requests.input_tokens, requests.output_tokens)
        limit = self.judge.model.max_model_len
        longer = int((prompts[:-1] + self.judge.output_tokens > limit).any(axis=0).sum())
        if longer:
            warnings.warn(
                f"{longer:,} of {requests.size:,} requests make a judge call longer than the {limit:,} tokens that "
                f"{self.judge.model.name} takes; an engine would refuse it",
                CascadiaWarning,
                stacklevel=3,
            )

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
