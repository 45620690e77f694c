"""The reading of any Hugging Face config."""

from __future__ import annotations

import pytest
from configs import EXPERTS, LLAMA, parameters
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast.architecture import architecture_from_config, native_weights_from_config
from cascadia_fast.errors import CascadiaError, InputError, UnsupportedError


def test_head_dim_and_kv_heads_default_to_what_hugging_face_assumes() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    spec = architecture_from_config(config)
    assert (spec.head_dim, spec.kv_heads) == (128, 32)
    assert not spec.tied_embeddings
    assert architecture_from_config(LLAMA | {"head_dim": 64}).head_dim == 64
    assert architecture_from_config(LLAMA | {"tie_word_embeddings": True}).tied_embeddings
    assert architecture_from_config(LLAMA | {"model_type": "gemma2"}).tied_embeddings


def test_nested_text_config_is_read_and_inherits() -> None:
    outer = {"model_type": "vision", "hidden_size": 1152, "quantization_config": {"quant_method": "fp8"}}
    config = outer | {"text_config": LLAMA}
    assert architecture_from_config(config) == architecture_from_config(LLAMA)
    assert native_weights_from_config(config) == "fp8"


@pytest.mark.parametrize(
    ("fields", "dense_layers"),
    [
        ({}, 0),
        ({"first_k_dense_replace": 3}, 3),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 1}, 1),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, 17),
        ({"moe_layer_freq": [0] * 5 + [1] * 27}, 5),
        ({"decoder_sparse_step": 2}, 16),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 7, 31]}, 3),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1, 2]}, 17),
        ({"interleave_moe_layer_step": 2}, 16),
        ({"moe_layers": [3, 7, 11]}, 29),
        ({"mlp_layer_types": ["dense"] * 4 + ["sparse"] * 28}, 4),
        ({"moe_layer_start_index": 4, "moe_layer_interval": 1}, 4),
        ({"num_experts": 1}, 32),
        ({"num_experts": 0}, 32),
        ({"first_k_dense_replace": 40}, 32),
    ],
)
def test_sparse_layers_in_the_words_of_each_family(fields: dict[str, object], dense_layers: int) -> None:
    spec = architecture_from_config(LLAMA | EXPERTS | fields)
    assert spec.dense_layers == dense_layers
    assert spec.dense_intermediate == (14336 if dense_layers else 0)
    assert spec.experts == (64 if dense_layers < 32 else 0)
    assert spec.expert_intermediate == (1024 if dense_layers < 32 else 0)


@pytest.mark.parametrize(
    ("fields", "width"),
    [
        ({}, 0),
        ({"n_shared_experts": 2}, 2048),
        ({"n_shared_experts": 0}, 0),
        ({"shared_expert_intermediate_size": 5632}, 5632),
        ({"shared_intermediate_size": 0}, 0),
        ({"model_type": "llama4_text"}, 1024),
    ],
)
def test_shared_experts(fields: dict[str, object], width: int) -> None:
    assert architecture_from_config(LLAMA | EXPERTS | fields).shared_intermediate == width


@pytest.mark.parametrize(
    ("fields", "window", "layers"),
    [
        ({"sliding_window": None}, 0, 0),
        ({"sliding_window": 4096}, 4096, 32),
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16}, 128, 16),
        ({"sliding_window": 128, "layer_types": ["full_attention"] * 32}, 0, 0),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, 0, 0),
        ({"model_type": "qwen2", "sliding_window": 4096}, 0, 0),
        (
            {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20},
            4096,
            12,
        ),
        ({"model_type": "gemma2", "sliding_window": 4096}, 4096, 16),
        ({"model_type": "gemma3_text", "sliding_window": 1024}, 1024, 27),
        ({"sliding_window": 1024, "sliding_window_pattern": 4}, 1024, 24),
        ({"attention_chunk_size": 8192}, 8192, 24),
        ({"attention_chunk_size": 8192, "no_rope_layers": [1, 1, 1, 0] * 8}, 8192, 24),
        ({"attention_chunk_size": 8192, "layer_types": ["chunked_attention"] * 30 + ["full_attention"] * 2}, 8192, 30),
    ],
)
def test_windowed_layers_in_the_words_of_each_family(fields: dict[str, object], window: int, layers: int) -> None:
    spec = architecture_from_config(LLAMA | fields)
    assert (spec.window, spec.windowed_layers) == (window, layers)


def test_latent_attention_without_query_compression() -> None:
    # DeepSeek-V2-Lite as published: 15.7 billion parameters.
    config = {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 27,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 10944,
        "vocab_size": 102400,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }
    spec = architecture_from_config(config)
    assert (spec.q_lora_rank, spec.head_dim, spec.shared_intermediate) == (0, 192, 2816)
    assert parameters(spec) == pytest.approx(15.7, rel=0.004)


def test_old_field_names_and_two_matrix_feed_forward() -> None:
    # GPT-2 XL: 1.56 billion parameters, of which its position embeddings (not counted here) are 1.6 million.
    config = {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25, "vocab_size": 50257, "n_inner": None}
    spec = architecture_from_config(config)
    assert not spec.gated
    assert spec.tied_embeddings
    assert parameters(spec) == pytest.approx(1.56, rel=0.004)
    falcon = {"model_type": "falcon", "multi_query": True, "num_hidden_layers": 32, "hidden_size": 4544}
    assert architecture_from_config(falcon | {"num_attention_heads": 71, "vocab_size": 65024}).kv_heads == 1


@pytest.mark.parametrize(
    ("quantization", "weights"),
    [
        (None, "bf16"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_native_weights_from_quantization_config(quantization: dict[str, object] | None, weights: str) -> None:
    assert native_weights_from_config(LLAMA | {"quantization_config": quantization}) == weights


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, r"the model config has no field hidden_size"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0; it must be at least 1"),
        ({"num_hidden_layers": -2}, r"num_hidden_layers is -2; it must lie between"),
        ({"num_hidden_layers": 10**6}, r"at most 10000 layers"),
        ({"vocab_size": "many"}, r"vocab_size is 'many'; it must be a whole number"),
        ({"vocab_size": 10**12}, r"vocab_size is 1000000000000; it must lie between"),
        ({"vocab_size": None}, r"has no field vocab_size; add it"),
        ({"vocab_size": True}, r"vocab_size is True; it must be a whole number"),
        ({"intermediate_size": 2.5}, r"intermediate_size is 2.5; it must be a whole number"),
        ({"intermediate_size": float("nan")}, r"intermediate_size is nan; it must be a whole number"),
        ({"intermediate_size": None}, r"has no field intermediate_size"),
        ({"num_key_value_heads": 5}, r"32 attention heads are not a multiple of 5 key/value heads"),
        ({"num_attention_heads": 24}, r"hidden_size 4096 is not a multiple of 24 heads; add head_dim"),
        ({"num_experts": 8}, r"has no field num_experts_per_tok"),
        (EXPERTS | {"num_experts_per_tok": 65}, r"a token visits 65 experts, but there are only 64"),
        ({"kv_lora_rank": 512}, r"has no field qk_nope_head_dim"),
        ({"tie_word_embeddings": "no"}, r"tie_word_embeddings is 'no'; it must be true or false"),
        ({"layer_types": "full_attention"}, r"layer_types is 'full_attention'; it must be a list of strings"),
    ],
)
def test_bad_fields_get_one_sentence(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        architecture_from_config(LLAMA | fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_types": ["linear_attention"] * 32},
        {"linear_num_key_heads": 16},
        {"linear_attn_config": {"num_heads": 32}},
        {"hybrid_override_pattern": "M-M*"},
        {"attn_type_list": [0] * 7 + [1]},
        {"is_encoder_decoder": True},
    ],
)
def test_models_without_a_kv_cache_per_layer_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError, match="can be planned"):
        architecture_from_config(LLAMA | fields)


def test_full_attention_in_every_layer_is_not_refused() -> None:
    assert architecture_from_config(LLAMA | {"attn_type_list": [1] * 32, "is_encoder_decoder": False}).layers == 32


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**10) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "quantization_config text_config layer_types sliding_window moe_layer_freq first_k_dense_replace mlp_only_layers "
    "moe_layers head_dim kv_lora_rank attention_chunk_size"
)


@given(st.dictionaries(st.sampled_from([*LLAMA, *EXPERTS, *FIELDS.split()]), json_values, max_size=4))
def test_any_config_is_read_or_refused_with_a_sentence(fields: dict[str, object]) -> None:
    refusal = ""
    try:
        spec = architecture_from_config(LLAMA | fields)
        native_weights_from_config(LLAMA | fields)
    except CascadiaError as error:
        refusal = str(error)
    if refusal:
        assert refusal.count("\n") == 0
        return
    assert spec.layers >= max(1, spec.dense_layers, spec.windowed_layers)
    assert min(spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.vocab) >= 1
    assert spec.heads % spec.kv_heads == 0
    assert (spec.experts > 0) == (spec.dense_layers < spec.layers)
    assert spec.experts_per_token <= spec.experts
    assert (spec.window > 0) == (spec.windowed_layers > 0)
