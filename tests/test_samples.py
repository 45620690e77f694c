from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from cascadia_fast.errors import CascadiaWarning, InputError
from cascadia_fast.samples import (
    ScoredTable,
    Trace,
    read_scored_requests,
    read_trace,
    with_simulated_scores,
    with_trace_lengths,
)
from cascadia_fast.schema import ColumnNames

HEADER = "request,model,input_tokens,output_tokens,score,quality\n"
GOOD = ["x,small,10,20,5,40", "y,small,11,21,6,50", "x,large,12,22,7,60", "y,large,13,23,8,70"]


def scored(tmp_path: Path, rows: list[str], header: str = HEADER, **options: object) -> ScoredTable:
    path = tmp_path / "requests.csv"
    path.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
    arguments: dict[str, object] = {"columns": ColumnNames(), "models": ("small", "large"), **options}
    return ScoredTable(path, **arguments)  # type: ignore[arg-type]


def test_rows_become_stages_and_requests(tmp_path: Path) -> None:
    # Rows may come in any order; requests keep the order of their first row.
    requests = read_scored_requests(scored(tmp_path, [GOOD[3], GOOD[0], GOOD[2], GOOD[1]]))
    assert requests.models == ("small", "large")
    assert requests.request_ids.tolist() == ["y", "x"]
    assert requests.input_tokens.tolist() == [[11, 10], [13, 12]]
    assert requests.output_tokens.tolist() == [[21, 20], [23, 22]]
    assert requests.score.tolist() == [[6, 5], [8, 7]]
    assert requests.quality.tolist() == [[50, 40], [70, 60]]


def test_models_not_in_use_do_not_matter(tmp_path: Path) -> None:
    others = ["x,huge,-1,0,,999", "x,huge,1,1,1,1", "z,huge,1,1,1,1"]
    assert read_scored_requests(scored(tmp_path, [*GOOD, *others])).request_ids.tolist() == ["x", "y"]


def test_scales_and_columns(tmp_path: Path) -> None:
    rows = ["a,1,small,10,20,0,0.3", "a,1,large,12,22,10,1", "b,1,small,10,20,2.5,0", "b,1,large,12,22,,0.07"]
    columns = ColumnNames(
        request=("set", "id"), model="m", input_tokens="in", output_tokens="out", score="says", quality="is"
    )
    table = scored(tmp_path, rows, "set,id,m,in,out,says,is\n", columns=columns, score_scale=10, quality_scale=1)
    requests = read_scored_requests(table)
    assert requests.request_ids.tolist() == ["a/1", "b/1"]
    assert requests.score[0].tolist() == [0, 25]
    # The last stage accepts whatever its score, so it may be missing there.
    assert np.array_equal(requests.score[1], [100, np.nan], equal_nan=True)
    assert requests.quality == pytest.approx(np.array([[30, 0], [100, 7]]))


def test_an_explicit_quality_scale_counts_for_any_column(tmp_path: Path) -> None:
    rows = ["x,small,1,2,0", "y,small,1,2,1"]
    header = "request,model,input_tokens,output_tokens,correct\n"
    columns = ColumnNames(score="correct")
    table = scored(tmp_path, rows, header, columns=columns, models=("small",), quality_scale=1, needs_score=False)
    assert read_scored_requests(table).quality.tolist() == [[0, 100]]


def test_numbers_that_look_like_shares_are_questioned(tmp_path: Path) -> None:
    rows = ["x,small,1,2,0.5,1", "y,small,1,2,0,0", "x,large,1,2,1,1", "y,large,1,2,,1"]
    with pytest.warns(CascadiaWarning, match=r"lie between 0 and 1") as caught:
        read_scored_requests(scored(tmp_path, rows))
    sentences = [str(item.message) for item in caught]
    assert any("qualities lie" in sentence and "workload.quality_scale: 1" in sentence for sentence in sentences)
    assert any("scores lie" in sentence and "workload.score_scale: 1" in sentence for sentence in sentences)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_scored_requests(scored(tmp_path, rows, score_scale=1))
        read_scored_requests(scored(tmp_path, GOOD))


def test_request_columns_together_name_a_request(tmp_path: Path) -> None:
    rows = [
        f"{a},{b},{model},1,1,50,50"
        for a, b in (("p/q", "r"), ("p", "q/r"), ("p", "r"))
        for model in ("small", "large")
    ]
    columns = ColumnNames(request=("a", "b"))
    requests = read_scored_requests(scored(tmp_path, rows, HEADER.replace("request", "a,b"), columns=columns))
    assert requests.size == 3
    with pytest.raises(InputError, match=r"request 'p' has more than one row for model 'small' .*rows 3 and 5\)"):
        read_scored_requests(
            scored(tmp_path, rows, HEADER.replace("request", "a,b"), columns=ColumnNames(request=("a",)))
        )


def test_quality_defaults_to_the_score_with_a_warning(tmp_path: Path) -> None:
    rows = [row.rsplit(",", 1)[0] for row in GOOD]
    table = scored(tmp_path, rows, HEADER.replace(",quality", ""))
    with pytest.warns(CascadiaWarning, match="over-states quality"):
        requests = read_scored_requests(table)
    assert np.array_equal(requests.quality, requests.score)


def test_scores_are_not_needed_for_one_model_or_a_simulated_judge(tmp_path: Path) -> None:
    rows = [",".join(row.split(",")[:4] + row.split(",")[5:]) for row in GOOD]
    header = HEADER.replace("score,", "")
    assert read_scored_requests(scored(tmp_path, rows, header, models=("large",))).quality.tolist() == [[60, 70]]
    requests = read_scored_requests(scored(tmp_path, rows, header, needs_score=False))
    assert np.array_equal(requests.score, requests.quality)
    judged = with_simulated_scores(requests, 0.8, 0)
    assert not np.array_equal(judged.score, requests.score)
    assert np.array_equal(judged.quality, requests.quality)
    with pytest.raises(InputError, match="has no column 'score'"):
        read_scored_requests(scored(tmp_path, rows, header))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("x,small,0,20,5,40", "input_tokens in row 1 of .* is 0; it must be a positive"),
        ("x,small,10,-3,5,40", "output_tokens in row 1 of .* is -3"),
        ("x,small,10,inf,5,40", "output_tokens in row 1 of .* is inf"),
        ("x,small,nan,20,5,40", "request 'x' has no input_tokens for model 'small'"),
        ("x,small,10,20,101,40", "score in row 1 of .* is 101; it must be from 0 to 100, the workload.score_scale"),
        ("x,small,10,20,5,-1", "quality in row 1 of .* is -1; .*workload.quality_scale"),
        ("x,small,10,20,,40", "request 'x' has no score for model 'small' in .*drop_incomplete: true"),
        ("x,small,10,20,5,", "request 'x' has no quality for model 'small'"),
        ("x,smal,10,20,5,40", "request 'x' has no row for model 'small'"),
        ("y,small,10,20,5,40", r"request 'y' has more than one row for model 'small' in .* \(rows 1 and 2\)"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_scored_requests(scored(tmp_path, [row, *GOOD[1:]]))
    assert "\n" not in str(caught.value)


def test_unknown_model_names_those_present(tmp_path: Path) -> None:
    says = re.escape(
        "no rows for model 'Large' (column 'model' has 'small', 'large'); set cascade[1].name_in_requests; did"
    )
    with pytest.raises(InputError, match=says):
        read_scored_requests(scored(tmp_path, GOOD, models=("small", "Large")))


def test_incomplete_requests_can_be_dropped(tmp_path: Path) -> None:
    rows = [*GOOD, "z,large,1,1,1,1", "w,small,1,1,,1", "w,large,1,1,1,1"]
    says = "request 'z' has no row for model 'small' in .* \\(1 more are incomplete\\)"
    with pytest.raises(InputError, match=says):
        read_scored_requests(scored(tmp_path, rows))
    with pytest.warns(CascadiaWarning, match="2 of 4 requests are incomplete .* request 'z' has no row"):
        requests = read_scored_requests(scored(tmp_path, rows, drop_incomplete=True))
    assert requests.request_ids.tolist() == ["x", "y"]
    with pytest.raises(InputError, match="no request is complete"):
        read_scored_requests(scored(tmp_path, [GOOD[0], GOOD[3]], drop_incomplete=True))


WEIGHTED = HEADER.replace("quality", "quality,share")
SHARES = {"x": "3", "y": "1"}


def weighted(tmp_path: Path, rows: list[str], **options: object) -> ScoredTable:
    return scored(tmp_path, rows, WEIGHTED, columns=ColumnNames(weight="share"), **options)


def test_weights_are_those_of_the_requests(tmp_path: Path) -> None:
    # Rows of a model that is not in use may say anything.
    rows = [*(f"{row},{SHARES[row[0]]}" for row in [GOOD[3], GOOD[0], GOOD[2], GOOD[1]]), "x,huge,1,1,1,1,-7"]
    requests = read_scored_requests(weighted(tmp_path, rows))
    assert requests.request_ids.tolist() == ["y", "x"]
    assert requests.weight.tolist() == [0.5, 1.5]
    assert requests.effective_size == pytest.approx(1.6)
    unweighted = read_scored_requests(scored(tmp_path, rows, WEIGHTED))
    assert unweighted.weight.tolist() == [1, 1]
    assert unweighted.content_hash() != requests.content_hash()


def test_a_request_of_weight_zero_counts_for_nothing(tmp_path: Path) -> None:
    rows = [f"{row},{0 if row[0] == 'x' else 2}" for row in GOOD]
    assert read_scored_requests(weighted(tmp_path, rows)).weight.tolist() == [0, 2]
    rows = [f"{row},0" for row in GOOD]
    with pytest.raises(InputError, match=r"share is 0 for every request in .*; give at least one a positive weight"):
        read_scored_requests(weighted(tmp_path, rows))


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ("-3", "share in row 1 of .* is -3; it must be a number, not negative"),
        ("inf", "share in row 1 of .* is inf; it must be a number, not negative"),
        ("", "request 'x' has no share for model 'small' in .*drop_incomplete: true"),
        ("4", "share of request 'x' is 4 in row 1 of .* and 3 in row 3; give all rows of a request one weight"),
        ("much", "share in row 1 of .* is 'much'; it must be a number"),
    ],
)
def test_bad_weights_are_named(tmp_path: Path, first: str, says: str) -> None:
    rows = [f"{GOOD[0]},{first}", *(f"{row},{SHARES[row[0]]}" for row in GOOD[1:])]
    with pytest.raises(InputError, match=says) as caught:
        read_scored_requests(weighted(tmp_path, rows))
    assert "\n" not in str(caught.value)


def test_a_column_of_weights_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no column 'share' .* map it under workload.columns"):
        read_scored_requests(scored(tmp_path, GOOD, columns=ColumnNames(weight="share")))


def trace(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(content, encoding="utf-8")
    return path


def test_trace_with_and_without_lengths(tmp_path: Path) -> None:
    only_times = read_trace(trace(tmp_path, "arrival_s\n1\n\n2.5\n"), ColumnNames())
    assert only_times.times_s.tolist() == [1, 2.5]
    assert only_times.input_tokens is None
    path = trace(tmp_path, "t,input_tokens,out\n1,5,6\n1,7,8\n")
    both = read_trace(path, ColumnNames(arrival_s="t", trace_output_tokens="out"))
    assert both.input_tokens is not None
    assert both.output_tokens is not None
    assert (both.input_tokens.tolist(), both.output_tokens.tolist()) == ([5, 7], [6, 8])


def test_requests_of_no_length_are_dropped_and_counted(tmp_path: Path) -> None:
    path = trace(tmp_path, "arrival_s,input_tokens,output_tokens\n1,5,6\n2,0,8\n3,5,0\n4,1,1\n")
    with pytest.warns(CascadiaWarning, match="2 of 4 rows of .* have zero input or output tokens"):
        assert read_trace(path, ColumnNames()).times_s.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("arrival_s\n1\n3\n2\n", "arrival_s in row 3 of .* is 2, before the 3 of the row above; sort"),
        ("arrival_s\n1\nnan\n", "arrival_s in row 2 of .* is nan"),
        ("arrival_s\n1\ninf\n", "arrival_s in row 2 of .* is inf"),
        ("arrival_s,input_tokens\n1,5\n2,-5\n", "input_tokens in row 2 of .* is -5"),
        ("arrival_s,output_tokens\n1,5\n2,\n", "output_tokens in row 2 of .* is nan"),
        ("time,input_tokens\n1,5\n", "no column 'arrival_s'"),
    ],
)
def test_bad_traces_are_named(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_trace(trace(tmp_path, content), ColumnNames())


def test_trace_lengths_keep_qualities(tmp_path: Path) -> None:
    requests = read_scored_requests(scored(tmp_path, GOOD))
    lengths = np.arange(1.0, 6.0)
    long_trace = Trace(np.arange(5.0), lengths, lengths * 10)
    given = with_trace_lengths(requests, long_trace, tmp_path)
    assert given.size == 6
    assert given.quality.mean(axis=1) == pytest.approx(requests.quality.mean(axis=1))
    assert given.effective_size == pytest.approx(requests.size)
    assert set(given.input_tokens[0]) == set(lengths)
    assert np.array_equal(given.output_tokens, given.input_tokens * 10)
    assert np.array_equal(given.input_tokens[0], given.input_tokens[1])
    short = with_trace_lengths(requests, Trace(np.arange(1.0), lengths[:1], lengths[:1]), tmp_path)
    assert (short.size, set(short.input_tokens.ravel())) == (2, {1.0})
    with pytest.raises(InputError, match=r"lengths is 'trace', but .* has no columns"):
        with_trace_lengths(requests, Trace(np.arange(5.0), None, None), tmp_path)
