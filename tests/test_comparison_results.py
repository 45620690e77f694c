"""What the trials say together: means over seeds, ratios to ours, bounds, savings, tables and text."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import orjson
import pytest
import scipy.stats
from comparison_cases import ALTERNATING, HOPELESS, OURS, PlainSystem, best, example, setup

from cascadia_fast.comparison.cells import Cell, cells_of, key_of
from cascadia_fast.comparison.costs import savings
from cascadia_fast.comparison.estimates import Mean, log_mean_of, mean_of
from cascadia_fast.comparison.groups import Group, groups_of
from cascadia_fast.comparison.measuring import SCALES
from cascadia_fast.comparison.ratios import against_ours, headline
from cascadia_fast.comparison.results import results_of
from cascadia_fast.comparison.setup import CaseSetup, Setup
from cascadia_fast.comparison.tables import cells_csv
from cascadia_fast.comparison.text import blocks_of, printable
from cascadia_fast.summary_blocks import plain
from cascadia_fast.summary_layout import Table

SINGLE = PlainSystem("single", best)
ROUTER = PlainSystem("router", best)


def row(
    scale: float | None = 2.0, status: str = "served", quality: float = 80.0, gpus: int = 32, **figures: Any
) -> dict[str, Any]:
    """A trial's row; latencies in seconds are ten times the scale."""
    seconds = None if scale is None else 10 * scale
    return {
        "status": status,
        "why": None if status == "served" else "because",
        "plan": {
            "plan_id": "0123456789abcdef",
            "seconds": 0.02,
            "status": "optimal",
            "routing": "accept at 87",
            "assumes": None,
            "batching": "chunked",
            "gpus": gpus,
            "predicted_quality": quality,
            "predicted_p95_s": seconds,
            "stages": [{"model": "llama-3.1-8b", "gpus": gpus, "replicas": "4 × tp8", "planned_reach": 1.0}],
        },
        "measured": {
            "quality": quality,
            "quality_low": quality - 5,
            "quality_high": quality + 5,
            "p50_s": seconds,
            "p95_s": seconds,
            "ttft_p95_s": seconds,
            "scale95": scale,
            "attainment": [0.5] * len(SCALES),
            "offered_per_s": 30.0,
            "throughput_per_s": 30.0,
            "reach": [1.0, 0.25, 0.0],
            "usd_per_hour": 2.0 * gpus,
            "usd_per_1000": 0.5,
            "judge_calls": 1.0,
            "short": False,
            **figures,
        },
        "seconds": 0.05,
    }


def assuming(found: dict[str, Any], what: str) -> dict[str, Any]:
    return {**found, "plan": {**found["plan"], "assumes": what}}


NO_PLAN = {"status": "no_plan", "why": "it fits nowhere", "plan": None, "measured": None, "seconds": 0.001}


def group(system: str, *rows: dict[str, Any], q_min: float = 80.0, gpus: int = 32) -> Group:
    return Group("example", system, q_min, 30.0, gpus, dict(enumerate(rows)))


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 1.0, 4.0, 1.0, 5.0], [2.0] * 4])
def test_means_have_intervals_by_student_t(values: list[float]) -> None:
    found = mean_of(values)
    assert found is not None
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), max(scipy.stats.sem(values), 1e-300))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    logs = log_mean_of(values)
    assert logs is not None
    plain_logs = mean_of([math.log(value) for value in values])
    assert plain_logs is not None
    assert logs.mean == pytest.approx(float(scipy.stats.gmean(values)))
    assert logs.low == pytest.approx(math.exp(plain_logs.low or 0))
    assert logs.high == pytest.approx(math.exp(plain_logs.high or 0))


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    assert mean_of([3.0]) == Mean(3.0, None, None)
    assert log_mean_of([3.0]) == Mean(pytest.approx(3.0), None, None)
    assert mean_of([]) is log_mean_of([]) is None


def test_two_seeds_far_apart_leave_no_infinity() -> None:
    found = log_mean_of([1e-90, 1e90])
    assert found is not None
    assert found.high is None
    assert found.low is not None
    assert math.isfinite(found.low)


def test_groups_gather_seeds() -> None:
    cells = [Cell("example", system, 80.0, 30.0, 32, seed) for seed in range(2) for system in ("ours", "single")]
    found = groups_of((cell, row(1.0 + cell.seed)) for cell in cells)
    assert [(one.system, sorted(one.rows)) for one in found] == [("ours", [0, 1]), ("single", [0, 1])]
    figure = found[0].figure("scale95")
    assert figure is not None
    assert figure.mean == pytest.approx(math.sqrt(2))


def test_the_worst_seed_tells_the_status() -> None:
    assert group("a", row(), row()).status == "served"
    assert group("a", row(), row(9.0, "unstable")).status == "unstable"
    assert group("a", row(), row(9.0, "unstable"), NO_PLAN).status == "no_plan"
    assert group("a", row(), NO_PLAN, NO_PLAN).statuses == {"served": 1, "no_plan": 2}


def test_an_overload_is_a_lower_bound_and_says_why() -> None:
    found = group("a", row(), row(9.0, "unstable")).as_dict(["llama-3.1-8b"])
    assert found["lower_bound"] is True
    assert found["why"] == "because"
    assert found["scale95"]["mean"] == pytest.approx(math.sqrt(18))


def test_what_is_not_known_of_one_seed_is_not_known_of_all() -> None:
    found = group("a", row(), row(None)).as_dict(["llama-3.1-8b"])
    assert found["scale95"] == found["p95_s"] == {"mean": None, "low": None, "high": None}
    assert found["quality"]["mean"] == 80.0


def test_a_group_without_any_plan_has_no_figures() -> None:
    found = group("a", NO_PLAN, NO_PLAN).as_dict(["llama-3.1-8b"])
    assert found["status"] == "no_plan"
    assert found["meets"] is found["reach"] is found["gpus_by_model"] is found["attainment"] is None
    assert found["plan_seconds"] is None


@pytest.mark.parametrize(
    ("qualities", "meets"),
    [
        ((80.0, 80.2, 80.1), "yes"),
        ((79.0, 80.5, 79.9), "unsure"),
        ((77.0, 77.1, 77.0), "unsure"),  # seeds agree, and the requests behind them leave 5 / sqrt(1.75) open
        ((76.0, 76.1, 76.0), "no"),
        ((70.0, 70.5, 90.2), "unsure"),  # seeds do not
        ((75.5,), "unsure"),  # of one seed, by the interval of its own requests
        ((74.9,), "no"),
    ],
)
def test_meeting_the_floor(qualities: tuple[float, ...], meets: str) -> None:
    assert group("a", *(row(quality=quality) for quality in qualities)).meets == meets


def test_seeds_cannot_be_surer_of_quality_than_the_requests_behind_them() -> None:
    found = group("a", *(row(quality=80.0) for _ in range(5))).quality
    assert found is not None
    assert found.high is not None
    # Five halves hold 31/32 of the requests between them, each of them half.
    assert found.high - 80 == pytest.approx(5 * math.sqrt((1 / 2) / (31 / 32)))


def test_ratios_are_paired_by_seed() -> None:
    """Seeds differ by a factor of ten, and the ratio hardly at all: only pairing sees that."""
    ours = group("ours", *(row(scale) for scale in (1.0, 10.0, 100.0)))
    theirs = group("single", *(row(scale) for scale in (2.0, 20.2, 199.0)))
    (pair,) = against_ours([ours, theirs])
    ratio = pair.ratio("scale95")
    assert ratio is not None
    assert ratio.mean == pytest.approx(2.0, rel=0.01)
    assert ratio.low is not None
    assert ratio.high is not None
    assert 1.9 < ratio.low < 2.0 < ratio.high < 2.1
    assert pair.as_dict()["bound"] == "exact"


@pytest.mark.parametrize(
    ("theirs", "ours", "bound"),
    [
        (row(), row(), "exact"),
        (row(status="unstable"), row(), "at_least"),
        (row(), row(status="unstable"), "at_most"),
        (row(status="unstable"), row(status="unstable"), None),
        (NO_PLAN, row(), None),
        (row(), NO_PLAN, None),
    ],
)
def test_an_overload_bounds_the_ratio(theirs: dict[str, Any], ours: dict[str, Any], bound: str | None) -> None:
    (pair,) = against_ours([group("ours", ours), group("single", theirs)])
    found = pair.as_dict()
    assert found["bound"] == bound
    assert (found["scale95_over_ours"]["mean"] is None) == (bound is None)
    assert found["on_equal_terms"] == (bound == "exact")


@pytest.mark.parametrize(
    ("theirs", "ours", "equal"), [(90, 85, True), (79.7, 85, True), (79, 85, False), (79, 79, True)]
)
def test_terms_are_not_equal_where_one_falls_short_of_the_floor_by_more(
    theirs: float, ours: float, equal: bool
) -> None:
    rows = []
    for quality in (theirs, ours):
        one = row()
        one["measured"] |= {"quality": quality, "quality_low": quality - 9, "quality_high": quality + 9}
        rows.append(one)
    (pair,) = against_ours([group("ours", rows[1]), group("single", rows[0])])
    assert pair.theirs.meets in ("yes", "unsure")
    assert pair.on_equal_terms == equal


def test_the_headline_keeps_what_speaks_against_ours() -> None:
    rates = (10.0, 20.0, 30.0, 40.0)
    groups = []
    statuses = (("served", "served"), ("unstable", "served"), ("served", "unstable"), ("unstable", "unstable"))
    for rate_per_s, (theirs, ours) in zip(rates, statuses, strict=True):
        for system, scale, status in (("ours", 2.0, ours), ("single", 4.0, theirs)):
            groups.append(Group("example", system, 80.0, rate_per_s, 32, {0: row(scale, status)}))
    (line,) = headline(list(against_ours(groups)), ["single"])
    one = {"geomean": pytest.approx(2.0), "least": 2.0, "largest": 2.0, "count": 1}
    assert line["where_both_serve"]["scale"] == line["where_both_meet"]["scale"] == one
    assert line["where_both_serve"]["quality_gap"] == 0.0
    assert line["served"] == {"both": 1, "only_ours": 1, "only_theirs": 1, "neither": 1}


def test_where_one_misses_the_floor_terms_are_not_equal() -> None:
    pairs = list(against_ours([group("ours", row(quality=60.0)), group("single", row(4.0))]))
    (line,) = headline(pairs, ["single"])
    assert line["where_both_serve"]["scale"]["count"] == 1
    assert line["where_both_serve"]["quality_gap"] == pytest.approx(20.0)
    assert line["where_both_meet"]["scale"] == {"geomean": None, "least": None, "largest": None, "count": 0}
    assert line["where_both_meet"]["quality_gap"] is None
    assert pairs[0].quality_gap == pytest.approx(20.0)


def ladder(system: str, *steps: tuple[int, dict[str, Any]]) -> list[Group]:
    """A system on all 32 GPUs first, and then on fewer."""
    return [group(system, found, gpus=gpus) for gpus, found in steps]


def saving(theirs: list[Group], ours: list[Group]) -> dict[str, Any]:
    compared = setup(OURS, SINGLE, floors=(80.0,))
    (found,) = savings(compared, [ours[0], theirs[0]], [*ours[1:], *theirs[1:]])
    return found


def on(*steps: tuple[int, float], **figures: Any) -> list[tuple[int, dict[str, Any]]]:
    """Rows by GPUs and scale."""
    return [(gpus, row(scale, gpus=gpus, **figures)) for gpus, scale in steps]


def test_a_saving_is_that_of_the_fewest_gpus_on_either_side() -> None:
    ours = ladder("ours", *on((32, 1.0), (24, 1.5), (16, 2.5)))
    found = saving(ladder("single", *on((32, 2.0), (28, 2.5))), ours)
    assert (found["gpus_ours"], found["gpus_system"]) == (24, 32)
    assert found["saving"] == pytest.approx(0.25)
    assert (found["usd_ours"], found["usd_system"]) == (48.0, 64.0)
    # What the other does not need itself is no saving of ours.
    idle = saving(ladder("single", *on((32, 2.0), (28, 2.0), (24, 2.01), (16, 3.0))), ours)
    assert (idle["gpus_ours"], idle["gpus_system"], idle["saving"]) == (24, 24, 0.0)


def test_scales_that_differ_by_rounding_are_equal() -> None:
    same = on((32, 3.0540967011741995), (24, 9.0))
    found = saving(ladder("single", *same), ladder("ours", *on((32, 3.0540967011742115), (24, 9.0))))
    assert (found["gpus_ours"], found["saving"]) == (32, 0.0)


def test_where_ours_is_never_fast_enough_nothing_is_saved() -> None:
    found = saving(ladder("single", *on((32, 2.0), (24, 9.0))), ladder("ours", *on((32, 3.0), (24, 4.0))))
    assert found["gpus_ours"] is found["saving"] is None


def test_nothing_is_saved_against_an_overload_or_by_one() -> None:
    ours = ladder("ours", *on((32, 1.0), (24, 1.5)))
    assert saving(ladder("single", *on((32, 99.0), (24, 99.0), status="unstable")), ours)["saving"] is None
    assert saving(ladder("single", (32, NO_PLAN), (24, NO_PLAN)), ours)["saving"] is None
    overloaded = [*ours[:1], *ladder("ours", *on((24, 1.5), status="unstable"))]
    assert saving(ladder("single", *on((32, 2.0), (24, 9.0))), overloaded)["gpus_ours"] == 32


def test_what_misses_the_floor_saves_nothing() -> None:
    """By the means themselves: two seeds' intervals hold any floor."""
    theirs = on((32, 2.0), (24, 9.0))
    ours = [group("ours", row(1.0), row(1.0)), group("ours", *(row(1.0, quality=79.0, gpus=16),) * 2, gpus=16)]
    single = [group("single", found, found, gpus=gpus) for gpus, found in theirs]
    assert saving(single, ours)["gpus_ours"] == 32
    near = [ours[0], group("ours", *(row(1.0, quality=79.6, gpus=16),) * 2, gpus=16)]
    assert saving(single, near)["gpus_ours"] == 16
    missing = [group("single", *(row(2.0, quality=60.0),) * 2), single[1]]
    assert saving(missing, ours)["gpus_ours"] == 16


def test_without_prices_gpus_stand_for_costs() -> None:
    unpriced = {"usd_per_hour": None, "usd_per_1000": None}
    found = saving(
        ladder("single", *on((32, 2.0), (16, 9.0), **unpriced)), ladder("ours", *on((32, 1.0), (8, 1.0), **unpriced))
    )
    assert found["saving"] == pytest.approx(0.75)
    assert found["usd_ours"] is None


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    compared = setup(OURS, SINGLE, ROUTER, HOPELESS, ALTERNATING, floors=(80.0, 85.0), rates_per_s=(15.0, 30.0))
    cells = cells_of(compared)
    keys = {cell: key_of(cell, "digest", 2000) for cell in cells}
    kinds = {
        "ours": lambda cell: row(2.0 + 0.1 * cell.seed, gpus=cell.gpus),
        "single": lambda cell: row(5.0 + 0.3 * cell.seed, "unstable" if cell.rate_per_s > 30 else "served"),
        "router": lambda cell: assuming(row(1.5, "served", quality=70.0), "its router knows"),
        "hopeless": lambda cell: dict(NO_PLAN),
        "alternating": lambda cell: row(2.2, "unstable" if cell.q_min > 80 else "served"),
    }
    rows = {keys[cell]: kinds[cell.system](cell) for cell in cells}
    made_by = {"version": "0", "command": "cascadia-fast compare", "date": "today", "seconds": 1.0, "cores": 2}
    return results_of(compared, cells, keys, rows, made_by)


def test_results_are_strict_json(results: dict[str, Any]) -> None:
    text = orjson.dumps(results)
    assert orjson.loads(text) == results  # a NaN would come back as null


def test_results_hold_every_part(results: dict[str, Any]) -> None:
    assert len(results["groups"]) == 5 * 2 * 2
    assert len(results["ratios"]) == 4 * 2 * 2
    assert [line["system"] for line in results["headline"]] == ["single", "router", "hopeless", "alternating"]
    assert {saved["system"] for saved in results["savings"]} == {"single", "router", "hopeless"}
    assert {line["system"]: line["assumes"] for line in results["headline"]} == {
        "single": None, "router": "its router knows", "hopeless": None, "alternating": None,
    }  # fmt: skip
    curve = next(one for one in results["curves"] if (one["system"], one["q_min"]) == ("single", 80.0))
    assert [point["rate_per_s"] for point in curve["points"]] == sorted(
        {15.0, 30.0, *(factor * 15 for factor in (0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 2.5))}
    )
    assert curve["points"][-1]["scale95"] is None
    assert curve["points"][-1]["at_least"] == pytest.approx(5.0)
    assert results["cases"][0]["title"].startswith("llama-3.1-8b → ")
    assert results["settings"]["scales"] == list(SCALES)
    assert results["notes"] == []


def test_csv_has_a_line_per_cell(results: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO(cells_csv(results).decode())))
    assert len(lines) == len(results["cells"])
    assert None not in lines[0]
    served = next(line for line in lines if line["system"] == "ours")
    assert (served["scale95"], served["plan_routing"]) == ("2.0", "accept at 87")
    assert served["plan_stages"] == "llama-3.1-8b: 32 as 4 × tp8"
    unplanned = next(line for line in lines if line["system"] == "hopeless")
    assert (unplanned["status"], unplanned["why"], unplanned["scale95"]) == ("no_plan", "it fits nowhere", "")


def test_the_text_marks_what_needs_marking(results: dict[str, Any]) -> None:
    figures, against = (block for block in blocks_of(results) if isinstance(block, Table))
    assert figures.header == ("system", "q 80", "q 80 p95", "q 85", "q 85 p95")
    by_system = {cells[0]: cells[1:] for cells in figures.rows}
    assert by_system["ours"] == ("2.05", "20.5 s", "2.05 !", "20.5 s !")
    assert by_system["router"][:2] == ("1.5 !", "15 s !")
    assert by_system["hopeless"] == ("no plan",) * 4
    assert by_system["alternating"][2:] == ("> 2.2 !", "> 22 s !")
    assert against.header == ("system", "keeps up", "scale vs ours", "p95 vs ours", "ours saves")
    by_system = {cells[0]: cells[1:] for cells in against.rows}
    assert by_system["ours"] == ("4/4", "", "", "")
    assert by_system["hopeless"] == ("0/4", "–", "–", "–")
    assert by_system["alternating"] == ("2/4", "1.07 ×", "1.07 ×", "–")
    assert by_system["single"][-1] == "75 % (2/2)"
    assert "No plan of hopeless: it fits nowhere" in blocks_of(results)
    assert (
        "A system meets a deadline 1.37 times tighter than ours where both keep up (4 settings). Assumed of it: its "
        "router knows."
    ) in blocks_of(results)
    lines = plain(blocks_of(results), 80).splitlines()
    assert max(map(len, lines)) <= 80
    for name in ("ours", "single", "router", "hopeless", "alternating"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 2  # names are whole on a common terminal


def test_of_many_floors_the_text_has_scales_only(results: dict[str, Any]) -> None:
    cases = [{**results["cases"][0], "q": [80.0, 85.0, 80.0]}]
    table = next(block for block in blocks_of({**results, "cases": cases}) if isinstance(block, Table))
    assert table.header == ("system", "q 80", "q 85", "q 80")


def test_systems_of_one_assumption_share_its_sentence(results: dict[str, Any]) -> None:
    router = next(line for line in results["headline"] if line["system"] == "router")
    headline = [router, {**router, "system": "single"}]
    (said,) = [block for block in blocks_of({**results, "headline": headline}) if "Assumed of" in str(block)]
    assert said.count("meets a deadline 1.37 times tighter") == 2
    assert said.endswith("Assumed of them: its router knows.")


def test_what_binds_ours_alone_is_told() -> None:
    bound = example().replace(q_confidence=0.9, skip_models=False, models={"llama-3.1-8b": {"min_replicas": 2}})
    case = CaseSetup.of("bound", bound, floors=(80.0,), rates_per_s=(30.0,))
    compared = Setup(cases=(case,), systems=(OURS,), seeds=(0,))  # type: ignore[arg-type]
    cells = cells_of(compared)
    keys = {cell: key_of(cell, "digest", 2000) for cell in cells}
    (note,) = results_of(compared, cells, keys, {keys[cell]: row() for cell in cells}, {})["notes"]
    assert note.startswith(
        "Kept on bound, and binding ours and what is planned like it alone: q_confidence: 0.9, skip_"
    )
    assert "min_replicas of llama-3.1-8b" in note


def test_short_trials_are_told(results: dict[str, Any]) -> None:
    compared = setup(OURS, floors=(80.0,))
    cells = cells_of(compared)
    keys = {cell: key_of(cell, "digest", 2000) for cell in cells}
    rows = {keys[cell]: row(short=cell.seed == 0) for cell in cells}
    (note,) = results_of(compared, cells, keys, rows, {})["notes"]
    assert f"of {len(cells)} trials that keep up are short" in note
    # 20 s at 30 per second, which has to be a fifth of the run.
    assert note.endswith("--requests 3,000 would do")
    rows = {key: row(None, short=True) for key in rows}
    (note,) = results_of(compared, cells, keys, rows, {})["notes"]
    assert note.endswith("give more --requests")


def test_what_is_left_out_of_a_goal_is_told() -> None:
    bound = example().replace(budget_usd_per_hour=200.0, survive="replica", mixed_shapes=True)
    case = CaseSetup.of("bound", bound, floors=(80.0,), rates_per_s=(30.0,))
    compared = Setup(cases=(case,), systems=(OURS,), seeds=(0,))  # type: ignore[arg-type]
    cells = cells_of(compared)
    keys = {cell: key_of(cell, "digest", 2000) for cell in cells}
    found = results_of(compared, cells, keys, {keys[cell]: row() for cell in cells}, {})
    (note,) = found["notes"]
    assert note.startswith(
        "Left out of the goal of bound: budget_usd_per_hour: 200.0, survive: replica, mixed_shapes: true; other systems"
    )
    assert found["cases"][0]["objective"] == "end_to_end_p95"
    priced = example().replace(judge_usd_per_call=0.001)
    compared = Setup(cases=(CaseSetup.of("priced", priced),), systems=(OURS,), seeds=(0,))  # type: ignore[arg-type]
    assert results_of(compared, {}, {}, {}, {})["cases"][0]["judge"].endswith("per call, 0.001 USD per call")


def test_names_cannot_steer_a_terminal() -> None:
    assert printable("Fälle-日本") == "Fälle-日本"
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
