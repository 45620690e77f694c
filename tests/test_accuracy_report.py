"""The accuracy report: what it counts, reads, judges and draws."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascadia_fast.calibration import Fold
from cascadia_fast.closed_loop import Prediction
from cascadia_fast.errors import InputError
from cascadia_fast.measurements import Measurement
from cascadia_fast.profile import Profile
from cascadia_fast.summary_layout import Table

# Last on the path: the package itself stays the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks import accuracy, accuracy_load, accuracy_page, accuracy_plots, accuracy_runs, accuracy_targets
from benchmarks.accuracy_load import Answer
from benchmarks.accuracy_runs import Comparison, Predictor
from benchmarks.choosing import Choice, choices

SAMPLE = str(Path(__file__).parent / "data" / "serving_runs_43.csv")
ROW = Measurement(
    source="a",
    model="llama-3.1-8b",
    gpu="h100-sxm-80gb",
    engine="vllm",
    engine_version=None,
    weights="bf16",
    kv="bf16",
    precision="bf16",
    tp=1,
    pp=1,
    ep=1,
    attention_dp=1,
    tokens_in=1000.0,
    tokens_out=1000.0,
    concurrency=8.0,
    ttft_s=0.1,
    tpot_s=0.01,
)


def predictor(name: str, factors: Sequence[float], rows: Sequence[Measurement]) -> Predictor:
    """Predictions that are off by the given factors in both metrics; NaN predicts nothing."""
    ttft_s, tpot_s = (np.array([getattr(row, time) for row in rows], float) for time in ("ttft_s", "tpot_s"))
    missing = sum(map(math.isnan, factors))
    return Predictor(name, ttft_s * factors, tpot_s * factors, {"no data": missing} if missing else {})


def comparison(fitted: Sequence[float], blind: Sequence[float], rival: Sequence[float]) -> Comparison:
    """Six runs: three dense, three MoE of which the last one queued."""
    rows = [dataclasses.replace(ROW, source=f"r{k}", tpot_s=0.01 * (k + 1)) for k in range(6)]
    rows[3:] = [dataclasses.replace(row, model="gpt-oss-120b", weights="mxfp4") for row in rows[3:]]
    return Comparison(
        rows=tuple(rows),
        ttft_s=np.full(6, 0.1),
        tpot_s=np.array([row.tpot_s for row in rows], float),
        fitted=predictor("profile", fitted, rows),
        left_out={"model": predictor("model left out", blind, rows)},
        rival=predictor("rival 1.0", rival, rows),
        moe=np.array([False] * 3 + [True] * 3),
        queued=np.array([False] * 5 + [True]),
        contradictory=np.full(6, False),
        statuses=("calibrated",) * 5 + ("interpolated",),
    )


NAN = math.nan
SIX = comparison([1.01] * 6, [1.05, 1.07, 1.2, 1.1, 1.12, 9.0], [1.3, NAN, 1.3, NAN, 1.5, 1.0])


def cells(table: Table, *first: str) -> dict[str, str]:
    """The row that begins with these cells, by column."""
    row = next(row for row in table.rows if row[: len(first)] == first)
    return dict(zip(table.header, row, strict=True))


def test_queued_runs_are_apart_from_those_that_count() -> None:
    assert cells(accuracy_runs.headline(SIX, "tpot"), "MoE", "model left out")["mean"] == "11.0 %"
    queued = cells(accuracy_runs.apart(SIX, "tpot"), "queued", "model left out")
    assert (queued["runs"], queued["median"], queued["bias"]) == ("1", "800.0 %", "+800.0 %")


def test_coverage_is_each_predictors_own() -> None:
    table = accuracy_runs.headline(SIX, "tpot")
    assert cells(table, "all", "rival 1.0")["runs"] == "5"
    assert cells(table, "all", "rival 1.0")["predicted"] == "3"
    assert cells(table, "all", "profile")["predicted"] == "5"


def test_same_runs_are_those_that_every_one_predicts() -> None:
    table = accuracy_runs.same_runs(SIX, "tpot")
    assert table is not None
    ours = cells(table, "dense", "model left out")
    assert (ours["runs"], ours["predicted"], ours["mean"]) == ("2", "2", "12.5 %")  # of 5 % and 20 %, without the 7 %
    brief = accuracy_runs.brief_same_runs(SIX)
    assert brief is not None
    line = cells(brief, "TPOT, all")
    assert line["runs both predict"] == "3"
    assert line["rival 1.0"].startswith("30.0 %")


def test_groups_name_the_rivals_coverage_where_it_is_not_whole() -> None:
    table = accuracy_runs.groups(SIX)
    dense, moe = cells(table, "llama-3.1-8b"), cells(table, "gpt-oss-120b")
    assert dense["TPOT, rival 1.0"] == "30.0 % (2 of 3)"
    assert (moe["runs"], moe["not counted"], moe["status"]) == ("3", "1", "2 calibrated, 1 interpolated")


def test_left_out_predictions_return_to_their_runs() -> None:
    rows = [dataclasses.replace(ROW, source=name, tp=tp) for name, tp in (("a", 1), ("b", 2), ("c", 1))]
    one = Prediction(np.array([1.0, 3.0]), np.array([10.0, 30.0]), (None, None))
    other = Prediction(np.array([NAN]), np.array([NAN]), ("does not fit",))
    folds = [Fold("tp", "1 GPUs", (rows[0], rows[2]), one), Fold("tp", "2 GPUs", (rows[1],), other)]
    found = accuracy_runs._left_out(rows, folds)
    assert list(found) == ["tp"]
    np.testing.assert_array_equal(found["tp"].ttft_s, [1.0, NAN, 3.0])
    np.testing.assert_array_equal(found["tp"].tpot_s, [10.0, NAN, 30.0])
    assert found["tp"].reasons == {"does not fit": 1}


RIVAL = "id,pred_ttft_ms,pred_tpot_ms,error\n"


def test_rival_is_read_by_id_with_its_reasons(tmp_path: Path) -> None:
    path = tmp_path / "tool_1.2_predictions.csv"
    path.write_text(RIVAL + "b,200,20,\nelse,1,1,\na,,,OOM\n")
    rows = [dataclasses.replace(ROW, source=name) for name in "abc"]
    found = accuracy_runs.read_rival(path, rows)
    assert found.name == "tool 1.2"
    np.testing.assert_array_equal(found.ttft_s, [NAN, 0.2, NAN])
    np.testing.assert_array_equal(found.tpot_s, [NAN, 0.02, NAN])
    assert found.reasons == {"OOM": 1, "no reason given": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,pred_ttft_ms,error\na,1,\n", "no column 'pred_tpot_ms'"),
        (RIVAL + "z,1,1,\n", "none of the 1 runs"),
        (RIVAL + "a,1,soon,\n", "pred_tpot_ms of a .* is 'soon'"),
        (RIVAL + "a,-1,1,\n", "pred_ttft_ms of a .* is '-1'"),
    ],
)
def test_rival_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rival.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        accuracy_runs.read_rival(path, [ROW])


def test_targets_are_judged_on_models_left_out() -> None:
    table = accuracy_targets.reach(SIX, [], [])
    dense = cells(table, "TPOT, median error, dense, model left out")
    assert (dense["target"], dense["reached"], dense["met"]) == ("≤ 8 %", "7.0 %", "yes")
    worse = dataclasses.replace(SIX, left_out={"model": predictor("model left out", [1.2] * 6, SIX.rows)})
    assert cells(accuracy_targets.reach(worse, [], []), "TPOT, median error, dense, model left out")["met"] == "no"


def test_a_run_without_a_prediction_needs_a_reason() -> None:
    what = "runs predicted, or with a reason why not"
    some = comparison([1.0] * 5 + [NAN], [1.0] * 6, [1.0] * 6)
    assert cells(accuracy_targets.reach(some, [], []), what)["reached"] == "5 of 6, 1 with a reason"
    silent = dataclasses.replace(some, fitted=dataclasses.replace(some.fitted, reasons={}))
    assert cells(accuracy_targets.reach(silent, [], []), what)["met"] == "no"


def test_misses_are_worst_first_and_name_what_differs() -> None:
    group = ("org/model", "h100-sxm-80gb", "vllm 1", "fp8", 1024.0, 512.0)
    shapes = "tp1 pp1 ep1 attention_dp1", "tp4 pp1 ep4 attention_dp1"
    losses = {0.04: "kept", 0.2: "lost", 1.0: "broken"}
    found = accuracy_targets.misses([Choice(group, 0.02, *shapes, 1 - loss, 1.0) for loss in losses])
    assert [row[-1] for row in found.rows] == ["100.0 %", "20.0 %"]
    row = cells(found, "model")
    assert (row["chosen"], row["measured best"], row["TPOT bound"]) == ("tp1", "tp4 ep4", "20.0 ms")


def test_bounds_that_no_shape_is_predicted_to_keep_are_misses() -> None:
    # No engine is as fast as these runs claim.
    rows = [
        dataclasses.replace(ROW, tp=tp, concurrency=clients, ttft_s=1e-6, tpot_s=1e-6 * tp * clients)
        for tp in (1, 2)
        for clients in (8.0, 16.0, 32.0)
    ]
    found = choices(rows, Profile.kernels())
    assert [(choice.chosen, choice.loss) for choice in found] == [("none", 1.0)] * 3
    assert cells(accuracy_targets.misses(found[:1]), "llama-3.1-8b")["chosen"] == "none"


def answer(error: float, half_width: float = 0.01, stratum: str = "general") -> Answer:
    return Answer(stratum, "≤ 0.6", 10.0, half_width, 1.0, 10.0 * (1 + error), 1.0)


def test_load_lines_leave_out_what_the_simulation_does_not_know() -> None:
    (line,) = accuracy_load.lines([answer(0.02), answer(-0.04), answer(0.5, half_width=0.03)])
    assert (line.tight, line.loose, line.met) == (2, 1, True)
    assert line.p95 == pytest.approx(0.04)


def test_unstable_predictions_are_unbounded_errors() -> None:
    (line,) = accuracy_load.lines([answer(0.01), answer(math.inf)])
    assert (line.unstable, line.met) == (1, False)
    assert cells(accuracy_load.load_table([line]), "general")["95th"] == "unbounded"


def test_bursts_have_a_wider_limit() -> None:
    errors = [0.01] * 3 + [0.18]
    general, bursty = (
        accuracy_load.lines([answer(error, stratum=stratum) for error in errors])[0]
        for stratum in ("general", "bursty")
    )
    assert (general.met, bursty.met) == (False, True)


def load_row(**changed: Any) -> dict[str, Any]:
    case = {"stratum": "general", "band": "0.6-0.8", "replicas": 4, "dispatch": "least_outstanding", **changed}
    reference = {"p95_s": 2.0, "half_width": 0.01, "ttft_p95_s": 0.5}
    return {"case": case, "reference": reference, "predicted": {"p95_s": math.inf, "ttft_p95_s": math.inf}}


def test_rows_of_load_accuracy_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([load_row(), load_row(replicas=1)]))
    pooled, alone = accuracy_load.read_answers(path)
    assert (pooled.stratum, pooled.band, pooled.predicted_p95_s) == ("general, least outstanding", "0.6–0.8", math.inf)
    assert alone.stratum == "general"


@pytest.mark.parametrize(
    ("content", "said"), [("{", "is not JSON"), ("{}", "no list"), ('[{"case": {}}]', "row 1 of .*'reference'")]
)
def test_other_files_are_no_load_rows(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        accuracy_load.read_answers(path)


def test_markdown_aligns_figures() -> None:
    table = Table(("what", "value"), (("a", "1"),), frozenset({"what"}))
    assert accuracy_page.markdown(table) == "| what | value |\n| :--- | ---: |\n| a | 1 |"


def test_page_shows_texts_as_they_are() -> None:
    section = accuracy_page.Section("a < b", [accuracy_page.Listing(["`x & y`", "<script>"])])
    made = accuracy_page.page("title", "summary", [section])
    assert "<code>x &amp; y</code>" in made
    assert "<script>" not in made
    assert "a &lt; b" in made


def test_lines_part_blocks_of_rows_and_nothing_else() -> None:
    def parted(firsts: str) -> int:
        table = Table(("what",), tuple((first,) for first in firsts), frozenset())
        section = accuracy_page.Section("section", [accuracy_page.Captioned("table", table)])
        return accuracy_page.page("title", "summary", [section]).count('class="first"')

    assert [parted(firsts) for firsts in ("aabb", "abcd", "abab", "aaaa")] == [1, 0, 0, 0]


def panels(predicted: Sequence[float]) -> list[accuracy_plots.Panel]:
    values = np.array(predicted, float)
    names = ["a"] * len(values)
    return [
        accuracy_plots.Panel("title", "caption", np.ones(len(values)), values, names, names, np.full(len(values), True))
    ]


def test_pictures_depend_on_figures_only() -> None:
    pytest.importorskip("matplotlib")
    legend = accuracy_plots.Legend(["a"], ["a"])
    one, again, other = (
        accuracy_plots.scatter(panels(values), legend, "measured", "ms", 0.1)
        for values in ([1.1, 2.0], [1.1, 2.0], [1.1, 3.0])
    )
    assert one == again != other


def test_runs_without_a_prediction_are_not_drawn() -> None:
    pytest.importorskip("matplotlib")
    legend = accuracy_plots.Legend(["a"], ["a"])
    drawn = [
        accuracy_plots.scatter(panels(values), legend, "measured", "ms", 0.1).count("<use ")
        for values in ([1.1, 2.0], [1.1, 2.0, NAN, math.inf])
    ]
    assert drawn[0] == drawn[1]


@pytest.fixture
def without_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-validation takes long and has tests of its own."""
    monkeypatch.setattr(accuracy_runs, "_folds", lambda measurements, say: [])


@pytest.mark.usefixtures("without_folds")
def test_report_needs_no_network_and_names_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    page, again = tmp_path / "a.html", tmp_path / "b.html"
    load = tmp_path / "rows.json"
    load.write_text(json.dumps([load_row(), load_row(replicas=1)]))
    for path in (page, again):
        assert accuracy.main([SAMPLE, "--load", str(load), "--markdown", "-o", str(path)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text == again.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert str(tmp_path) not in text
    assert "| what | target | reached | met |" in capsys.readouterr().out


@pytest.mark.usefixtures("without_folds")
def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert accuracy.main([SAMPLE, "-o", str(tmp_path / "none" / "page.html")]) == 2
    assert accuracy.main([SAMPLE, "--against", str(tmp_path / "none.csv"), "-o", str(tmp_path / "page.html")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: -o ")
    assert "cannot be read" in second
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_report_leaves_models_gpus_and_types_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert accuracy.main([SAMPLE, "-o", str(tmp_path / "page.html")]) == 0
    printed = capsys.readouterr().out
    for name in accuracy_runs.LEFT_OUT.values():
        assert name in printed
    assert "data:image/svg+xml" in (tmp_path / "page.html").read_text(encoding="utf-8")
