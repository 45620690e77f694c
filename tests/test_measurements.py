"""Measurement files: every format, every kind of row, every kind of mistake."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cascadia_fast import catalog, measurement_files
from cascadia_fast.errors import InputError
from cascadia_fast.measurements import Measurement, Measurements, read_measurements

DATA = Path(__file__).parent / "data"
SAMPLE = DATA / "serving_runs_43.csv"
VLLM = DATA / "vllm_bench_serve.json"
SGLANG = DATA / "sglang_bench_serving.jsonl"

ROW = {
    "id": "run-1",
    "backend": "vllm",
    "backend_version": "0.18.0",
    "model_path": "meta-llama/Llama-3.1-70B",
    "system": "h100_sxm",
    "precision": "fp8",
    "isl": "1024",
    "osl": "512",
    "tp_size": "4.0",
    "concurrency": "16.0",
    "silicon_ttft_ms": "250",
    "silicon_tpot_ms": "14",
}


def write_rows(path: Path, *changes: Mapping[str, str], without: tuple[str, ...] = ()) -> Path:
    """A CSV file of `ROW` with each of the changes, one row per change."""
    rows = [{name: cell for name, cell in (ROW | dict(change)).items() if name not in without} for change in changes]
    header = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: Path, **defaults: Any) -> Measurements:
    return read_measurements([path], defaults=defaults)


def one(tmp_path: Path, **change: str) -> Measurement:
    found = read(write_rows(tmp_path / "runs.csv", change))
    assert found.rejected == ()
    (row,) = found.rows
    return row


def reason(tmp_path: Path, **change: str) -> str:
    """Why the changed row is rejected; a sound row beside it is kept."""
    found = read(write_rows(tmp_path / "runs.csv", {"id": "sound"}, {"id": "other", **change}))
    assert [row.source for row in found.rows] == ["sound"]
    (rejected,) = found.rejected
    assert rejected.source == "other"
    return rejected.reason


def refusal(path: Path, **defaults: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **defaults)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_every_field_of_a_row_is_read(tmp_path: Path) -> None:
    assert one(tmp_path) == Measurement(
        source="run-1",
        model="meta-llama/Llama-3.1-70B",
        gpu="h100-sxm-80gb",
        engine="vllm",
        engine_version="0.18.0",
        weights="fp8",
        kv="bf16",
        precision="fp8",
        tp=4,
        pp=1,
        ep=1,
        attention_dp=1,
        tokens_in=1024,
        tokens_out=512,
        concurrency=16,
        ttft_s=0.25,
        tpot_s=0.014,
    )


def test_the_sample_of_published_runs_is_read_whole() -> None:
    found = read(SAMPLE)
    assert len(found.rows) == 42
    assert found.rejected == ()
    assert found.files == ((SAMPLE.name, hashlib.sha256(SAMPLE.read_bytes()).hexdigest()),)
    notes = "\n".join(found.notes)
    for words in (
        "12 runs with GPUs counted as tensor times expert parallelism",
        "11 runs from TensorRT-LLM",
        "5 runs of a checkpoint that exists in mxfp4 only",
        "1 run repeated to the last digit",
        "2 setups measured with TPOTs more than 20% apart, all kept: for instance 7.11 ms (2026_03_25_deepseek_r1",
    ):
        assert words in notes
    assert len(found.notes) == 6


# What the published table says of a run, and what the run was: (tp, pp, ep, attention_dp).
@pytest.mark.parametrize(
    ("run_id", "shape"),
    [
        ("2026_04_06_gpt_oss_120b_h200_sxm_trtllm_fp4_agg_8192x1024_c16_tp4_ep4_926", (4, 1, 4, 1)),
        ("2026_04_06_gpt_oss_120b_h200_sxm_trtllm_fp4_agg_8192x1024_c16_tp2_ep2_927", (2, 1, 2, 1)),
        ("openai_gpt_oss_120b_openai_gpt_oss_120b_h100_sxm_trtllm_agg_4000x1000_c320_tp4_epnone_4", (4, 1, 2, 1)),
        ("openai_gpt_oss_120b_openai_gpt_oss_120b_h100_sxm_trtllm_agg_4000x1000_c320_tp2_epnone_2", (2, 1, 1, 1)),
        ("dsr1_h200_trtllm_fp8_agg_1024x1024_c64_cfg181", (8, 1, 8, 1)),
        ("dsr1_h200_trtllm_fp8_agg_8192x1024_c64_cfg183", (1, 1, 8, 8)),
        ("2026_04_06_deepseek_r1_h200_sxm_trtllm_fp8_agg_1024x1024_c32_tp8_ep8_922", (8, 1, 8, 1)),
        ("2026_04_06_deepseek_r1_h200_sxm_trtllm_fp8_agg_8192x1024_c64_tp8_ep8_941", (1, 1, 8, 8)),
        ("2026_03_25_deepseek_r1_h200_sxm_trtllm_fp8_agg_1024x8192_c256_tp8_0_ep8_0_1238", (1, 1, 8, 8)),
        ("2026_04_06_minimax_m2_5_h100_sxm_vllm_fp8_agg_8192x1024_c32_tp4_ep4_1322", (4, 1, 4, 1)),
        ("2026_03_25_minimax_m2_5_h100_sxm_vllm_fp8_agg_1024x8192_c4_tp4_0_ep4_0_215", (4, 1, 4, 1)),
        ("2026_04_06_llama_3_1_70b_h100_sxm_vllm_fp8_agg_1024x1024_c16_tp4_ep1_260", (4, 1, 1, 1)),
    ],
)
def test_parallelism_counted_twice_is_undone(run_id: str, shape: tuple[int, int, int, int]) -> None:
    row = next(row for row in read(SAMPLE).rows if row.source == run_id)
    assert (row.tp, row.pp, row.ep, row.attention_dp) == shape


@pytest.mark.parametrize(("moe_tp", "moe_ep", "tp", "ep"), [("16", "1", 16, 1), ("1", "16", 16, 16), ("4", "4", 4, 4)])
def test_only_squares_wider_than_a_node_are_taken_for_twice_counted(
    tmp_path: Path, moe_tp: str, moe_ep: str, tp: int, ep: int
) -> None:
    row = one(tmp_path, model_path="openai/gpt-oss-120b", tp_size="16", moe_tp_size=moe_tp, moe_ep_size=moe_ep)
    assert (row.tp, row.ep, row.attention_dp) == (tp, ep, 1)


def test_dense_models_have_no_expert_parallelism(tmp_path: Path) -> None:
    assert one(tmp_path, moe_tp_size="1", moe_ep_size="4").ep == 1


def test_experts_must_divide_the_gpus(tmp_path: Path) -> None:
    text = reason(tmp_path, model_path="openai/gpt-oss-120b", moe_ep_size="3")
    assert text == "moe_ep_size is 3; it must divide the 4 GPUs of a stage"


def test_batches_count_per_attention_rank_where_clients_are_not_given(tmp_path: Path) -> None:
    batches = {"model_path": "deepseek-ai/DeepSeek-V3", "tp_size": "1", "attention_dp_size": "8", "batch_size": "4"}
    found = read(write_rows(tmp_path / "runs.csv", batches, without=("concurrency",)))
    assert [row.concurrency for row in found.rows] == [32]
    assert one(tmp_path, batch_size="4").concurrency == 16


@pytest.mark.parametrize(
    ("system", "gpu"),
    [
        ("h100_pcie", "h100-pcie-80gb"),
        ("h200_sxm", "h200-sxm-141gb"),
        ("b200_sxm", "b200"),
        ("a100_sxm", "a100-sxm-80gb"),
        ("l40s", "l40s"),
        ("gb200", "gb200"),
    ],
)
def test_gpus_of_the_catalog_are_known_by_the_tables_names(tmp_path: Path, system: str, gpu: str) -> None:
    assert one(tmp_path, system=system, silicon_tpot_ms="40").gpu == gpu


@pytest.mark.parametrize(
    ("precision", "weights"),
    [
        ("", "bf16"),
        ("fp16", "bf16"),
        ("FP8_block", "fp8"),
        ("int8_wo", "int8"),
        ("w4a16_awq", "int4"),
        ("nvfp4", "int4"),
        ("fp4", "int4"),
        ("mxfp4", "int4"),
        ("auto", "bf16"),
    ],
)
def test_weight_formats_by_their_many_names(tmp_path: Path, precision: str, weights: str) -> None:
    assert one(tmp_path, precision=precision).weights == weights


def test_formats_fall_back_to_experts_then_name_then_checkpoint(tmp_path: Path) -> None:
    columns = {"precision": "", "gemm_quant_mode": "auto", "moe_quant_mode": "int4_wo", "tp_size": "8"}
    path = write_rows(tmp_path / "runs.csv", {**columns, "model_path": "deepseek-ai/DeepSeek-R1"})
    assert [row.weights for row in read(path, weights="fp8").rows] == ["int4"]
    # A dense model has no experts, whatever a table's column for them says.
    path = write_rows(tmp_path / "runs.csv", {**columns, "gemm_quant_mode": "bfloat16"})
    assert [row.weights for row in read(path, weights="fp8").rows] == ["bf16"]
    assert one(tmp_path, precision="", model_path="RedHatAI/Llama-3.1-70B-Instruct-quantized.w8a8").weights == "int8"
    assert one(tmp_path, precision="", model_path="deepseek-ai/DeepSeek-R1", tp_size="8").weights == "fp8"


def test_experts_alone_are_in_mxfp4(tmp_path: Path) -> None:
    assert one(tmp_path, precision="mxfp4", model_path="deepseek-ai/DeepSeek-R1", tp_size="8").weights == "mxfp4"


def test_nvfp4_is_read_as_the_nearest_format_and_said(tmp_path: Path) -> None:
    found = read(write_rows(tmp_path / "runs.csv", {"precision": "nvfp4"}))
    assert found.notes == ("1 run in 4-bit floats throughout: read as int4, the nearest format this version knows",)


def test_the_files_word_stays_the_precision_where_weights_are_only_near(tmp_path: Path) -> None:
    row = one(tmp_path, precision="FP4")
    assert (row.precision, row.weights) == ("fp4", "int4")
    row = one(tmp_path, precision="", gemm_quant_mode="nvfp4")
    assert (row.precision, row.weights) == ("nvfp4", "int4")
    row = one(tmp_path, precision="fp8_block")
    assert (row.precision, row.weights) == ("fp8", "fp8")
    row = one(tmp_path, precision="fp4", model_path="openai/gpt-oss-120b")
    assert (row.precision, row.weights) == ("mxfp4", "mxfp4")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"gemm_quant_mode": "fp8_block", "moe_quant_mode": "int4_wo"},
            "mixed precision, gemm_quant_mode 'fp8_block' and moe_quant_mode 'int4_wo'; only one width throughout",
        ),
        (
            {"precision": "", "gemm_quant_mode": "bfloat16", "moe_quant_mode": "fp8"},
            "mixed precision, gemm_quant_mode 'bfloat16' and moe_quant_mode 'fp8'",
        ),
        ({"moe_quant_mode": "mxfp4"}, "mixed precision, precision 'fp8' and moe_quant_mode 'mxfp4'"),
        ({"gemm_quant_mode": "fp8", "moe_quant_mode": "w4afp8"}, "w4afp8 keeps experts in 4 bits and the rest in 8"),
        ({"precision": "w4afp8"}, "w4afp8 keeps experts in 4 bits and the rest in 8"),
    ],
)
def test_mixed_precisions_are_rejected(tmp_path: Path, change: dict[str, str], words: str) -> None:
    assert reason(tmp_path, model_path="deepseek-ai/DeepSeek-R1", tp_size="8", **change).startswith(words)


def test_mxfp4_experts_beside_16_bits_are_what_mxfp4_means(tmp_path: Path) -> None:
    row = one(
        tmp_path,
        model_path="deepseek-ai/DeepSeek-R1",
        tp_size="8",
        precision="",
        gemm_quant_mode="bfloat16",
        moe_quant_mode="mxfp4",
    )
    assert row.weights == "mxfp4"


def test_rejected_runs_say_what_they_were_of(tmp_path: Path) -> None:
    changes = [
        {},
        {"silicon_tpot_ms": "0"},
        {"silicon_tpot_ms": "14000"},
        {"system": "abacus", "precision": "fp3"},
        {"model_path": "nobody/none", "gemm_quant_mode": "int4_wo"},
    ]
    known = ("meta-llama/Llama-3.1-70B", "h100-sxm-80gb", "vllm", "fp8")
    labels = [
        (run.model, run.gpu, run.engine, run.precision)
        for run in read(write_rows(tmp_path / "runs.csv", *changes)).rejected
    ]
    assert labels == [
        known,
        ("meta-llama/Llama-3.1-70B", None, "vllm", "fp3"),
        (None, "h100-sxm-80gb", "vllm", "fp8 + int4_wo"),
        known,
    ]


def test_a_checkpoint_that_exists_in_mxfp4_only_stays_in_it(tmp_path: Path) -> None:
    for precision in ("fp4", "nvfp4", "fp8", ""):
        assert one(tmp_path, model_path="openai/gpt-oss-120b", precision=precision).weights == "mxfp4"


@pytest.mark.parametrize(
    ("change", "kv"),
    [
        ({"backend": "trtllm"}, "fp8"),
        ({"backend": "trtllm", "precision": "bf16"}, "bf16"),
        ({"backend": "trtllm", "kvcache_quant_mode": "bfloat16"}, "bf16"),
        ({"backend": "sglang"}, "bf16"),
        ({"backend": "sglang", "kvcache_quant_mode": "fp8_e5m2"}, "fp8"),
    ],
)
def test_format_of_the_kv_cache(tmp_path: Path, change: dict[str, str], kv: str) -> None:
    assert one(tmp_path, **change).kv == kv


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Llama-3.1-8B-Instruct/", "Llama-3.1-8B-Instruct"),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "DeepSeek-R1-0528"),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", "Llama-3.3-70B-Instruct"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "nvidia/Llama-3.1-70B-Instruct-FP8"),
    ],
)
def test_copies_of_a_checkpoint_are_that_model(tmp_path: Path, path: str, name: str) -> None:
    row = one(tmp_path, model_path=path, tp_size="8", silicon_tpot_ms="20")
    assert row.model == name
    assert catalog.model(row.model).architecture


def test_unknown_models_ask_for_their_config(tmp_path: Path) -> None:
    text = reason(tmp_path, model_path="acme/Größtes-模型-9B")
    assert (
        text == "unknown model 'acme/Größtes-模型-9B'; give its config with --model-config Größtes-模型-9B=config.json"
    )


def test_a_config_makes_an_unknown_model_known(tmp_path: Path) -> None:
    config = tmp_path / "acme.json"
    sizes = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    limits = {"intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192}
    config.write_text(json.dumps({"model_type": "llama", **sizes, **limits}))
    path = write_rows(tmp_path / "runs.csv", {"model_path": "acme/Größtes-模型-9B"})
    for name in ("acme/Größtes-模型-9B", "größtes-模型-9b"):
        found = read_measurements([path], model_configs={name: str(config)})
        (row,) = found.rows
        assert catalog.model(row.model).architecture.layers == 32
    with pytest.raises(InputError, match="nowhere.json' cannot be read"):
        read_measurements([path], model_configs={"x": str(tmp_path / "nowhere.json")})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"system": "h1000"}, "unknown GPU 'h1000'; did you mean 'h100'?"),
        ({"backend": "vlm"}, "unknown engine 'vlm'; did you mean 'vllm'?"),
        ({"precision": "fp3"}, "unknown precision 'fp3'; did you mean 'fp8'?"),
        ({"kvcache_quant_mode": "int2"}, "unknown kvcache_quant_mode 'int2'; known are bf16, fp8"),
        ({"mode": "disagg"}, "mode is 'disagg'; only workers that prefill and decode alike (agg) are modelled"),
        ({"silicon_tpot_ms": "0"}, "silicon_tpot_ms is '0'; it must be more than 0 and at most 1,000,000,000"),
        ({"silicon_ttft_ms": "-3"}, "silicon_ttft_ms is '-3'; it must be more than 0"),
        ({"silicon_ttft_ms": "nan"}, "silicon_ttft_ms is 'nan'; it must be more than 0"),
        ({"silicon_tpot_ms": "inf"}, "silicon_tpot_ms is 'inf'; it must be more than 0"),
        ({"silicon_tpot_ms": "fast"}, "silicon_tpot_ms is 'fast'; it must be a number"),
        ({"silicon_tpot_ms": "", "silicon_ttft_ms": ""}, "neither silicon_ttft_ms nor silicon_tpot_ms is given"),
        ({"isl": "0"}, "isl is '0'; it must be more than 0"),
        ({"osl": "1e30"}, "osl is '1e30'; it must be more than 0 and at most 10,000,000"),
        ({"tp_size": "2.5"}, "tp_size is 2.5; it must be a whole number"),
        ({"concurrency": ""}, "neither concurrency nor batch_size is given"),
        ({"system": ""}, "system is not given; give it with --gpu"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(tmp_path: Path, change: dict[str, str], words: str) -> None:
    assert reason(tmp_path, **change).startswith(words)


def test_one_missing_time_leaves_the_other(tmp_path: Path) -> None:
    row = one(tmp_path, silicon_ttft_ms="")
    assert (row.ttft_s, row.tpot_s) == (None, 0.014)
    row = one(tmp_path, osl="1", silicon_tpot_ms="0")
    assert (row.ttft_s, row.tpot_s) == (0.25, None)


def test_options_say_what_the_file_does_not(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "runs.csv", {"precision": ""}, without=("system", "tp_size"))
    assert "no column 'system'" in refusal(path)
    (row,) = read(path, gpu="h200", tp=8, weights="int8", kv="fp8").rows
    assert (row.gpu, row.tp, row.weights, row.kv) == ("h200-sxm-141gb", 8, "int8", "fp8")
    (row,) = read(write_rows(tmp_path / "runs.csv", {}), gpu="h200", tp=8, weights="int8").rows
    assert (row.gpu, row.tp, row.weights) == ("h100-sxm-80gb", 4, "fp8")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("gpus", "h200", "unknown default 'gpus'; did you mean 'gpu'?"),
        ("gpu", "h201", "gpu is given as 'h201': unknown GPU 'h201'; did you mean 'h20"),
        ("engine", "x", "engine is given as 'x': unknown engine 'x'; known are vllm, sglang, trtllm"),
        ("weights", "fp9", "weights is given as 'fp9': unknown weights 'fp9'; did you mean 'fp8'?"),
        ("kv", "int1", "kv is given as 'int1': unknown kv 'int1'; known are bf16, fp8"),
        ("model", "nobody/none", "model is given as 'nobody/none': unknown model 'nobody/none'"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, option: str, value: str, words: str) -> None:
    assert refusal(write_rows(tmp_path / "runs.csv", {}), **{option: value}).startswith(words)


def scaled(tmp_path: Path, times: Mapping[str, float], first: int = 0) -> Path:
    """The sample with some of its columns multiplied from row `first` on."""
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[first:]:
        row.update({name: repr(float(row[name]) * factor) for name, factor in times.items()})
    return write_rows(tmp_path / "scaled.csv", *rows)


@pytest.mark.parametrize("columns", [("ttft",), ("tpot",), ("ttft", "tpot")])
def test_a_column_of_seconds_is_converted_and_said(tmp_path: Path, columns: tuple[str, ...]) -> None:
    found = read(scaled(tmp_path, {f"silicon_{name}_ms": 1e-3 for name in columns}))
    for name in ("ttft", "tpot"):
        said = any(f"{name.upper()} of scaled.csv is read as seconds" in note for note in found.notes)
        assert said == (name in columns)
    expected = {row.source: (row.ttft_s, row.tpot_s) for row in read(SAMPLE).rows}
    assert found.rejected == ()
    assert {row.source for row in found.rows} == set(expected)
    for row in found.rows:
        assert (row.ttft_s, row.tpot_s) == pytest.approx(expected[row.source], rel=1e-9)


@pytest.mark.parametrize("first", [1, 20, 40])
def test_units_mixed_in_a_column_reject_the_rows_in_seconds(tmp_path: Path, first: int) -> None:
    found = read(scaled(tmp_path, {"silicon_tpot_ms": 1e-3}, first))
    assert len(found.rejected) == 43 - first
    assert all("times shorter than h" in row.reason for row in found.rejected)
    assert all(row.reason.endswith("give milliseconds") for row in found.rejected)
    assert not any("read as seconds" in note for note in found.notes)


def test_microseconds_and_lone_seconds_are_rejected(tmp_path: Path) -> None:
    assert "times the shortest step" in reason(tmp_path, silicon_tpot_ms="14000")
    assert reason(tmp_path, silicon_ttft_ms="0.25").startswith("TTFT is 0.25 ms, less than a quarter of one step")


def test_repeats_count_once_and_contradictions_are_kept(tmp_path: Path) -> None:
    rows = [{"id": "a"}, {"id": "b"}, {"id": "c", "silicon_tpot_ms": "17.5"}, {"id": "d", "silicon_tpot_ms": "15"}]
    found = read(write_rows(tmp_path / "runs.csv", *rows))
    assert [row.source for row in found.rows] == ["a", "c", "d"]
    assert found.notes == (
        "1 run repeated to the last digit; each is counted once",
        "1 setup measured with TPOTs more than 20% apart, all kept: for instance 14 ms (a) and 17.5 ms (c)",
    )


def test_runs_under_two_names_of_one_architecture_both_stay(tmp_path: Path) -> None:
    names = [{"model_path": f"deepseek-ai/DeepSeek-{name}", "tp_size": "8"} for name in ("R1", "V3", "V3")]
    found = read(write_rows(tmp_path / "runs.csv", *names))
    assert [row.model for row in found.rows] == ["deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3"]
    assert found.notes == ("1 run repeated to the last digit; each is counted once",)


def test_two_names_of_one_architecture_contradict_each_other(tmp_path: Path) -> None:
    names = [
        {"model_path": f"deepseek-ai/DeepSeek-{name}", "tp_size": "8", "silicon_tpot_ms": tpot_ms}
        for name, tpot_ms in (("R1", "14"), ("V3", "18"))
    ]
    (note,) = read(write_rows(tmp_path / "runs.csv", *names)).notes
    assert note.startswith("1 setup measured with TPOTs more than 20% apart")


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "runs.csv", {})
    found = read_measurements([path, tmp_path / "." / "runs.csv"])
    assert (len(found.rows), len(found.files)) == (1, 1)
    assert "is named twice" in found.notes[0]


def test_results_of_vllm_bench_serve() -> None:
    (row,) = read(VLLM).rows
    assert row == Measurement(
        source="vllm_bench_serve.json",
        model="meta-llama/Llama-3.1-70B-Instruct",
        gpu="h100-sxm-80gb",
        engine="vllm",
        engine_version=None,
        weights="bf16",
        kv="bf16",
        precision="bf16",
        tp=4,
        pp=1,
        ep=1,
        attention_dp=1,
        tokens_in=1024,
        tokens_out=512,
        concurrency=32,
        ttft_s=pytest.approx(0.4025),
        tpot_s=pytest.approx(0.0231),
    )


def test_results_of_sglang_bench_serving() -> None:
    found = read(SGLANG, gpu="h200")
    assert [(row.model, row.weights, row.kv, row.engine_version) for row in found.rows] == [
        ("deepseek-ai/DeepSeek-R1", "fp8", "bf16", "0.5.9"),
        ("deepseek-ai/DeepSeek-R1", "fp8", "fp8", "0.5.9"),
    ]
    assert [(row.tp, row.ep, row.attention_dp, row.concurrency) for row in found.rows] == [
        (8, 1, 1, 16),
        (1, 8, 8, 128),
    ]
    (rejected,) = found.rejected
    assert rejected.source == "sglang_bench_serving.jsonl line 4"
    assert rejected.reason.startswith("open loop at 2.0 requests/s: ")


def result(**change: Any) -> dict[str, Any]:
    return json.loads(VLLM.read_text()) | change


def read_result(tmp_path: Path, **change: Any) -> Measurements:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result(**change)))
    return read(path)


def test_clients_of_a_benchmark_run(tmp_path: Path) -> None:
    assert [row.concurrency for row in read_result(tmp_path, max_concurrency=None).rows] == [320]
    assert [row.concurrency for row in read_result(tmp_path, max_concurrency=1000).rows] == [320]
    # 320 requests of 12.2 s in 123 s keep 31.8 clients busy, in 238 s only 16.4.
    busy = read_result(tmp_path, request_rate=50.0, duration=123.0)
    assert [row.concurrency for row in busy.rows] == [32]
    (rejected,) = read_result(tmp_path, request_rate=1.3).rejected
    assert rejected.reason.startswith("open loop at 1.3 requests/s, 16.4 of 32 clients busy: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completed": 0}, "completed is 0; it must be more than 0"),
        ({"mean_tpot_ms": float("nan")}, "mean_tpot_ms is nan"),
        ({"mean_tpot_ms": 10**400}, "mean_tpot_ms is 1000"),
        ({"total_input_tokens": float("inf")}, "total_input_tokens is inf; it must be more than 0"),
        ({"total_input_tokens": 10**14}, "a request has 312,500,000,000 tokens; at most 10,000,000 are modelled"),
        ({"mean_ttft_ms": None, "mean_tpot_ms": None}, "neither mean_ttft_ms nor mean_tpot_ms is given"),
        ({"spec_decode_acceptance_length": 2.7}, "speculative decoding accepted 2.7 tokens a step"),
        ({"server_info": {"tp_size": 8, "dp_size": 2}}, "2 servers shared the load (dp_size); measure one of them"),
        ({"server_info": {"decode": [], "prefill": []}}, "mode is 'disagg'"),
    ],
)
def test_a_bad_result_is_rejected_with_its_reason(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    found = read_result(tmp_path, **change)
    assert found.rows == ()
    assert found.rejected[0].reason.startswith(words)


def test_several_results_in_one_file(tmp_path: Path) -> None:
    results = [result(max_concurrency=clients) for clients in (8, 16)]
    lines = "\n".join(map(json.dumps, results))
    for name, text in {"a.json": lines, "b.json": json.dumps(results), "c.jsonl": f"{lines}\r\n\n"}.items():
        (tmp_path / name).write_text(text)
        assert [row.concurrency for row in read(tmp_path / name).rows] == [8, 16]


@pytest.mark.parametrize("source", [SAMPLE, VLLM, SGLANG])
def test_compressed_files_hold_the_same(tmp_path: Path, source: Path) -> None:
    packed = tmp_path / f"{source.name}.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    times = [(row.ttft_s, row.tpot_s) for row in read(source, gpu="h200").rows]
    assert [(row.ttft_s, row.tpot_s) for row in read(packed, gpu="h200").rows] == times


def test_a_file_that_says_too_little_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({name: value for name, value in result(backend="openai").items() if name != "tp"}))
    assert refusal(path) == f"{path}: engine is not given; give it with --engine"
    assert refusal(path, engine="vllm") == f"{path}: tp is not given; give it with --tp"
    assert len(read(path, engine="vllm", tp=4).rows) == 1


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("silicon_tpot_ms", "; add it; did you mean 'tpot'?"),
        ("model_path", "; give --model or add it"),
        ("concurrency", "; add it"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path, missing: str, words: str) -> None:
    path = write_rows(tmp_path / "runs.csv", {"tpot": "3"}, without=(missing,))
    sentence = refusal(path)
    assert sentence.startswith(f"{path} has no column '{missing}' (it has 'id', ")
    assert words in sentence


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"", "is empty"),
        ("x.json", b"", "is empty"),
        ("x.jsonl", b" \n\n", "is empty"),
        ("x.csv", ",".join(ROW).encode(), "has no rows"),
        ("x.csv", ",".join(ROW).encode() + b"\n1,2\n", "row 1 of {path} has 2 cells, but its header has 12"),
        ("x.csv", ",".join([*ROW, "system"]).encode() + b"\n", "has 2 columns named 'system'; rename all but one"),
        ("x.csv", ";".join(ROW).encode() + b"\n", "separates its cells with ';'; save it with commas"),
        ("x.csv", "id,größe\n".encode("latin-1"), "is not UTF-8 text"),
        ("x.jsonl", "{'größe': 1}".encode("latin-1"), "is not UTF-8 text"),
        ("x.csv", b'id,"backend\n', "cannot be read as CSV"),
        ("x.json", b"{", "is not JSON"),
        ("x.json", b"[" * 100_000, "is not JSON"),
        ("x.json", b"3", "x.json is not an object"),
        ("x.json", b"{}", "x.json has no field 'completed'"),
        ("x.jsonl", json.dumps(result()).encode() + b"\n\nnot json\n", "line 3 of {path} is not JSON"),
        ("x.jsonl", json.dumps(result()).encode() + b"\n[1]\n", "x.jsonl line 2 is not an object"),
        ("x.jsonl", b'{"completd": 1}', "x.jsonl line 1 has no field 'completed'"),
        ("x.csv.gz", b"no gzip", "cannot be read as CSV"),
        ("x.json.gz", b"no gzip", "cannot be read"),
        ("x.txt", b"a", "its name must end in .csv, "),
    ],
)
def test_a_malformed_file_is_refused_in_a_sentence(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert words.format(path=path) in refusal(path)


def test_missing_files_directories_and_large_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist" in refusal(tmp_path / "none.csv")
    assert "is a directory" in refusal(tmp_path)
    with pytest.raises(InputError, match="no measurement file is given"):
        read_measurements([])
    path = Path(shutil.copy(SAMPLE, tmp_path / "copy.csv"))
    monkeypatch.setattr(measurement_files, "MAX_ROWS", 42)
    assert "has more than 42 rows; give a sample of it" in refusal(path)
    monkeypatch.setattr(measurement_files, "MAX_FILE_BYTES", 1000)
    assert "at most 1,000 are read" in refusal(path)
    packed = tmp_path / "x.json.gz"
    packed.write_bytes(gzip.compress(b" " * 5000))
    assert "holds more than 1,000 bytes" in refusal(packed)


def test_a_file_without_runs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text("[]")
    with pytest.raises(InputError, match="holds no run"):
        read_measurements([path], defaults={"gpu": "h100"})


def test_options_that_a_file_contradicts_are_said(tmp_path: Path) -> None:
    path = Path(__file__).parent / "data" / "serving_runs_43.csv"
    plain = read_measurements([path])
    given = read_measurements([path], defaults={"tp": 3, "gpu": "h100"})
    assert given.rows == plain.rows
    assert any("--tp: the file counts" in note for note in given.notes)
    assert any("--gpu: the file counts" in note for note in given.notes)
