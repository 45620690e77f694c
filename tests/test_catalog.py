"""Catalog names, the numbers behind them, and config files as models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from configs import LLAMA, parameters

from cascadia_fast import catalog
from cascadia_fast.catalog import gpu, gpu_names, model, model_from_config, model_names
from cascadia_fast.errors import InputError


# Total parameters in billions, as the publishers state them.
@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("llama-3-8b", 8.03),
        ("llama-3-70b", 70.6),
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.6),
        ("llama-3.1-405b", 406),
        ("llama-4-scout", 108),
        ("llama-4-maverick", 401),
        ("deepseek-r1", 671),
        ("deepseek-v3", 671),
        ("deepseek-v3.2", 671),
        ("deepseek-r1-distill-qwen-1.5b", 1.78),
        ("deepseek-r1-distill-qwen-7b", 7.62),
        ("deepseek-r1-distill-qwen-14b", 14.8),
        ("deepseek-r1-distill-qwen-32b", 32.8),
        ("deepseek-r1-distill-llama-8b", 8.03),
        ("deepseek-r1-distill-llama-70b", 70.6),
        ("qwen2.5-7b", 7.62),
        ("qwen2.5-14b", 14.8),
        ("qwen2.5-32b", 32.8),
        ("qwen2.5-72b", 72.7),
        ("qwen3-0.6b", 0.596),
        ("qwen3-1.7b", 1.72),
        ("qwen3-8b", 8.19),
        ("qwen3-32b", 32.8),
        ("qwen3-30b-a3b", 30.5),
        ("qwen3-235b-a22b", 235),
        ("mixtral-8x7b", 46.7),
        ("mixtral-8x22b", 140.6),
        ("gpt-oss-20b", 20.9),
        ("gpt-oss-120b", 116.8),
        ("kimi-k2", 1026),
        ("minimax-m2.5", 229),
        ("glm-5-fp8", 744),
    ],
)
def test_catalog_sizes_give_the_published_parameter_counts(name: str, total: float) -> None:
    assert parameters(model(name).architecture) == pytest.approx(total, rel=0.004)


@pytest.mark.parametrize(
    ("name", "active"), [("deepseek-r1", 37), ("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22), ("mixtral-8x7b", 12.9)]
)
def test_catalog_experts_give_the_published_active_parameters(name: str, active: float) -> None:
    spec = model(name).architecture
    assert parameters(spec, spec.experts_per_token) == pytest.approx(active, rel=0.03)


@pytest.mark.parametrize("name", gpu_names())
def test_gpu_figures_are_complete_and_plausible(name: str) -> None:
    spec = gpu(name)
    assert spec.name == name
    assert 30 * 2**30 < spec.memory_bytes < 300 * 2**30
    assert 0.5e12 < spec.bandwidth_bytes_per_s < 10e12
    assert 300e12 < spec.bf16_flops_per_s < 3e15
    assert spec.fp8_flops_per_s is None or spec.fp8_flops_per_s == pytest.approx(2 * spec.bf16_flops_per_s, rel=0.02)
    assert 30e9 <= spec.link_bytes_per_s <= 1e12
    assert 20e9 <= spec.internode_bytes_per_s <= spec.link_bytes_per_s or name == "l40s"
    assert spec.gpus_per_node in (4, 8)
    assert spec.price_usd_per_hour is None or 1 < spec.price_usd_per_hour < 10
    assert 200 < spec.power_w < 1500
    assert re.search(r"\w.*\(20\d\d-\d\d\)", spec.source)


def test_data_files_state_the_origin_of_every_entry() -> None:
    for table in ("gpus", "models"):
        for name, entry in catalog._data(table).items():
            assert entry["source"], name
            assert re.fullmatch(r"20\d\d-\d\d", entry["date"]), name
            assert (entry.get("price_usd_per_hour") is None) == (not entry.get("price_source")), name


@pytest.mark.parametrize("table", ["gpus", "models"])
def test_every_alias_names_one_entry(table: str) -> None:
    spellings: list[tuple[str, str]] = []
    for name, entry in catalog._data(table).items():
        checkpoints: Mapping[str, str] = entry.get("checkpoints", {name: ""})
        assert set(entry["aliases"].values()) <= checkpoints.keys()
        spellings += [(checkpoint, checkpoint) for checkpoint in checkpoints]
        spellings += [(known, checkpoint) for checkpoint, known in checkpoints.items() if known]
        spellings += list(entry["aliases"].items())
    index: dict[str, str] = {}
    for spelling, target in spellings:
        assert index.setdefault(catalog._key(spelling), target) == target, spelling
        assert (gpu if table == "gpus" else model)(spelling).name == target


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("H100-SXM-80GB", "h100-sxm-80gb"),
        ("h100", "h100-sxm-80gb"),
        ("h100_sxm", "h100-sxm-80gb"),
        ("H200", "h200-sxm-141gb"),
        ("a100", "a100-sxm-80gb"),
        ("a100-40gb", "a100-sxm-40gb"),
        ("L40S", "l40s"),
        ("B200", "b200"),
        ("MI300X", "mi300x"),
    ],
)
def test_gpu_spellings(spelling: str, name: str) -> None:
    assert gpu(spelling).name == name


@pytest.mark.parametrize(
    ("spelling", "name", "huggingface_id"),
    [
        ("Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama-3.1-405b", "llama-3.1-405b", "meta-llama/Llama-3.1-405B"),
        ("llama_3.3_70b", "llama-3.3-70b-instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-r1", "deepseek-ai/DeepSeek-R1"),
        ("r1-distill-qwen-7b", "deepseek-r1-distill-qwen-7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
        ("qwen2.5-72b-instruct", "qwen2.5-72b-instruct", "Qwen/Qwen2.5-72B-Instruct"),
        ("mixtral-8x7b-instruct", "mixtral-8x7b-instruct-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("openai/gpt-oss-120b", "gpt-oss-120b", "openai/gpt-oss-120b"),
    ],
)
def test_model_spellings(spelling: str, name: str, huggingface_id: str) -> None:
    spec = model(spelling)
    assert (spec.name, spec.huggingface_id) == (name, huggingface_id)
    assert name in model_names()


def test_checkpoints_of_one_entry_share_their_sizes() -> None:
    assert model("llama-3.1-8b").architecture == model("llama-3.1-8b-instruct").architecture


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("deepseek-r1", "fp8"),
        ("gpt-oss-20b", "mxfp4"),
        ("llama-3.1-8b", "bf16"),
        ("llama-3.1-70b-fp8", "fp8"),
        ("qwen3-32b-fp8", "fp8"),
    ],
)
def test_native_weights_of_catalog_models(name: str, weights: str) -> None:
    assert model(name).native_weights == weights


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown GPU 'h100-sxm-80g'; did you mean 'h100-sxm-80gb'\?"):
        gpu("h100-sxm-80g")
    with pytest.raises(
        InputError,
        match=r"unknown model 'deepseek-r2'; did you mean 'deepseek-r1'\? \(near are also .*config.json works",
    ):
        model("deepseek-r2")
    with pytest.raises(InputError, match=r"unknown GPU '~'; known are a100"):
        gpu("~")
    with pytest.raises(InputError, match=r"unknown model '###'; give a catalog name"):
        model("###")


def test_a_config_file_works_as_a_model(tmp_path: Path) -> None:
    path = tmp_path / "My-Model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(LLAMA | {"_name_or_path": "acme/My-Model"}))
    spec = model(path)
    assert (spec.name, spec.huggingface_id) == ("my-model", "acme/My-Model")
    assert (spec.native_weights, spec.max_model_len) == ("bf16", 131072)
    assert spec.architecture == model("llama-3.1-8b").architecture
    assert re.fullmatch(r"config.json, sha256 [0-9a-f]{64}", spec.source)
    assert model("My-Model/config.json", base_dir=tmp_path) == spec
    assert model(str(path)) == model_from_config(str(path)) == spec


def test_a_local_path_is_not_taken_for_a_huggingface_id(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(LLAMA | {"_name_or_path": "/models/llama"}))
    assert (model(path).name, model(path).huggingface_id) == ("mine", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "a Hugging Face config.json is one JSON object"),
        (b"null", "a Hugging Face config.json is one JSON object"),
        (b"{}", "has no field num_hidden_layers"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_malformed_files_get_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a directory; give the config\.json inside it"):
        model(tmp_path)
    with pytest.raises(InputError, match="cannot be read: No such file or directory"):
        model("./nowhere/config.json", base_dir=tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        model("x" * 5000 + ".json")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"max_position_embeddings": None}))
    with pytest.raises(InputError, match="has no field max_position_embeddings"):
        model(path)
