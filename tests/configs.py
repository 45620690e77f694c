"""A plain config.json, and the weights its sizes amount to; shared by the tests of catalog and architecture."""

from __future__ import annotations

from cascadia_fast.architecture import ArchitectureSpec

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
EXPERTS: dict[str, object] = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1024}


def parameters(a: ArchitectureSpec, experts: int | None = None) -> float:
    """Weights of a model in billions, norms and biases left out; with `experts` only so many of each layer count."""
    if a.kv_lora_rank:
        query = a.hidden * a.q_lora_rank + a.q_lora_rank * a.heads * a.head_dim
        query = query or a.hidden * a.heads * a.head_dim
        key_value = a.hidden * (a.kv_lora_rank + a.qk_rope_dim)
        key_value += a.kv_lora_rank * a.heads * (a.qk_nope_dim + a.v_head_dim)
        attention = query + key_value + a.heads * a.v_head_dim * a.hidden
    else:
        attention = 2 * a.hidden * a.head_dim * (a.heads + a.kv_heads)
    matrices = 3 if a.gated else 2
    width = (a.experts if experts is None else experts) * a.expert_intermediate + a.shared_intermediate
    sparse = (a.layers - a.dense_layers) * a.hidden * (matrices * width + a.experts)
    dense = a.dense_layers * a.hidden * matrices * a.dense_intermediate
    embeddings = a.vocab * a.hidden * (1 if a.tied_embeddings else 2)
    return (a.layers * attention + dense + sparse + embeddings) / 1e9
