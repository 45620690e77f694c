"""What runs on GPUs: the models of the cascade, and the judge where it is hosted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import catalog
from cascadia_fast.catalog import ModelSpec
from cascadia_fast.errors import InputError, UnsupportedError
from cascadia_fast.input_files import MAX_TEXT_BYTES, InputFiles
from cascadia_fast.profile import WEIGHT_FORMATS
from cascadia_fast.schema import CascadeEntry, JudgeSection

FloatArray = NDArray[np.float64]


class Lengths(Protocol):
    """Mean lengths in tokens of some requests and their answers, each (K,)."""

    @property
    def tokens_in(self) -> FloatArray:
        """Of the requests."""

    @property
    def tokens_out(self) -> FloatArray:
        """Of the answers."""


@dataclass(frozen=True)
class Stage:
    """One model of the cascade, or the model of a hosted judge.

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
    min_replicas, max_replicas
        How many replicas it has at least, and at most; None: any number. A model with a minimum of 1 or more is part of
        every cascade that is planned, and keeps its replicas also where nobody reaches it.
    tp, pp
        The only degrees of parallelism its engines may have; None: any.
    pools
        Names of the only pools it may run on; empty: any.
    """

    name: str
    model: ModelSpec
    weights: str
    kv_dtype: str
    name_in_requests: str
    min_replicas: int = 0
    max_replicas: int | None = None
    tp: int | None = None
    pp: int | None = None
    pools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judge:
    """What scores an answer.

    Parameters
    ----------
    kind
        ``external``; ``simulated`` from the quality with a stated AUC; or ``hosted`` on GPUs of the cluster.
    latency_s, usd_per_call
        Of one call; both are 0 where the judge is hosted, since they follow from its load and its GPUs.
    simulated_auc, seed
        Set where scores are simulated, as those of a hosted judge may be, too.
    model, weights, kv_dtype
        What is hosted; None where nothing is.
    output_tokens, instruction_tokens
        What a hosted judge writes, and what it reads besides the request's prompt and the answer.
    """

    kind: str
    latency_s: float
    usd_per_call: float
    simulated_auc: float | None
    seed: int
    model: ModelSpec | None = None
    weights: str | None = None
    kv_dtype: str | None = None
    output_tokens: int = 0
    instruction_tokens: int = 0

    @property
    def hosted(self) -> Stage | None:
        """The hosted model as something that engines run; None where nothing is hosted."""
        if self.model is None or self.weights is None or self.kv_dtype is None:
            return None
        return Stage(self.model.name, self.model, self.weights, self.kv_dtype, "")

    def cells(self, cells: Sequence[Lengths]) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the lengths of a hosted judge's calls: prompts, answers and their spread, each (ΣK,).

        One call reads an answer of one of the models; those of the first model, in its length cells, come first.
        """
        tokens_in = np.concatenate([self.prompt_tokens(cell.tokens_in, cell.tokens_out) for cell in cells])
        return tokens_in, np.full(tokens_in.size, float(self.output_tokens)), np.zeros(tokens_in.size)

    def prompt_tokens(self, tokens_in: FloatArray, tokens_out: FloatArray) -> FloatArray:
        """Return what a hosted judge reads of a request and its answer: both, after its instructions."""
        return self.instruction_tokens + tokens_in + tokens_out

    @property
    def description(self) -> str:
        """A label for people; it says when scores are simulated."""
        scores = "" if self.simulated_auc is None else f" (AUC {self.simulated_auc:g}, seed {self.seed})"
        if self.model is not None:
            simulated = f" with simulated scores{scores}" if scores else ""
            return f"hosted judge {self.model.name} in {self.weights}{simulated}"
        return f"{self.kind} judge{scores}, {self.latency_s:g} s per call"


def stages_of(cascade: Sequence[CascadeEntry], files: InputFiles, where: str) -> tuple[Stage, ...]:
    """Return the models of the cascade, small to large.

    Raises
    ------
    InputError
        A model is unknown, or two are alike.
    UnsupportedError
        A model is of a kind or in a weight format that cannot be planned.
    """
    found: list[Stage] = []
    for index, entry in enumerate(cascade):
        model, weights = _model(entry.model, entry.weights, files, where, f"cascade[{index}]")
        stage = Stage(
            name=model.name,
            model=model,
            weights=weights,
            kv_dtype=entry.kv_dtype,
            name_in_requests=entry.name_in_requests or entry.model,
            min_replicas=entry.min_replicas,
            max_replicas=entry.max_replicas,
            tp=entry.tp,
            pp=entry.pp,
            pools=entry.pools or (),
        )
        found.append(stage)
    repeated = {name for name, count in Counter(stage.name for stage in found).items() if count > 1}
    stages = tuple(
        replace(stage, name=f"{stage.name} ({stage.weights})") if stage.name in repeated else stage for stage in found
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


def judge_of(section: JudgeSection, files: InputFiles, where: str) -> Judge:
    """Return the judge; raises as `stages_of`."""
    simulated_auc = section.simulated_auc
    if section.model is None:
        kind = "external" if simulated_auc is None else "simulated"
        return Judge(kind, section.latency_s, section.usd_per_call, simulated_auc, section.seed)
    model, weights = _model(section.model, section.weights, files, where, "judge")
    return Judge(
        kind="hosted",
        latency_s=0.0,
        usd_per_call=0.0,
        simulated_auc=simulated_auc,
        seed=section.seed,
        model=model,
        weights=weights,
        kv_dtype=section.kv_dtype,
        output_tokens=section.output_tokens,
        instruction_tokens=section.instruction_tokens,
    )


def _model(name: str, weights: str | None, files: InputFiles, where: str, section: str) -> tuple[ModelSpec, str]:
    """The model of that name, and the format of its weights."""
    place = f"{where}: {section}"
    path = files.path(name)
    if os.path.isfile(path) and path.stat().st_size > MAX_TEXT_BYTES:
        raise InputError(f"{place}.model {name!r} is larger than {MAX_TEXT_BYTES:,} bytes; give a config.json")
    try:
        model = catalog.model(name, files.base_dir)
    except (InputError, UnsupportedError) as error:
        raise type(error)(f"{place}.model: {error}") from None
    weights = weights or model.native_weights
    if weights not in WEIGHT_FORMATS:
        raise UnsupportedError(
            f"{place}.model {name!r} is published in the weight format {weights!r}, which cannot be planned; set "
            f"{section}.weights to one of {', '.join(WEIGHT_FORMATS)}"
        )
    return model, weights
