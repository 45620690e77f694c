"""Profiles: strict reading, stable writing, and what they say about how far a prediction can be trusted."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cascadia_fast import _core, catalog
from cascadia_fast.errors import InputError
from cascadia_fast.profile import ENGINES, WEIGHT_FORMATS, Profile

H200 = "h200-sxm-141gb"
LLAMA = "llama-3.1-70b"


def status(profile: Profile, shape: _core.Shape, concurrency: float | None = None, **change: str) -> tuple[str, str]:
    setting = {"gpu": H200, "engine": "vllm", "weights": "fp8", "model": LLAMA} | change
    architecture = catalog.model(setting.pop("model")).architecture
    return tuple(profile.status(**setting, architecture=architecture, shape=shape, concurrency=concurrency))  # type: ignore[arg-type]


def edited(tmp_path: Path, **change: Any) -> Path:
    """The shipped profile with top-level fields replaced, or taken out where the change is None."""
    document = json.loads(Profile.shipped().to_json()) | change
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))
    return path


@pytest.mark.parametrize("weights", WEIGHT_FORMATS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_and_format_has_all_numbers(weights: str, engine: str) -> None:
    for profile in (Profile.shipped(), Profile.kernels()):
        for kv in ("bf16", "fp8"):
            _core.Efficiency(**profile.efficiency(weights, kv, engine))


def test_only_experts_are_in_mxfp4() -> None:
    profile = Profile.shipped()
    mixed, dense = profile.efficiency("mxfp4", "bf16", "vllm"), profile.efficiency("bf16", "bf16", "vllm")
    assert {name for name in mixed if mixed[name] != dense[name]} == {
        "expert_memory",
        "expert_compute",
        "expert_s",
        "prompt_expert_s",
    }


def test_engines_scale_the_fixed_times_of_their_kernels() -> None:
    profile = Profile.kernels()
    scale = dataclasses.replace(profile.engines["sglang"].overhead_scale, value=0.5)
    expert = dataclasses.replace(scale, value=3.0)
    changed = profile.with_numbers({"engines.sglang.overhead_scale": scale, "engines.sglang.expert_scale": expert})
    before, after = (one.efficiency("fp8", "bf16", "sglang") for one in (profile, changed))
    ratio = {name: after[name] / before[name] for name in before if after[name] != before[name]}
    halved = ("gemm_s", "attention_s", "latent_attention_s", "layer_s")
    assert ratio == pytest.approx(dict.fromkeys(halved, 0.5) | {"expert_s": 3.0})
    assert changed.efficiency("fp8", "bf16", "vllm") == profile.efficiency("fp8", "bf16", "vllm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mxfp5", "bf16", "vllm"), "weight format 'mxfp5'; did you mean 'mxfp4'"),
        (("fp8", "fp4", "vllm"), "KV format 'fp4'"),
        (("fp8", "bf16", "vlm"), "engine 'vlm'; did you mean 'vllm'"),
    ],
)
def test_unknown_formats_and_engines_are_refused(arguments: tuple[str, str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Profile.shipped().efficiency(*arguments)


def test_writing_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    profile = Profile.shipped()
    profile.write(tmp_path / "one.json")
    again = Profile.read(tmp_path / "one.json")
    again.write(tmp_path / "two.json")
    assert again == profile
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_numbers_are_found_and_replaced_by_their_place() -> None:
    profile = Profile.kernels()
    numbers = profile.numbers()
    assert numbers["dense.fp8.gemm_s"] == profile.dense["fp8"].gemm_s
    doubled = {place: dataclasses.replace(number, value=2 * number.value) for place, number in numbers.items()}
    assert profile.with_numbers(doubled).numbers() == doubled
    assert profile.with_numbers({}) == profile


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 1}, "schema_version 1 and this version of cascadia-fast reads 2; calibrate again"),
        ({"schema_version": None}, "has no schema_version; give a file written by cascadia-fast calibrate -o"),
        ({"comment": "mine"}, "unknown field 'comment'"),
        ({"gpu": ["h100"]}, "unknown field 'gpu'; did you mean 'gpus'"),
        ({"kv": None}, "lacks the field 'kv'"),
        ({"kv": {}}, "Profile.kv lacks the field 'bf16'"),
        ({"name": 3}, "Profile.name is 3; give a string"),
        ({"engines": {"tgi": {}}}, r"Profile.engines.tgi lacks the field 'overhead_scale'"),
    ],
)
def test_a_malformed_file_is_refused_by_field(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = edited(tmp_path, **change)
    with pytest.raises(InputError, match=words) as caught:
        Profile.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e9])
def test_numbers_out_of_range_are_refused(value: float) -> None:
    number = Profile.kernels().common.layer_s
    with pytest.raises(InputError, match="Number.value"):
        dataclasses.replace(number, value=value)
    with pytest.raises(InputError, match="Number.log_sigma"):
        dataclasses.replace(number, log_sigma=11 + value if value > 0 else value)


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "not JSON"), (b"{", "not JSON"), (b"[]", "no schema_version"), (b"\xff", "not JSON")]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        Profile.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        Profile.read(tmp_path / "absent.json")
    with pytest.raises(InputError, match="cannot be read"):
        Profile.read(tmp_path)


def test_how_far_predictions_can_be_trusted() -> None:
    profile, tp4 = Profile.shipped(), _core.Shape(4)
    level, reason = status(profile, tp4)
    assert level == "calibrated"
    assert re.fullmatch(rf"\d+ runs of {LLAMA} on {H200} with vllm in fp8, their TPOT met within [\d.]+% .*", reason)
    level, reason = status(profile, _core.Shape(4, 2))
    assert level == "interpolated"
    assert "not as tp4 pp2" in reason
    level, reason = status(profile, tp4, concurrency=100_000)
    assert level == "interpolated"
    assert re.match(r"beyond what was measured: 100,000 clients, measured \d+ to \d+ \(", reason)
    level, reason = status(profile, tp4, model="qwen3-32b")
    assert level == "interpolated"
    assert LLAMA in reason
    for change, words in (
        ({"weights": "int4"}, "nothing was measured in int4"),
        ({"gpu": "a100-sxm-80gb"}, "nothing was measured on a100-sxm-80gb"),
        ({"engine": "sglang", "gpu": "h100-sxm-80gb"}, "never measured on h100-sxm-80gb with sglang"),
    ):
        level, reason = status(profile, tp4, **change)
        assert level == "transferred"
        assert words in reason
    assert status(Profile.kernels(), tp4)[0] == "roofline"


@pytest.mark.parametrize(
    ("model", "level"),
    [
        ("deepseek-r1", "calibrated"),
        ("deepseek-v3", "calibrated"),
        ("deepseek-r1-0528", "calibrated"),  # other weights in the same network
        ("deepseek-v3.2", "interpolated"),  # sparse attention, which dense attention stands for
        ("somebody-elses", "interpolated"),
    ],
)
def test_equal_sizes_alone_are_not_calibrated(model: str, level: str) -> None:
    architecture = catalog.model("deepseek-v3.2").architecture
    assert architecture == catalog.model("deepseek-r1").architecture
    found = Profile.shipped().status(H200, "trtllm", "fp8", architecture, _core.Shape(8, 1, 1, 8), model=model)
    assert found.level == level
    if level == "interpolated":
        assert f"{model} was not measured itself, only deepseek-r1 and deepseek-v3 of the same sizes" in found.reason


def test_a_profile_that_a_user_names_must_know_the_gpu_and_the_engine() -> None:
    profile = Profile.shipped()
    profile.require("h100", "sglang")
    with pytest.raises(InputError, match="not on l40s"):
        profile.require("l40s", "vllm")
    only = dataclasses.replace(profile, measured=tuple(one for one in profile.measured if one.engine == "vllm"))
    with pytest.raises(InputError, match="was measured with vllm, not with sglang"):
        only.require("h100", "sglang")
    Profile.kernels().require("h100", "sglang")


def test_shipped_numbers_say_where_they_come_from() -> None:
    for profile, command in (
        (Profile.shipped(), "cascadia-fast calibrate"),
        (Profile.kernels(), "benchmarks.fit_kernels"),
    ):
        assert command in profile.provenance.command
        assert profile.provenance.files
        assert all(len(digest) == 64 for _, digest in profile.provenance.files)
    bases = {place: number.basis for place, number in Profile.kernels().numbers().items()}
    assert set(bases.values()) == {"kernels", "assumed"}
    assert bases["dense.int4.gemm_s"] == bases["common.layer_s"] == "assumed"
    assert bases["dense.fp8.gemm_s"] == bases["common.dense_memory"] == "kernels"
