"""Step times per second on one thread: a batch in C++ against calls from Python and against the NumPy reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from reference import roofline as oracle

from cascadia_fast import _core, catalog
from cascadia_fast.profile import Profile

MODEL, GPU, WEIGHTS, TP = "deepseek-r1", "h200-sxm-141gb", "fp8", 8
SIZE = 1000


def work() -> np.ndarray:
    """Sequences, context per sequence, prompt tokens, prompt tokens before; shape (4, SIZE)."""
    most = np.array([[256], [16384], [8192], [16384]])
    return np.random.default_rng(1).integers(1, most, (4, SIZE), endpoint=True).astype(float)


@pytest.fixture
def methods() -> dict[str, Callable[[np.ndarray], Any]]:
    spec = catalog.model(MODEL).architecture
    gpu = catalog.gpu(GPU)
    peaks = {field.name for field in dataclasses.fields(gpu) if field.name.endswith("_per_s")} | {"memory_bytes"}
    numbers = Profile.shipped().efficiency(WEIGHTS, "bf16", "vllm")
    engine = _core.Replica(
        architecture=_core.Architecture(**dataclasses.asdict(spec)),
        precision=_core.Precision(weights=WEIGHTS),
        gpu=_core.Gpu(**{name: getattr(gpu, name) for name in peaks}),
        efficiency=_core.Efficiency(**numbers),
        shape=_core.Shape(TP, 1),
        limits=_core.EngineLimits(),
    )
    slow = oracle.Engine(spec, gpu, SimpleNamespace(**numbers), WEIGHTS, "bf16", TP, 1)

    def reference(n: float, context: float, prompt: float, before: float) -> float:
        return (
            oracle.linear_s(slow, n + prompt, n + 1)
            + n * oracle.decode_attention_s(slow, context)
            + oracle.prefill_attention_s(slow, int(prompt), int(before))
        )

    return {
        "batch": lambda columns: engine.step_times(*columns),
        "calls": lambda columns: [engine.step_s(*row) for row in columns.T.tolist()],
        "reference": lambda columns: [reference(*row) for row in columns.T.tolist()],
    }


@pytest.mark.benchmark(group="1,000 step times, DeepSeek-R1 on 8 GPUs")
@pytest.mark.parametrize("method", ["batch", "calls", "reference"])
def test_step_times(benchmark: BenchmarkFixture, methods: dict[str, Callable[[np.ndarray], Any]], method: str) -> None:
    columns = work()
    times_s = benchmark(methods[method], columns)
    expected = methods["reference"](columns[:, :20])
    assert np.allclose(times_s[:20], expected, rtol=1e-9)
    if benchmark.stats:  # none when benchmarks are disabled and only the answers are checked
        benchmark.extra_info["step_times_per_s"] = SIZE / benchmark.stats.stats.min
