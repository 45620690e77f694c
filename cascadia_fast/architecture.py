"""What a model's ``config.json`` says about its size: layers, widths, experts, caches.

Hugging Face names the same quantity differently from family to family, leaves out what a class defaults to, and nests
the language model of multimodal ones. This module reads all of that into one flat `ArchitectureSpec`; everything after
it (memory, step times) knows that form only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import InputError, UnsupportedError

Config = Mapping[str, object]

# A config far beyond these is a typing error; the limits also keep every product inside the native core's integers.
MAX_LAYERS = 10_000
MAX_VALUE = 1_000_000_000

_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")
_INHERITED = ("quantization_config", "tie_word_embeddings", "max_position_embeddings")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv")
_HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
_VOCAB = ("padded_vocab_size", "vocab_size")
_INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim")
_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk")
_SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_MAX_LEN = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")

# Layers that keep a fixed-size state instead of a KV cache; the cost model has no terms for them.
_RECURRENT_FIELDS = (
    "linear_attn_config",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "hybrid_override_pattern",
    "mamba_d_state",
    "mamba_num_heads",
    "ssm_state_size",
    "state_size",
)
_RECURRENT_KINDS = ("linear", "mamba", "conv", "recurrent")

# Feed-forward blocks of two matrices; every other family gates (three matrices). The activation does not tell them
# apart: Gemma gates a GELU.
_UNGATED = frozenset(
    {"bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj"}
    | {"mpt", "nemotron", "opt", "persimmon", "phi", "starcoder2"}
)
# Families whose class ties input and output embeddings unless the config says otherwise.
_TIED = ("bloom", "cohere", "falcon", "gemma", "gpt2", "gpt_bigcode", "mpt", "opt")


@dataclass(frozen=True, slots=True)
class ArchitectureSpec:
    """Sizes of a decoder-only transformer; 0 means that the part is absent.

    Parameters
    ----------
    layers, hidden, heads, kv_heads, head_dim, vocab
        Depth, model width, query heads, key/value heads, width of a query and key head, vocabulary. With multi-head
        latent attention (MLA) `head_dim` is ``qk_nope_dim + qk_rope_dim``.
    dense_layers, dense_intermediate
        Layers whose feed-forward block is dense, and its intermediate width.
    experts, experts_per_token, expert_intermediate, shared_intermediate
        Routed experts of each of the other layers, experts a token visits, intermediate width of one expert, and the
        total intermediate width of the shared experts that every token visits.
    q_lora_rank, kv_lora_rank, qk_nope_dim, qk_rope_dim, v_head_dim
        MLA: rank of the query and of the KV compression, key widths without and with rotary position, value width.
        ``q_lora_rank == 0`` with ``kv_lora_rank > 0`` means that queries are not compressed.
    window, windowed_layers
        Tokens a windowed (sliding or chunked) layer attends to, and how many of the layers are windowed.
    tied_embeddings
        The output projection shares its weights with the input embedding.
    gated
        The feed-forward block has three matrices (SwiGLU and its kin) instead of two.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    dense_layers: int
    dense_intermediate: int
    experts: int
    experts_per_token: int
    expert_intermediate: int
    shared_intermediate: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_head_dim: int
    window: int
    windowed_layers: int
    tied_embeddings: bool
    gated: bool


def architecture_from_config(config: Config, where: str = "the model config") -> ArchitectureSpec:
    """Read the sizes of a model from its Hugging Face ``config.json``.

    Fields that do not bear on size are ignored. Sparse attention indexers (DeepSeek V3.2, GLM-5) are read as the dense
    attention they approximate, so long contexts are over-estimated for them.

    Parameters
    ----------
    config
        The parsed file. The language model of a multimodal config is found in its nested ``text_config``.
    where
        Names the config in error messages.

    Raises
    ------
    InputError
        An essential field is missing, negative, not an integer, or contradicts another.
    UnsupportedError
        The model is an encoder–decoder, or has layers without a KV cache (state-space, linear attention).
    """
    config = language_config(config, where)
    _refuse_other_kinds(config, where)
    layers = _required(config, _LAYERS, where)
    if layers > MAX_LAYERS:
        raise InputError(f"{where}: {_LAYERS[0]} is {layers}; at most {MAX_LAYERS} layers are supported")
    hidden, heads = _required(config, _HIDDEN, where), _required(config, _HEADS, where)
    mla = _latent_attention(config, where)
    head_dim = mla["qk_nope_dim"] + mla["qk_rope_dim"] or _optional(config, _HEAD_DIM, where)
    if head_dim == 0 and hidden % heads:
        raise InputError(f"{where}: hidden_size {hidden} is not a multiple of {heads} heads; add head_dim")
    kv_heads = _kv_heads(config, heads, where)
    window, windowed_layers = _windows(config, layers, where)
    model_type = _model_type(config)
    return ArchitectureSpec(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        vocab=_required(config, _VOCAB, where, usual="vocab_size"),
        **_feed_forward(config, layers, hidden, where),
        **mla,
        window=window,
        windowed_layers=windowed_layers,
        tied_embeddings=_flag(config, "tie_word_embeddings", model_type.startswith(_TIED), where),
        gated=model_type not in _UNGATED,
    )


def native_weights_from_config(config: Config, where: str = "the model config") -> str:
    """Return the weight precision a checkpoint is stored in: ``bf16``, ``fp8``, ``int8``, ``int4``, ``mxfp4``, ….

    Unquantised checkpoints are ``bf16`` whatever their 16- or 32-bit type, because engines load them so. A method this
    package does not know is returned under its own name, so that a stated precision can still override it.
    """
    config = language_config(config, where)
    quantization = config.get("quantization_config")
    if quantization is None:
        return "bf16"
    if not isinstance(quantization, Mapping):
        raise InputError(f"{where}: quantization_config is {quantization!r}; it must be an object")
    method = str(quantization.get("quant_method", "")).lower()
    if method in {"fp8", "fbgemm_fp8"}:
        return "fp8"
    if method == "compressed-tensors":
        return _compressed_tensors(quantization) or method
    if method == "bitsandbytes":
        return "int4" if quantization.get("load_in_4bit") else "int8"
    algorithm = str(quantization.get("quant_algo", "")).lower()
    if algorithm:
        return algorithm.split("_")[0]
    bits = quantization.get("bits", quantization.get("w_bit"))
    return f"int{bits}" if bits in (4, 8) else method or "bf16"


def max_model_len_from_config(config: Config, where: str = "the model config") -> int:
    """Return the longest context of the model, prompt and output together, in tokens."""
    return _required(language_config(config, where), _MAX_LEN, where)


def language_config(config: Config, where: str) -> Config:
    """Return the part of a config that describes the language model, with what it inherits from the outer part."""
    if not isinstance(config, Mapping):
        raise InputError(f"{where} holds {_shown(config)}; a Hugging Face config.json is one JSON object")
    for name in _NESTED:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            inherited = {key: config[key] for key in _INHERITED if key in config and key not in inner}
            return language_config({**inherited, **inner}, where)
    return config


def _refuse_other_kinds(config: Config, where: str) -> None:
    if config.get("is_encoder_decoder"):
        raise UnsupportedError(f"{where} is an encoder-decoder model; only decoder-only models can be planned")
    recurrent = [name for name in _RECURRENT_FIELDS if config.get(name)]
    attention_kinds = config.get("attn_type_list")
    if isinstance(attention_kinds, list) and 0 in attention_kinds:
        recurrent.append("attn_type_list")
    kinds = _names(config, "layer_types", where) or []
    recurrent += [f"layer_types {kind!r}" for kind in kinds if any(word in kind for word in _RECURRENT_KINDS)]
    if recurrent:
        raise UnsupportedError(
            f"{where} has layers without a KV cache ({recurrent[0]}); only attention layers can be planned"
        )


def _latent_attention(config: Config, where: str) -> dict[str, int]:
    rank = _optional(config, ("kv_lora_rank",), where)
    if rank == 0:
        return dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_dim", "qk_rope_dim", "v_head_dim"), 0)
    return {
        "q_lora_rank": _optional(config, ("q_lora_rank",), where),
        "kv_lora_rank": rank,
        "qk_nope_dim": _required(config, ("qk_nope_head_dim",), where),
        "qk_rope_dim": _required(config, ("qk_rope_head_dim",), where),
        "v_head_dim": _required(config, ("v_head_dim",), where),
    }


def _kv_heads(config: Config, heads: int, where: str) -> int:
    kv_heads = _optional(config, _KV_HEADS, where) or (1 if config.get("multi_query") is True else heads)
    if heads % kv_heads:
        raise InputError(f"{where}: {heads} attention heads are not a multiple of {kv_heads} key/value heads")
    return kv_heads


def _feed_forward(config: Config, layers: int, hidden: int, where: str) -> dict[str, int]:
    experts = _optional(config, _EXPERTS, where)
    if experts <= 1:
        experts = 0
    dense_layers = layers - (_sparse_layers(config, layers, where) if experts else 0)
    if dense_layers == layers:
        experts = 0
    per_token = _required(config, _EXPERTS_PER_TOKEN, where) if experts else 0
    if per_token > experts:
        raise InputError(f"{where}: a token visits {per_token} experts, but there are only {experts}")
    expert_width = 0
    if experts:
        expert_width = _optional(config, ("moe_intermediate_size",), where) or _required(config, _INTERMEDIATE, where)
    return {
        "dense_layers": dense_layers,
        "dense_intermediate": _dense_width(config, hidden, where) if dense_layers else 0,
        "experts": experts,
        "experts_per_token": per_token,
        "expert_intermediate": expert_width,
        "shared_intermediate": _shared_width(config, expert_width, where) if experts else 0,
    }


def _dense_width(config: Config, hidden: int, where: str) -> int:
    # Llama 4 calls the experts' width intermediate_size and the dense layers' width intermediate_size_mlp.
    width = _optional(config, ("intermediate_size_mlp", *_INTERMEDIATE), where)
    if width == 0 and _model_type(config) in _UNGATED:
        return 4 * hidden
    return width or _required(config, _INTERMEDIATE, where)


def _shared_width(config: Config, expert_width: int, where: str) -> int:
    stated = _optional(config, ("shared_expert_intermediate_size", "shared_intermediate_size"), where)
    if stated:
        return stated
    default = 1 if _model_type(config).startswith("llama4") else 0
    return (_optional(config, _SHARED_EXPERTS, where) or default) * expert_width


def _sparse_layers(config: Config, layers: int, where: str) -> int:
    """Count the layers that route their tokens to experts; each family states it in a different way."""
    kinds = _names(config, "mlp_layer_types", where)
    if kinds is not None:
        return kinds[:layers].count("sparse")
    listed = config.get("moe_layers")
    if isinstance(listed, list) and listed:
        return sum(i in listed for i in range(layers))
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, list):
        return sum(bool(f) for f in frequency[:layers])
    first = _optional(config, ("first_k_dense_replace", "moe_layer_start_index"), where)
    every = _optional(config, ("moe_layer_freq",), where) or 1
    step = _optional(config, ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval"), where) or 1
    dense = config.get("mlp_only_layers")
    dense = dense if isinstance(dense, list) else []
    # DeepSeek counts its period from layer 0, Qwen and Llama 4 from layer 1; no config sets both.
    return sum(i % every == 0 and (i + 1) % step == 0 and i not in dense for i in range(first, layers))


def _windows(config: Config, layers: int, where: str) -> tuple[int, int]:
    """Return the window in tokens and how many layers are windowed, or (0, 0)."""
    model_type = _model_type(config)
    chunk = _optional(config, ("attention_chunk_size",), where)
    sliding = _optional(config, ("sliding_window",), where)
    # Qwen's classes carry a window in the config and ignore it unless told to use it.
    if not _flag(config, "use_sliding_window", not model_type.startswith("qwen"), where):
        sliding = 0
    window = sliding or chunk
    if window == 0:
        return 0, 0
    kinds = _names(config, "layer_types", where)
    if kinds is not None:
        count = sum(kind in {"sliding_attention", "chunked_attention"} for kind in kinds[:layers])
    elif chunk:
        # Llama 4: layers with rotary positions attend within chunks, every fourth one to everything.
        listed = config.get("no_rope_layers")
        interval = _optional(config, ("no_rope_layer_interval",), where) or 4
        rotary = listed if isinstance(listed, list) and listed else [(i + 1) % interval for i in range(layers)]
        count = sum(bool(r) for r in rotary[:layers])
    elif model_type.startswith("qwen"):
        count = max(0, layers - _optional(config, ("max_window_layers",), where))
    else:
        period = _optional(config, ("sliding_window_pattern", "_sliding_window_pattern"), where)
        period = period or {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}.get(model_type, 0)
        count = layers - layers // period if period else layers
    return (window, count) if count else (0, 0)


def _compressed_tensors(quantization: Config) -> str | None:
    groups = quantization.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    stored = f"{weights.get('type', 'int')}{weights.get('num_bits')}"
    return {"float8": "fp8", "float4": "nvfp4"}.get(stored, stored)


def _model_type(config: Config) -> str:
    return str(config.get("model_type", "")).lower()


def _names(config: Config, name: str, where: str) -> list[str] | None:
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        raise InputError(f"{where}: {name} is {_shown(value)}; it must be a list of strings")
    return list(value)


def _flag(config: Config, name: str, default: bool, where: str) -> bool:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name} is {_shown(value)}; it must be true or false")
    return value


def _optional(config: Config, names: tuple[str, ...], where: str) -> int:
    """Return the first of `names` that is present, as an integer of at least 0; 0 if none is."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{where}: {name} is {_shown(value)}; it must be a whole number")
        if not 0 <= value <= MAX_VALUE:
            raise InputError(f"{where}: {name} is {value}; it must lie between 0 and {MAX_VALUE}")
        return value
    return 0


def _required(config: Config, names: tuple[str, ...], where: str, usual: str = "") -> int:
    """Return the first of `names` that is present, as an integer of at least 1; `usual` is the one to ask for."""
    value = _optional(config, names, where)
    if value == 0:
        present = [name for name in names if config.get(name) is not None]
        if present:
            raise InputError(f"{where}: {present[0]} is 0; it must be at least 1")
        raise InputError(
            f"{where} has no field {usual or names[0]}; add it (a Hugging Face config.json of the model has it)"
        )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
