"""Parameters, memory, shapes and step times of one engine."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import roofline as oracle

from cascadia_fast import _core, catalog
from cascadia_fast.profile import WEIGHT_FORMATS, Profile


def dense(layers: int, hidden: int, heads: int, kv_heads: int, vocab: int, width: int, **more: Any) -> dict[str, Any]:
    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": 128, "vocab": vocab}
    return {**sizes, "dense_layers": layers, "dense_intermediate": width, **more}


def moe(base: dict[str, Any], experts: int, per_token: int, width: int, **more: Any) -> dict[str, Any]:
    routed = {"experts": experts, "experts_per_token": per_token, "expert_intermediate": width}
    return {**base, "dense_layers": 0, **routed, **more}


LATENT = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_dim": 128, "qk_rope_dim": 64, "v_head_dim": 128}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2.5-7B": dense(28, 3584, 28, 4, 152064, 18944),
    "Llama-3.1-8B": dense(32, 4096, 32, 8, 128256, 14336),
    "Llama-3.1-70B": dense(80, 8192, 64, 8, 128256, 28672),
    "Llama-3.1-405B": dense(126, 16384, 128, 8, 128256, 53248),
    "Mixtral-8x7B": moe(dense(32, 4096, 32, 8, 32000, 0), 8, 2, 14336),
    "Qwen3-235B-A22B": moe(dense(94, 4096, 64, 4, 151936, 0), 128, 8, 1536),
    "gpt-oss-120b": moe(dense(36, 2880, 64, 8, 201088, 0, head_dim=64, window=128, windowed_layers=18), 128, 4, 2880),
    "DeepSeek-R1": moe(dense(61, 7168, 128, 128, 129280, 18432), 256, 8, 2048, shared_intermediate=2048, **LATENT)
    | {"dense_layers": 3},
}
# The same fields with the values of an absent part, for the oracle.
ABSENT = {field.name: field.default for field in dataclasses.fields(catalog.ArchitectureSpec)}
GPU = {
    "memory_bytes": 80 * 2**30,
    "bandwidth_bytes_per_s": 3.35e12,
    "bf16_flops_per_s": 989e12,
    "fp8_flops_per_s": 1978e12,
    "int8_ops_per_s": None,
    "link_bytes_per_s": 450e9,
    "internode_bytes_per_s": 50e9,
}
EFFICIENCY = {
    "dense_memory": 0.9,
    "dense_compute": 0.7,
    "expert_memory": 0.8,
    "expert_compute": 0.3,
    "expert_half_width": 150.0,
    "expert_imbalance": 0.25,
    "attention_memory": 0.85,
    "attention_compute": 0.35,
    "prefill_compute": 0.55,
    "activation_passes": 9.0,
    "head_s": 2e-9,
    "gemm_s": 4e-6,
    "attention_s": 1.1e-5,
    "latent_attention_s": 2e-5,
    "expert_s": 4e-5,
    "layer_s": 8e-6,
    "prompt_layer_s": 1e-4,
    "prompt_expert_s": 3e-4,
    "step_overhead_s": 3e-4,
    "sequence_overhead_s": 2e-5,
    "request_overhead_s": 0.02,
    "allreduce_latency_s": 4e-6,
    "allreduce_exchange_s": 5e-6,
    "allreduce_bandwidth": 0.35,
    "bulk_latency_s": 2e-5,
    "bulk_bandwidth": 0.7,
    "hop_latency_s": 1e-5,
    "hop_bandwidth": 0.5,
}
SHAPES = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 3), (4, 5)]
MODEL = st.sampled_from(sorted(MODELS))
SHAPE = st.sampled_from(SHAPES).filter(lambda shape: shape != (1, 3))
WEIGHTS = st.sampled_from(WEIGHT_FORMATS)
TOKENS = st.integers(0, 20_000)
AMOUNT = st.floats(0, 1e5)


def architecture(model: str) -> _core.Architecture:
    return _core.Architecture(**MODELS[model])


Parallelism = tuple[int, ...]  # tp, pp, attention_dp, ep


def replica(model: str, shape: Parallelism = (1, 1), weights: str = "bf16", kv: str = "bf16", **gpu: float) -> Any:
    return _core.Replica(
        architecture=architecture(model),
        precision=_core.Precision(weights=weights, kv=kv),
        gpu=_core.Gpu(**{**GPU, **gpu}),
        efficiency=_core.Efficiency(**EFFICIENCY),
        shape=_core.Shape(*shape),
        limits=_core.EngineLimits(),
    )


def reference(model: str, shape: Parallelism, weights: str, kv: str) -> oracle.Engine:
    absent = dict.fromkeys(ABSENT, 0) | {"gated": True, "tied_embeddings": False}
    spec = SimpleNamespace(**{**absent, **MODELS[model]})
    return oracle.Engine(spec, SimpleNamespace(**GPU), SimpleNamespace(**EFFICIENCY), weights, kv, *shape)


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen2.5-7B", 7.6),
        ("Llama-3.1-8B", 8.03),
        ("Llama-3.1-70B", 70.6),
        ("Llama-3.1-405B", 405),
        ("Mixtral-8x7B", 46.7),
        ("gpt-oss-120b", 117),
        ("Qwen3-235B-A22B", 235),
        ("DeepSeek-R1", 671),
    ],
)
def test_total_parameters_are_the_published_ones(model: str, billions: float) -> None:
    assert architecture(model).total_parameters == pytest.approx(billions * 1e9, rel=0.01)


# Publishers count the look-up of the input embedding differently; DeepSeek's is given as a whole number.
@pytest.mark.parametrize(
    ("model", "billions", "with_embedding", "tolerance"),
    [
        ("Mixtral-8x7B", 12.9, True, 0.01),
        ("Qwen3-235B-A22B", 22, True, 0.01),
        ("gpt-oss-120b", 5.1, False, 0.01),
        ("DeepSeek-R1", 37, False, 0.5 / 37),
    ],
)
def test_active_parameters_are_the_published_ones(
    model: str, billions: float, with_embedding: bool, tolerance: float
) -> None:
    a = architecture(model)
    active = a.active_parameters + with_embedding * a.embedding_parameters
    assert active == pytest.approx(billions * 1e9, rel=tolerance)


def test_weight_bytes_follow_the_format() -> None:
    r1, oss = architecture("DeepSeek-R1"), architecture("gpt-oss-120b")
    in_bf16 = r1.weight_bytes(_core.Precision(weights="bf16"))
    assert in_bf16 == pytest.approx(2 * r1.total_parameters)
    assert r1.weight_bytes(_core.Precision(weights="fp8")) / in_bf16 == pytest.approx(0.5, rel=0.01)
    assert r1.weight_bytes(_core.Precision(weights="int4")) / in_bf16 == pytest.approx(4.25 / 16, rel=0.02)
    # The published checkpoint of gpt-oss-120b takes 60.8 GiB; only its experts are 4-bit.
    assert oss.weight_bytes(_core.Precision(weights="mxfp4")) == pytest.approx(60.8 * 2**30, rel=0.01)


@given(MODEL, SHAPE, WEIGHTS, st.sampled_from(["bf16", "fp8"]), TOKENS, st.integers(0, 512), st.integers(0, 3000))
def test_times_match_the_reference(
    model: str, shape: tuple[int, int], weights: str, kv: str, tokens: int, sampled: int, more: int
) -> None:
    engine, slow = replica(model, shape, weights, kv), reference(model, shape, weights, kv)
    assert engine.linear_s(tokens, sampled) == pytest.approx(oracle.linear_s(slow, tokens, sampled), rel=1e-9)
    assert engine.decode_attention_s(tokens) == pytest.approx(oracle.decode_attention_s(slow, tokens), rel=1e-9)
    assert engine.kv_bytes(tokens) == pytest.approx(oracle.kv_bytes(slow, tokens), rel=1e-9)
    expected = oracle.prefill_attention_s(slow, more, tokens)
    assert engine.prefill_attention_s(more, tokens) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "gpt-oss-120b", "DeepSeek-R1"])
@pytest.mark.parametrize(("tokens_in", "tokens_out"), [(0, 1), (100, 200), (1000, 50)])
def test_attention_summed_over_a_request_matches_the_reference(model: str, tokens_in: int, tokens_out: int) -> None:
    expected = oracle.decode_attention_sum_s(reference(model, (2, 1), "bf16", "bf16"), tokens_in, tokens_out)
    assert replica(model, (2, 1)).decode_attention_sum_s(tokens_in, tokens_out) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("DeepSeek-R1", (1, 1, 8, 8)),
        ("DeepSeek-R1", (2, 1, 4, 1)),
        ("DeepSeek-R1", (8, 1, 1, 8)),
        ("DeepSeek-R1", (16, 1, 1, 4)),
        ("gpt-oss-120b", (4, 2, 1, 2)),
        ("Qwen3-235B-A22B", (2, 1, 8, 16)),
        ("Llama-3.1-405B", (16, 1)),
    ],
)
@pytest.mark.parametrize(("tokens", "sampled"), [(1, 1), (3, 1), (100, 100), (8192, 70)])
def test_experts_and_attention_in_parallel_match_the_reference(
    model: str, shape: Parallelism, tokens: int, sampled: int
) -> None:
    engine, slow = replica(model, shape, "fp8"), reference(model, shape, "fp8", "bf16")
    assert engine.linear_s(tokens, sampled) == pytest.approx(oracle.linear_s(slow, tokens, sampled), rel=1e-9)
    assert engine.decode_attention_s(tokens) == pytest.approx(oracle.decode_attention_s(slow, tokens), rel=1e-9)
    assert engine.kv_bytes(tokens) == pytest.approx(oracle.kv_bytes(slow, tokens), rel=1e-9)


def test_attention_in_parallel_holds_more_latent_cache() -> None:
    # Every tensor-parallel GPU keeps the whole compressed cache; copies of the attention keep different requests.
    tensor, copies = replica("DeepSeek-R1", (8, 1), "fp8", memory_bytes=141e9), None
    copies = replica("DeepSeek-R1", (1, 1, 8, 8), "fp8", memory_bytes=141e9)
    requests = [engine.kv_capacity_bytes / engine.kv_bytes(4096) for engine in (tensor, copies)]
    assert 4 < requests[1] / requests[0] < 8


def rises(lower: float, upper: float) -> bool:
    """Rounding of the last digits aside; times are sums of a few dozen terms."""
    return lower <= upper * (1 + 1e-12)


@given(MODEL, SHAPE, WEIGHTS, AMOUNT, AMOUNT, AMOUNT, AMOUNT, AMOUNT)
def test_times_never_fall_when_tokens_rise(
    model: str, shape: tuple[int, int], weights: str, a: float, b: float, c: float, d: float, more: float
) -> None:
    engine = replica(model, shape, weights)
    assert rises(engine.linear_s(a, b), engine.linear_s(a + more, b))
    assert rises(engine.linear_s(a, b), engine.linear_s(a + more, b + more))
    if b + more < a:  # a round without prompts is cheaper to launch
        assert rises(engine.linear_s(a, b), engine.linear_s(a, b + more))
    assert rises(engine.decode_attention_sum_s(a, b), engine.decode_attention_sum_s(a + more, b))
    assert rises(engine.decode_attention_sum_s(a, b), engine.decode_attention_sum_s(a, b + more))
    assert rises(engine.fill_s(a), engine.fill_s(a + more))
    assert rises(engine.kv_bytes(a), engine.kv_bytes(a + more))
    base = [a, b, c, d]
    for i in range(4):
        step_s = engine.step_s(*[value + more * (i == j) for j, value in enumerate(base)])
        assert np.isfinite(step_s)
        assert rises(engine.step_s(*base), step_s)


@given(
    MODEL,
    SHAPE,
    st.sampled_from([name for name, peak in GPU.items() if peak and name != "memory_bytes"]),
    st.floats(1, 4),
    AMOUNT,
    AMOUNT,
    AMOUNT,
)
def test_faster_hardware_never_slows_a_step(
    model: str, shape: tuple[int, int], peak: str, factor: float, sequences: float, context: float, prompt: float
) -> None:
    slow, fast = replica(model, shape, "fp8"), replica(model, shape, "fp8", **{peak: GPU[peak] * factor})
    work = (sequences, context, prompt, context)
    assert rises(fast.step_s(*work), slow.step_s(*work))
    assert rises(fast.fill_s(prompt), slow.fill_s(prompt))


def test_step_is_the_sum_of_its_parts() -> None:
    engine = replica("DeepSeek-R1", (4, 5), "int4")
    parts_s = engine.linear_s(64 + 512, 65) + 64 * engine.decode_attention_s(2000) + engine.prefill_attention_s(512, 99)
    assert engine.step_s(64, 2000, 512, 99) == pytest.approx(parts_s)
    assert engine.step_s(0, 0, 0, 0) == 0


def test_only_pipelines_fill() -> None:
    assert replica("Llama-3.1-70B", (4, 1)).fill_s(4096) == EFFICIENCY["request_overhead_s"]
    deep = replica("Llama-3.1-70B", (4, 2))
    # Alone in the pipeline, a prompt that is bound by arithmetic takes as long as on half the GPUs.
    alone_s = deep.step_s(0, 0, 4096, 0) + deep.fill_s(4096) - deep.fill_s(0)
    assert alone_s == pytest.approx(replica("Llama-3.1-70B", (4, 1)).step_s(0, 0, 4096, 0), rel=0.05)


def test_batch_equals_single_steps_and_is_read_only() -> None:
    engine = replica("gpt-oss-120b", (2, 1), "mxfp4")
    columns = np.random.default_rng(3).uniform(0, 5000, (4, 200))
    times_s = engine.step_times(*columns)
    assert times_s.tolist() == [engine.step_s(*row) for row in columns.T]
    assert not times_s.flags.writeable


def test_memory_of_the_fullest_gpu() -> None:
    def plan(model: str, shape: tuple[int, int], weights: str) -> Any:
        return _core.memory_plan(
            architecture=architecture(model),
            precision=_core.Precision(weights=weights),
            gpu=_core.Gpu(**GPU),
            shape=_core.Shape(*shape),
            limits=_core.EngineLimits(),
        )

    one = plan("Llama-3.1-70B", (1, 1), "bf16")
    weights = architecture("Llama-3.1-70B").weight_bytes(_core.Precision(weights="bf16"))
    assert one.weight_bytes == pytest.approx(weights, rel=1e-4)
    assert one.kv_capacity_bytes < 0
    halved = plan("Llama-3.1-70B", (2, 1), "bf16")
    assert halved.weight_bytes == pytest.approx(weights / 2, rel=1e-3)
    assert halved.kv_capacity_bytes == 0.9 * GPU["memory_bytes"] - halved.weight_bytes - halved.reserve_bytes
    # The longest stage: 13 of 61 layers and one of the two token tables, split over 4 GPUs.
    layer = 257 * 3 * 7168 * 2048 + 187e6
    stage = plan("DeepSeek-R1", (4, 5), "int4").weight_bytes
    assert stage == pytest.approx((13 * layer * 4.25 / 8 + 129280 * 7168 * 2) / 4, rel=0.01)


def test_cache_is_replicated_where_it_cannot_be_split() -> None:
    assert replica("Llama-3.1-8B", (4, 1)).kv_bytes(1000) == replica("Llama-3.1-8B", (1, 1)).kv_bytes(1000)
    assert replica("Qwen3-235B-A22B", (8, 1)).kv_bytes(1000) == 2 * replica("Qwen3-235B-A22B", (4, 1)).kv_bytes(1000)
    assert replica("DeepSeek-R1", (8, 1)).kv_bytes(1000) == 8 * 61 * 576 * 2 * 1000
    windowed = replica("gpt-oss-120b")
    assert windowed.kv_bytes(1128) - windowed.kv_bytes(128) == 18 * 2 * 8 * 64 * 2 * 1000
    assert replica("Llama-3.1-8B", kv="fp8").kv_bytes(77) == replica("Llama-3.1-8B").kv_bytes(77) / 2


def shapes(model: str, weights: str, gpus_total: int, gpus_per_node: int = 8) -> list[tuple[int, int]]:
    found = _core.valid_shapes(
        architecture=architecture(model),
        precision=_core.Precision(weights=weights),
        gpu=_core.Gpu(**GPU),
        gpus_total=gpus_total,
        limits=_core.EngineLimits(gpus_per_node=gpus_per_node),
    )
    return [(shape.tp, shape.pp) for shape in found]


def test_shapes_hold_the_model() -> None:
    assert (4, 5) in shapes("DeepSeek-R1", "int4", 20)
    assert shapes("DeepSeek-R1", "fp8", 8) == []
    assert min(tp * pp for tp, pp in shapes("Llama-3.1-70B", "bf16", 8)) == 2
    assert shapes("Llama-3.1-8B", "bf16", 4) == [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1)]


@pytest.mark.parametrize("gpus_per_node", [1, 4, 6, 8])
def test_shapes_follow_the_chain_rule(gpus_per_node: int) -> None:
    pieces = {0, *(size for size in (1, 2, 4, 8, 16) if gpus_per_node % size == 0)}
    expected = {
        (tp, pp)
        for tp in range(1, 25)
        for pp in range(1, 29)
        if tp * pp <= 24 and gpus_per_node % tp == 0 and 28 % tp == 0 and (tp * pp) % gpus_per_node in pieces
    }
    assert set(shapes("Qwen2.5-7B", "bf16", 24, gpus_per_node)) == expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": 0}, "layers"),
        ({"kv_heads": 0}, "kv_heads"),
        ({"dense_layers": 3}, "experts"),
        ({"dense_layers": 29}, "dense_layers"),
        ({"windowed_layers": 4}, "window"),
        ({"kv_lora_rank": 512}, "qk_nope_dim"),
    ],
)
def test_contradictory_architecture_is_refused(change: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        _core.Architecture(**{**MODELS["Qwen2.5-7B"], **change})


def test_bad_arguments_are_refused_with_their_value() -> None:
    with pytest.raises(ValueError, match="'fp3'"):
        _core.Precision(weights="fp3")
    with pytest.raises(ValueError, match="bandwidth_bytes_per_s is -1"):
        _core.Gpu(**{**GPU, "bandwidth_bytes_per_s": -1})
    with pytest.raises(ValueError, match=r"memory_utilization is 1\.5"):
        _core.EngineLimits(memory_utilization=1.5)
    with pytest.raises(ValueError, match="tp3 x pp1"):
        replica("Llama-3.1-8B", (3, 1))
    engine = replica("Llama-3.1-8B")
    with pytest.raises(ValueError, match="nan"):
        engine.linear_s(float("nan"), 1)
    with pytest.raises(ValueError, match="-3"):
        engine.step_times([1.0], [-3.0], [0.0], [0.0])
    with pytest.raises(ValueError, match="one length"):
        engine.step_times([1.0], [1.0, 2.0], [0.0], [0.0])


# Measured time per output token [ms] of vLLM and SGLang on H200 with 4 clients, prompts of 1,024 and answers of 8,192
# tokens, where prompts hardly matter (InferenceMAX runs as published with ai-dynamo/aiconfigurator, Apache-2.0).
@pytest.mark.parametrize(
    ("model", "weights", "engine", "tp", "measured_ms"),
    [
        ("Llama-3.1-70B", "fp8", "vllm", 1, 22.05),
        ("Llama-3.1-70B", "fp8", "vllm", 2, 14.20),
        ("Llama-3.1-70B", "fp8", "vllm", 8, 7.93),
        ("gpt-oss-120b", "mxfp4", "vllm", 1, 6.15),
        ("gpt-oss-120b", "mxfp4", "vllm", 4, 3.91),
        ("DeepSeek-R1", "fp8", "sglang", 8, 10.26),
    ],
)
def test_shipped_numbers_predict_measured_decoding(
    model: str, weights: str, engine: str, tp: int, measured_ms: float
) -> None:
    peaks = {name: getattr(catalog.gpu("h200-sxm-141gb"), name) for name in GPU}
    replica = _core.Replica(
        architecture=architecture(model),
        precision=_core.Precision(weights=weights),
        gpu=_core.Gpu(**peaks),
        efficiency=_core.Efficiency(**Profile.shipped().efficiency(weights, "bf16", engine)),
        shape=_core.Shape(tp, 1),
        limits=_core.EngineLimits(),
    )
    assert replica.step_s(4, 1024 + 4096, 0, 0) * 1e3 == pytest.approx(measured_ms, rel=0.15)
