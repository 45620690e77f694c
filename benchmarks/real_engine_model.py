"""A model that an engine can serve without weights: its shape, and a tokenizer of single bytes.

The engine fills the weights with random numbers, which take as long to multiply as trained ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 512
MAX_TOKENS = 1024  # prompt and answer together
HEAD_SIZE = 64
# On one core a step takes some 20 to 50 ms: long beside what the front end and the client do for it.
HIDDEN_SIZE, LAYERS, INTERMEDIATE_SIZE, KV_HEADS = 1024, 12, 2816, 4
KV_BYTES_PER_TOKEN = LAYERS * 2 * KV_HEADS * HEAD_SIZE * 2  # keys and values in bfloat16


def write_model(folder: Path) -> None:
    """Write the files that an engine reads, without weights."""
    folder.mkdir(parents=True)
    files = {"config.json": _config(), "tokenizer.json": _tokenizer(), "tokenizer_config.json": _tokenizer_config()}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN_SIZE // HEAD_SIZE,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _tokenizer() -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    words = _byte_letters()
    # Nothing encodes to the rest, but the model may write it.
    words += [f"t{i}" for i in range(VOCABULARY - len(words))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)}, "merges": []},
    }


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes in byte-level tokenizers: themselves where they are visible."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(0x100 + i) for i in range(256 - len(visible))]


def _tokenizer_config() -> dict[str, Any]:
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_TOKENS}
