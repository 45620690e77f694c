"""Random engines and traffic on which the latency model is held to the event simulation, from models and GPUs of the
catalog with the shipped efficiencies."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core, catalog
from cascadia_fast.profile import Profile

IntArray = NDArray[np.int64]
DENSE = (
    *("qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b", "qwen2.5-72b", "qwen3-8b", "qwen3-32b"),
    *("llama-3.1-8b", "llama-3.1-70b", "deepseek-r1-distill-qwen-1.5b"),
)
MOE = (
    *("mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "qwen3-235b-a22b-fp8", "gpt-oss-20b", "gpt-oss-120b"),
    *("deepseek-r1", "minimax-m2.5", "llama-4-scout"),
)
GPUS = ("h100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb", "h200-sxm-141gb", "a100-sxm-80gb", "b200")
BANDS = {"<= 0.6": (0.05, 0.6), "0.6-0.8": (0.6, 0.8), "0.8-0.9": (0.8, 0.9)}
STRATA = ("general", "prompt-heavy", "kv-limited", "moe", "bursty")
DISPATCHED = ("general", "prompt-heavy")
REPLICAS = (2, 4, 8, 16)
POPULATION = 50_000
GPUS_PER_NODE = 8
GPU_FIELDS = (
    *("memory_bytes", "bandwidth_bytes_per_s", "bf16_flops_per_s", "fp8_flops_per_s", "int8_ops_per_s"),
    *("link_bytes_per_s", "internode_bytes_per_s"),
)


@dataclass(frozen=True)
class Lengths:
    """Lognormal prompt and output lengths, independent and clipped."""

    log_in: float
    sigma_in: float
    log_out: float
    sigma_out: float
    most_in: int = 20_000
    most_out: int = 8_000

    def sample(self, rng: np.random.Generator, count: int) -> tuple[IntArray, IntArray]:
        tokens_in = np.clip(rng.lognormal(self.log_in, self.sigma_in, count), 8, self.most_in)
        tokens_out = np.clip(rng.lognormal(self.log_out, self.sigma_out, count), 4, self.most_out)
        return tokens_in.astype(np.int64), tokens_out.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """A model on its GPUs, and how the engine batches."""

    model: str
    weights: str
    gpu: str
    tp: int
    pp: int
    max_num_seqs: int
    max_batched_tokens: int
    memory_utilization: float

    @property
    def limits(self) -> _core.EngineLimits:
        return _core.EngineLimits(
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            memory_utilization=self.memory_utilization,
            gpus_per_node=GPUS_PER_NODE,
        )

    def parts(self) -> tuple[_core.Architecture, _core.Precision, _core.Gpu]:
        spec = catalog.gpu(self.gpu)
        return (
            _core.Architecture(**dataclasses.asdict(catalog.model(self.model).architecture)),
            _core.Precision(weights=self.weights),
            _core.Gpu(**{name: getattr(spec, name) for name in GPU_FIELDS}),
        )

    def engine(self) -> _core.Replica:
        architecture, precision, gpu = self.parts()
        return _core.Replica(
            architecture=architecture,
            precision=precision,
            gpu=gpu,
            efficiency=_core.Efficiency(**Profile.shipped().efficiency(self.weights, "bf16", "vllm")),
            shape=_core.Shape(self.tp, self.pp),
            limits=self.limits,
        )


@dataclass(frozen=True, kw_only=True)
class Case(EngineSpec):
    """One configuration; `utilization` is a share of the simulated capacity."""

    stratum: str
    band: str
    seed: tuple[int, ...]
    lengths: Lengths
    cv: float
    utilization: float
    replicas: int = 1
    dispatch: str = "random"

    def population(self) -> tuple[IntArray, IntArray]:
        """The requests that traffic is drawn from: the model is told of all of them, so that no sampling errs."""
        return _population(self.lengths, self.seed)


@functools.lru_cache(maxsize=4)  # drawing one takes most of the time that it takes to compare with known answers
def _population(lengths: Lengths, seed: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    return lengths.sample(np.random.default_rng(seed), POPULATION)


def draw(stratum: str, band: str, index: int, seed: int) -> Case:
    """Draw until a configuration is possible; the same arguments give the same one."""
    origin = (seed, STRATA.index(stratum), list(BANDS).index(band), index)
    rng = np.random.default_rng(origin)
    while True:
        case = _with_shape(_drawn(stratum, band, origin, rng), rng)
        if case is not None and stratum == "kv-limited":
            case = _with_small_cache(case, rng)
        if case is not None and _longest_fits(case):
            return case


def draw_dispatched(stratum: str, band: str, index: int, seed: int) -> tuple[Case, Case]:
    """The same replicas and traffic under two ways to dispatch."""
    case = draw(stratum, band, index, seed + 1)  # other engines than the single ones
    case = dataclasses.replace(case, replicas=REPLICAS[index % len(REPLICAS)])
    return case, dataclasses.replace(case, dispatch="least_outstanding")


def _drawn(stratum: str, band: str, origin: tuple[int, ...], rng: np.random.Generator) -> Case:
    model = str(rng.choice(MOE if stratum == "moe" else DENSE))
    heavy = stratum == "prompt-heavy"
    log_in, log_out = ((7.0, 8.3), (3.0, 4.3)) if heavy else ((4.5, 8.0), (3.0, 7.3))
    return Case(
        stratum=stratum,
        band=band,
        seed=origin,
        model=model,
        weights=catalog.model(model).native_weights if stratum == "moe" else str(rng.choice(("bf16", "bf16", "fp8"))),
        gpu=str(rng.choice(GPUS)),
        tp=1,
        pp=2 if rng.random() < 0.15 else 1,
        max_num_seqs=int(rng.choice((64, 128, 256))),
        max_batched_tokens=int(rng.choice((1024, 2048, 8192))),
        memory_utilization=0.9,
        lengths=Lengths(rng.uniform(*log_in), rng.uniform(0.3, 1.2), rng.uniform(*log_out), rng.uniform(0.3, 1.1)),
        cv=rng.uniform(1.5, 4.0) if stratum == "bursty" else 1.0,
        utilization=rng.uniform(*BANDS[band]),
    )


def _with_shape(case: Case, rng: np.random.Generator) -> Case | None:
    architecture, precision, gpu = case.parts()
    shapes = _core.valid_shapes(
        architecture=architecture,
        precision=precision,
        gpu=gpu,
        gpus_total=2 * GPUS_PER_NODE,
        limits=case.limits,
    )
    tps = [shape.tp for shape in shapes if shape.pp == case.pp and shape.tp <= GPUS_PER_NODE]
    return dataclasses.replace(case, tp=int(rng.choice(tps))) if tps else None


def _with_small_cache(case: Case, rng: np.random.Generator) -> Case | None:
    """Give the engine room for 8 to 60 requests, counting what they hold on average while they decode."""
    tokens_in, tokens_out = case.population()
    held = float(tokens_out @ (tokens_in + tokens_out / 2)) / float(tokens_out.sum())
    requests = np.exp(rng.uniform(np.log(8), np.log(min(60.0, 0.7 * case.max_num_seqs))))
    architecture, precision, gpu = case.parts()
    shape = _core.Shape(case.tp, case.pp)
    plan = _core.memory_plan(architecture=architecture, precision=precision, gpu=gpu, shape=shape, limits=case.limits)
    cache_bytes = case.engine().kv_bytes(held) * requests / shape.gpus
    utilization = (plan.weight_bytes + plan.reserve_bytes + cache_bytes) / catalog.gpu(case.gpu).memory_bytes
    if utilization > 0.95:
        return None
    # Of prompt and of output, as an engine's max_model_len would: no request takes more than half of the cache.
    most = int(held * requests / 4)
    lengths = dataclasses.replace(
        case.lengths, most_in=min(case.lengths.most_in, most), most_out=min(case.lengths.most_out, most)
    )
    return dataclasses.replace(case, memory_utilization=utilization, lengths=lengths)


def _longest_fits(case: Case) -> bool:
    engine = case.engine()
    longest = max(int((tokens_in + tokens_out).max()) for tokens_in, tokens_out in [case.population()])
    return engine.kv_bytes(float(longest)) <= engine.kv_capacity_bytes
