"""Fitting profiles to measured runs: what it finds, what it leaves alone, and errors reported honestly."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from cascadia_fast import calibration, closed_loop
from cascadia_fast.closed_loop import Runs, predict
from cascadia_fast.errors import InputError
from cascadia_fast.evaluation import errors, evaluate, saturated
from cascadia_fast.measurements import Measurement, Measurements, Rejected, read_measurements
from cascadia_fast.profile import Profile

SAMPLE = Path(__file__).parent / "data" / "serving_runs_43.csv"


def run(**change: Any) -> Measurement:
    fields: dict[str, Any] = {
        "source": "a run",
        "model": "llama-3.1-8b",
        "gpu": "h100-sxm-80gb",
        "engine": "vllm",
        "engine_version": None,
        "weights": "bf16",
        "kv": "bf16",
        "tp": 1,
        "pp": 1,
        "ep": 1,
        "attention_dp": 1,
        "tokens_in": 1024.0,
        "tokens_out": 512.0,
        "concurrency": 8.0,
        "ttft_s": 0.05,
        "tpot_s": 0.008,
    }
    fields |= change
    return Measurement(**{"precision": fields["weights"], **fields})


def measurements(rows: Sequence[Measurement], rejected: Sequence[Rejected] = ()) -> Measurements:
    return Measurements(tuple(rows), tuple(rejected), notes=(), files=(("runs.csv", "0" * 64),))


def grid(profile: Profile, **change: Any) -> list[Measurement]:
    """Runs whose times are what `profile` predicts, of two models at several loads."""
    rows = [
        run(source=f"{model} tp{tp} c{clients}", model=model, tp=tp, concurrency=clients, **change)
        for model in ("llama-3.1-8b", "qwen3-32b")
        for tp in (2, 4, 8)
        for clients in (1.0, 4.0, 8.0, 32.0)
    ]
    found = predict(rows, profile)
    times = zip(rows, found.ttft_s.tolist(), found.tpot_s.tolist(), strict=True)
    return [dataclasses.replace(row, ttft_s=ttft_s, tpot_s=tpot_s) for row, ttft_s, tpot_s in times]


def moved(profile: Profile, **factors: float) -> Profile:
    """The profile with vLLM's numbers of those names multiplied."""
    numbers = {f"engines.vllm.{name}": factor for name, factor in factors.items()}
    found = profile.numbers()
    return profile.with_numbers(
        {
            place: dataclasses.replace(found[place], value=found[place].value * factor)
            for place, factor in numbers.items()
        }
    )


def test_an_engine_with_other_overheads_is_recognised() -> None:
    start = Profile.kernels()
    truth = moved(start, overhead_scale=2.5, request_overhead_s=3.0)
    found = calibration.fit(measurements(grid(truth)), start, by=())
    before, after = found.before["overall"], found.after["overall"]
    assert before["tpot"]["median_abs_error"] > 0.25
    assert after["tpot"]["median_abs_error"] < 0.03
    assert after["ttft"]["median_abs_error"] < before["ttft"]["median_abs_error"] / 2
    scale = found.profile.engines["vllm"].overhead_scale
    assert scale.basis == "fitted"
    assert scale.value == pytest.approx(2.5, abs=0.2)


def test_numbers_that_the_runs_say_nothing_about_stay() -> None:
    start = Profile.kernels()
    found = calibration.fit(measurements(grid(moved(start, overhead_scale=2.5))), start, by=())
    before, after = start.numbers(), found.profile.numbers()
    assert set(found.kept) == {place for place, number in after.items() if number.basis != "fitted"}
    for place in found.kept:
        assert after[place] == before[place]
    silent = ("engines.sglang", "engines.trtllm", "experts.", "dense.int4", "kv.fp8", "common.latent", "common.hop")
    for place in before:
        if place.startswith(silent):
            assert place in found.kept


def test_one_run_moves_little() -> None:
    start = Profile.kernels()
    found = calibration.fit(measurements(grid(moved(start, overhead_scale=2.5))[:1]), start)
    assert len(found.kept) > len(start.numbers()) / 2
    for place, number in found.profile.numbers().items():
        assert number.value == pytest.approx(start.numbers()[place].value, rel=0.7)
    assert found.cross_validation == {"model": {}, "tp": {}, "gpu": {}}


def test_priors_of_kernels_timed_on_other_gpus_are_weaker() -> None:
    start = Profile.kernels()
    slower = dataclasses.replace(start.common.dense_memory, value=0.6 * start.common.dense_memory.value)
    truth = start.with_numbers({"common.dense_memory": slower})
    found = {
        gpu: calibration.fit(measurements(grid(truth, gpu=gpu)), start, by=()).profile.common.dense_memory.value
        for gpu in ("h100-sxm-80gb", "l40s")
    }
    assert found["l40s"] < found["h100-sxm-80gb"] <= start.common.dense_memory.value


def test_runs_left_out_do_not_bear_on_their_prediction() -> None:
    start = Profile.kernels()
    rows = grid(moved(start, overhead_scale=2.5))
    slowed = [
        dataclasses.replace(row, ttft_s=3 * (row.ttft_s or 0), tpot_s=3 * (row.tpot_s or 0))
        if row.model == "qwen3-32b"
        else row
        for row in rows
    ]
    one, other = (
        {fold.left_out: fold for fold in calibration.cross_validate(measurements(given), start, by=("model",))}
        for given in (rows, slowed)
    )
    assert set(one) == {"llama-3.1-8b", "qwen3-32b"}
    np.testing.assert_array_equal(one["qwen3-32b"].prediction.tpot_s, other["qwen3-32b"].prediction.tpot_s)
    assert not np.array_equal(one["llama-3.1-8b"].prediction.tpot_s, other["llama-3.1-8b"].prediction.tpot_s)


def test_folds_by_gpus_and_gpu_type() -> None:
    start = Profile.kernels()
    rows = grid(start) + grid(start, gpu="h200-sxm-141gb")
    folds = calibration.cross_validate(measurements(rows), start, by=("tp", "gpu"))
    assert [(fold.by, fold.left_out, len(fold.rows)) for fold in folds] == [
        ("tp", "2 GPUs", 16),
        ("tp", "4 GPUs", 16),
        ("tp", "8 GPUs", 16),
        ("gpu", "h100-sxm-80gb", 24),
        ("gpu", "h200-sxm-141gb", 24),
    ]


def test_repeats_count_once_and_contradictions_count_less() -> None:
    start = Profile.kernels()
    rows = grid(moved(start, overhead_scale=2.5))
    repeated = rows + [dataclasses.replace(row, source="again") for row in rows[:3] for _ in range(20)]
    once, often = (calibration.fit(measurements(given), start, by=()) for given in (rows, repeated))
    assert once.contradictory == often.contradictory == ()
    assert once.profile.numbers() == often.profile.numbers()
    wild = [*rows, dataclasses.replace(rows[0], source="wild", tpot_s=4 * (rows[0].tpot_s or 0))]
    found = calibration.fit(measurements(wild), start, by=())
    assert set(found.contradictory) == {rows[0].source, "wild"}
    assert found.profile.engines["vllm"].overhead_scale.value == pytest.approx(2.5, abs=0.2)


def test_the_profile_knows_what_it_was_fitted_to() -> None:
    rows = grid(Profile.kernels())
    profile = calibration.fit(
        measurements(rows), Profile.kernels(), name="mine", command="cascadia-fast calibrate runs.csv", by=("model",)
    ).profile
    assert (profile.name, profile.gpus) == ("mine", ("h100-sxm-80gb",))
    assert profile.provenance.files == (("runs.csv", "0" * 64),)
    assert profile.provenance.command == "cascadia-fast calibrate runs.csv"
    assert {group.models: group.rows for group in profile.measured} == {("llama-3.1-8b",): 12, ("qwen3-32b",): 12}
    assert profile.measured[0].shapes == ((2, 1, 1, 1), (4, 1, 1, 1), (8, 1, 1, 1))
    assert profile.measured[0].concurrency == (1.0, 32.0)
    assert profile.measured[0].tokens_in == (1024.0, 1024.0)
    assert profile.measured[0].tokens_out == (512.0, 512.0)
    assert profile.measured[0].kv == ("bf16",)
    assert {"tpot, all models", "tpot, all models, by model left out"} <= {line.of for line in profile.errors}
    status = Runs(rows).statuses(profile)[0]
    assert status is not None
    assert status.level == "calibrated"
    assert status.reason.startswith("12 runs of llama-3.1-8b on h100-sxm-80gb with vllm in bf16")


def test_runs_that_contradict_each_other_calibrate_nothing() -> None:
    start = Profile.kernels()
    rows = [row for row in grid(start) for row in (row, dataclasses.replace(row, tpot_s=2 * (row.tpot_s or 0)))]
    assert calibration.fit(measurements(rows), start, by=()).profile.measured == ()


def test_models_that_do_not_fit_are_not_predicted() -> None:
    rows = [
        run(),
        run(source="big", model="llama-3.1-70b"),
        run(source="long", tokens_in=900_000.0),
        run(source="odd", tp=3),
    ]
    found = predict(rows, Profile.shipped())
    assert np.isnan(found.tpot_s).tolist() == np.isnan(found.ttft_s).tolist() == [False, True, True, True]
    assert found.reasons[0] is None
    said = re.fullmatch(
        r"the bf16 weights of llama-3.1-70b do not fit 1 h100-sxm-80gb: (\d+) GB are missing", found.reasons[1] or ""
    )
    # 141 GB of weights on a GPU of 86 GB, of which a tenth stays free, and 3 GB that any engine needs.
    assert said is not None
    assert int(said[1]) == pytest.approx(141 - 0.9 * 86 + 3, abs=2)
    assert "no room for the KV cache of one request" in (found.reasons[2] or "")
    assert "tp3" in (found.reasons[3] or "")
    with pytest.raises(InputError, match="none of the 1 runs can be predicted.*do not fit"):
        calibration.fit(measurements(rows[1:2]), Profile.kernels())
    with pytest.raises(InputError, match="nothing to fit"):
        calibration.fit(measurements([]), Profile.kernels())


def test_predictions_do_not_depend_on_their_company_or_on_measured_times() -> None:
    rows = grid(Profile.kernels())
    together = predict(rows, Profile.shipped())
    for place, row in enumerate(rows):
        alone = predict([dataclasses.replace(row, ttft_s=None, tpot_s=1.0)], Profile.shipped())
        assert (alone.ttft_s[0], alone.tpot_s[0]) == (together.ttft_s[place], together.tpot_s[place])
    runs = Runs(rows)
    for profile in (Profile.shipped(), Profile.kernels(), Profile.shipped()):
        np.testing.assert_array_equal(runs.predict(profile).tpot_s, predict(rows, profile).tpot_s)


def test_limits_of_an_engine_are_what_its_clients_need() -> None:
    few = run(model="llama-3.1-70b", weights="fp8")
    many = dataclasses.replace(few, concurrency=2048.0)
    found = predict([few, many], Profile.kernels())
    # Logits of 2,048 sequences take the gigabyte that is left beside 70B weights in 8 bits.
    assert found.reasons[0] is None
    assert re.search(r"no room for the KV cache of one request: 0\.\d+ GB are missing$", found.reasons[1] or "")


def test_each_rank_of_attention_data_parallelism_has_the_limits_of_an_engine() -> None:
    short = {"tokens_in": 64.0, "tokens_out": 64.0, "attention_dp": 8}
    rows = [run(concurrency=8 * clients, **short) for clients in (512.0, 2048.0, 4096.0)]
    few, most, more = predict(rows, Profile.kernels()).tpot_s.tolist()
    assert most > 1.2 * few
    assert more == pytest.approx(most, rel=0.01)  # the others queue


def test_predictions_that_are_not_finite_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [run(source="a"), run(source="b", concurrency=16.0)]
    monkeypatch.setattr(closed_loop, "_closed_loop", lambda setup, engine: (np.ones(2), np.array([np.inf, 1.0])))
    found = evaluate(measurements(rows), Profile.kernels())
    assert (found["overall"]["tpot"]["rows"], found["overall"]["tpot"]["predicted"]) == (2, 1)
    (entry,) = found["unpredicted"]
    assert entry == {"source": "a", "reason": f"profile {Profile.kernels().name!r} predicts no finite time"}


def test_more_clients_wait_longer() -> None:
    rows = [run(concurrency=clients) for clients in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)]
    found = predict(rows, Profile.shipped())
    assert (np.diff(found.tpot_s) > 0).all()
    assert (np.diff(found.ttft_s) > 0).all()


def test_every_run_has_finite_times_or_a_reason() -> None:
    edge = [run(tokens_in=float(tokens), tokens_out=20_000.0) for tokens in range(250_000, 500_000, 2_000)]
    odd = [
        run(tokens_out=1.0),
        run(tokens_in=1.0, tokens_out=1.0),
        run(concurrency=0.5),
        run(concurrency=1e6),
        run(tp=2, pp=2),
        run(model="deepseek-r1", weights="int4", tp=8, ep=8),
        run(model="deepseek-r1", weights="fp8", gpu="h200-sxm-141gb", attention_dp=8, ep=8),
        run(gpu="a100-sxm-80gb", weights="fp8"),
    ]
    found = predict(edge + odd, Profile.shipped())
    finite = np.isfinite(found.ttft_s) & np.isfinite(found.tpot_s) & (found.ttft_s > 0) & (found.tpot_s > 0)
    assert finite.tolist() == [reason is None for reason in found.reasons]
    assert 0 < finite[: len(edge)].sum() < len(edge)
    assert finite[len(edge) :].all()


def test_missing_scipy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"pip install cascadia-fast\[calibrate\]"):
        calibration.fit(measurements(grid(Profile.kernels())), Profile.kernels())


def test_errors_are_what_they_say() -> None:
    predicted, measured = np.array([1.1, 1.8, 3.0, np.nan, 5.0, 1.8]), np.array([1.0, 2.0, 3.0, 4.0, np.nan, 1.5])
    found = errors(predicted, measured)
    error = np.array([0.1, -0.1, 0.0, 0.2])
    assert (found["rows"], found["predicted"]) == (5, 4)
    assert found["median_abs_error"] == pytest.approx(np.median(np.abs(error)), abs=1e-4)
    assert found["mean_abs_error"] == pytest.approx(np.mean(np.abs(error)), abs=1e-4)
    assert found["p90_abs_error"] == pytest.approx(np.quantile(np.abs(error), 0.9), abs=1e-4)
    assert found["bias"] == pytest.approx(np.median(error), abs=1e-4)
    expected = spearmanr(predicted[[0, 1, 2, 5]], measured[[0, 1, 2, 5]]).statistic
    assert found["spearman"] == pytest.approx(expected, abs=1e-4)
    assert set(errors(predicted[:0], measured[:0]).values()) == {0, None}
    assert errors(np.ones(5), np.arange(1.0, 6.0))["spearman"] is None
    assert errors(np.array([1.1, np.inf]), np.ones(2))["predicted"] == 1


def test_evaluation_splits_saturated_runs_and_lists_the_others() -> None:
    rows = [run(), run(source="queued", ttft_s=30.0), run(source="no time", ttft_s=None), run(source="odd", tp=3)]
    assert saturated(rows).tolist() == [False, True, False, False]
    found = evaluate(measurements(rows, [Rejected("line 7", "unknown GPU")]), Profile.shipped())
    assert (found["rows"], found["rejected"]) == (4, 1)
    assert {name: found[name]["tpot"]["rows"] for name in ("overall", "unsaturated", "saturated")} == {
        "overall": 5,
        "unsaturated": 3,
        "saturated": 1,
    }
    assert (found["overall"]["ttft"]["rows"], found["overall"]["ttft"]["predicted"]) == (4, 2)
    assert found["overall"]["statuses"] == {"transferred": 3}
    (group,) = found["groups"]
    assert (group["model"], group["gpu"], group["engine"], group["precision"]) == (
        "llama-3.1-8b",
        "h100-sxm-80gb",
        "vllm",
        "bf16",
    )
    assert [entry["source"] for entry in found["unpredicted"]] == ["odd", "line 7"]
    assert found["unpredicted_reasons"]["unknown GPU"] == 1


def test_rejected_runs_count_in_their_group() -> None:
    known = {"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb", "engine": "vllm"}
    rejected = [
        Rejected("in a group", "open loop", **known, precision="bf16"),
        Rejected("in none yet", "mixed", **known, precision="fp8 + int4"),
        Rejected("unreadable", "unknown GPU"),
    ]
    found = evaluate(measurements([run()], rejected), Profile.kernels())
    counted = {group["precision"]: (group["tpot"]["rows"], group["tpot"]["predicted"]) for group in found["groups"]}
    assert counted == {"bf16": (2, 1), "fp8 + int4": (1, 0)}
    assert found["overall"]["tpot"]["rows"] == 4


def test_evaluation_on_the_runs_of_the_fit_is_said() -> None:
    profile = calibration.fit(measurements(grid(Profile.kernels())), Profile.kernels(), by=()).profile
    words = "the profile was fitted to this file (runs.csv): these are not errors of unseen runs"
    assert evaluate(measurements([run()]), profile)["notes"] == [words]
    assert evaluate(measurements([run()]), Profile.kernels())["notes"] == []


def test_folds_never_start_from_a_profile_that_saw_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = grid(moved(Profile.kernels(), overhead_scale=2.5))
    seen = calibration.fit(measurements(rows), Profile.kernels(), by=()).profile
    starts: list[str] = []

    def folds(_: Measurements, start: Profile, **options: Any) -> list[calibration.Fold]:
        starts.append(start.name)
        return []

    monkeypatch.setattr(calibration, "cross_validate", folds)
    found = calibration.fit(measurements(rows), seen, by=("model",))
    assert starts == [Profile.kernels().name]
    assert found.before["profile"] == seen.name


def test_a_fit_that_ran_out_of_evaluations_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measurements(grid(moved(Profile.kernels(), overhead_scale=2.5)))
    assert calibration.fit(rows, Profile.kernels(), by=()).after["notes"][:-1] == []
    monkeypatch.setattr(calibration, "_MAX_EVALUATIONS", 1)
    found = calibration.fit(rows, Profile.kernels(), by=())
    words = "The optimiser stopped at its limit of 1 evaluations: the numbers may not be the best fit."
    assert words in found.after["notes"]
    assert words in found.profile.provenance.notes


def test_4_bit_floats_are_transferred_at_best() -> None:
    rows = [run(weights="int4", precision="nvfp4", source=f"c{clients}", concurrency=clients) for clients in (1.0, 8.0)]
    profile = calibration.fit(measurements(rows), Profile.kernels(), by=()).profile
    assert [group.weights for group in profile.measured] == ["nvfp4"]
    for row, reason in ((rows[0], "nvfp4 has no numbers of its own"), (run(weights="int4"), "measured in int4")):
        (status,) = Runs([row]).statuses(profile)
        assert status is not None
        assert status.level == "transferred"
        assert reason in status.reason
    (group,) = evaluate(measurements(rows), profile)["groups"]
    assert group["precision"] == "nvfp4"


def test_predictions_far_from_the_measured_lengths_are_not_calibrated() -> None:
    profile = calibration.fit(measurements(grid(Profile.kernels())), Profile.kernels(), by=()).profile
    inside = run(tp=2, concurrency=64.0)
    for change, words in (
        ({}, None),
        ({"tokens_in": 100_000.0}, "beyond what was measured: prompts of 100,000 tokens, measured 1,024 ("),
        ({"tokens_out": 100.0}, "beyond what was measured: answers of 100 tokens, measured 512 ("),
        ({"concurrency": 65.0}, "beyond what was measured: 65 clients, measured 1 to 32 ("),
        ({"kv": "fp8"}, "beyond what was measured: a KV cache in fp8, measured bf16 ("),
    ):
        (status,) = Runs([dataclasses.replace(inside, **change)]).statuses(profile)
        assert status is not None
        assert status.level == ("interpolated" if words else "calibrated")
        assert status.reason.startswith(words or "12 runs of llama-3.1-8b")


def test_the_shipped_profile_agrees_with_published_runs() -> None:
    found = evaluate(read_measurements([SAMPLE]), Profile.shipped())
    assert found["unpredicted"] == []
    assert found["overall"]["statuses"] == {"calibrated": found["rows"]}
    tpot, ttft = found["unsaturated"]["tpot"], found["unsaturated"]["ttft"]
    assert tpot["median_abs_error"] <= 0.08
    assert tpot["spearman"] >= 0.95
    # Of its runs 16 are of DeepSeek and Llama 8B under TensorRT-LLM, whose first tokens wait for reasons that no file
    # states.
    assert ttft["median_abs_error"] <= 0.5
    assert ttft["spearman"] >= 0.8
