"""The page of a comparison: its numbers and sentences against the results, its pictures, and names that mean harm."""

from __future__ import annotations

import copy
import math
import re
from html.parser import HTMLParser
from statistics import geometric_mean
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import MODELS, SYSTEMS, results

import cascadia_fast as cf
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.report import report_html
from cascadia_fast.report.ablations import ablations
from cascadia_fast.report.about import system_pages
from cascadia_fast.report.figure import Line, panel, times_scale
from cascadia_fast.report.headline import details, lead
from cascadia_fast.report.marks import Mark, boxes, marks_of, style
from cascadia_fast.report.results import Results, read_results
from cascadia_fast.report.standing import standing
from cascadia_fast.report.throughput import rate_gain

HARMFUL = ("</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "模型 🚀 א&amp;", "</style><b>")
FULL = results()
# A single case at a single floor and rate with one seed: no interval anywhere.
SMALL = results(SYSTEMS[:3], ("example",), floors=(80.0,), rates=(1.0,), seeds=1)
HOPELESS = results(
    [(name, title, kind, 9.0, -6.0) for name, title, kind, _, _ in SYSTEMS[:4]],
    ("hopeless",),
    floors=(70.0, 80.0),
    rates=(1.0, 2.0),
    seeds=2,
)
WITHOUT_OURS = results(SYSTEMS[1:5], ("a",), floors=(80.0,), rates=(1.0,), seeds=2)
ABLATIONS = results([SYSTEMS[0], *SYSTEMS[9:]], ("a",), floors=(80.0, 84.0), rates=(1.0,), seeds=2)
LARGE = results(
    [(f"s{k}", f"{HARMFUL[k % 4]} {k}", "baseline" if k else "ours", 1 + k / 9, 3 - k / 3) for k in range(20)],
    (HARMFUL[0],),
    models=[f"{HARMFUL[k % 4]} {k}" for k in range(16)],
    floors=(70.0, 84.5),
    rates=(0.5, 2.0),
    seeds=1,
    priced=False,
)
ALL = pytest.mark.parametrize(
    "made",
    [FULL, SMALL, HOPELESS, WITHOUT_OURS, ABLATIONS, LARGE],
    ids=["full", "small", "hopeless", "without-ours", "ablations", "large"],
)


class Reader(HTMLParser):
    """Checks that what is opened is closed, and collects attributes and texts."""

    VOID = frozenset({"meta", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.attributes.append((tag, "", ""))
        if tag not in self.VOID and not tag.endswith("/"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def visible(text: str) -> str:
    said = "".join(data for tag, data in read(text).texts if tag != "style")
    return " ".join(said.split())


def system(read_: Results, name: str) -> Any:
    return next(one for one in read_.systems if one["name"] == name)


@ALL
def test_page_is_well_formed_and_loads_nothing(made: dict[str, Any]) -> None:
    text = report_html(made)
    reader = read(text)
    tags = {tag for tag, _, _ in reader.attributes}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    assert not {name for _, name, _ in reader.attributes} & {"src", "srcset", "action", "data", "onerror"}
    assert not re.search(r"@import|url\(|https?://", text)
    assert "default-src 'none'" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) > 3
    for picture in pictures:
        ElementTree.fromstring(picture)
    said = re.sub(r"(worse|better) in none|none is served|in none of", "", visible(text).lower())
    assert not re.search(r"\b(nan|inf|none|null)\b", said)
    identifiers = [value for _, name, value in reader.attributes if name == "id"]
    assert len(set(identifiers)) == len(identifiers)
    links = [value for _, name, value in reader.attributes if name == "href"]
    assert {f"#{identifier}" for identifier in identifiers} >= set(links)
    assert len(links) == len(re.findall("<h2", text)) - 1, "the contents name every section but the first"


@ALL
def test_pictures_stay_inside_their_frames(made: dict[str, Any]) -> None:
    for picture in re.findall(r"<svg.*?</svg>", report_html(made), re.DOTALL):
        root = ElementTree.fromstring(picture)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for path in root.iter("path"):
            for across, up in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"]):
                assert -1 <= float(across) <= width + 1
                assert -1 <= float(up) <= height + 1


def test_equal_results_give_equal_pages_and_are_not_changed() -> None:
    before = copy.deepcopy(FULL)
    assert report_html(FULL) == report_html(before)
    assert before == FULL


def test_page_of_a_large_comparison_stays_small() -> None:
    assert len(FULL["systems"]) == 14
    assert len(FULL["groups"]) == 14 * 3 * 4 * 3
    assert len(report_html(FULL).encode()) < 1_500_000


@pytest.mark.parametrize("name", HARMFUL)
def test_names_are_text_whatever_they_hold(name: str) -> None:
    systems = [("ours", name, "ours", 1.0, 3.0), ("other", f"{name} 2", "baseline", 1.5, -1.0)]
    made = results(systems, (name,), models=[name, f"{name} 2"], floors=(70.0,), rates=(1.0,), seeds=2)
    made["systems"][0] |= {"page": f"{name}\n\n* {name}", "source": name}
    made["cases"][0] |= {"title": name, "reference": name, "judge": name}
    made["notes"] = [name]
    made["settings"]["method"] = [name]
    made["made_by"]["command"] = name
    made["groups"][0]["why"] = name
    text = report_html(made)
    assert {"script", "img"}.isdisjoint(tag for tag, _, _ in read(text).attributes)
    assert visible(text).count(" ".join(name.split())) > 15


def test_table_of_scales_says_what_was_found() -> None:
    table = re.search(r'<table class="scales">.*?</table>', report_html(FULL), re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr.*?</tr>", table[0], re.DOTALL)
    case = FULL["cases"][0]
    assert len(rows) == 1 + len(FULL["systems"])
    for found, row in zip(FULL["systems"], rows[1:], strict=True):
        cells = re.findall(r"<td.*?</td>", row, re.DOTALL)
        for q_min, cell in zip(case["q"], cells, strict=True):
            group = one_group(FULL, case["name"], found["name"], q_min, case["middle_rate"])
            if group["status"] == "no_plan":
                assert "no plan" in cell
                continue
            shown = float(re.search(r">(?:&gt; )?([\d.,]+) ", cell)[1].replace(",", ""))  # type: ignore[index]
            assert shown == pytest.approx(group["scale95"]["mean"], rel=0.006)
            assert ("▲" in cell) == (group["status"] == "unstable")
            assert {"yes": "✓", "no": "✗", "unsure": "?"}[group["meets"]] in cell


def one_group(made: dict[str, Any], case: str, name: str, q_min: float, rate: float) -> Any:
    found = [
        group
        for group in made["groups"]
        if (group["case"], group["system"], group["q_min"], group["rate_per_s"]) == (case, name, q_min, rate)
    ]
    assert len(found) == 1
    return found[0]


def test_shaded_is_the_tightest_that_is_served_and_does_not_miss_the_floor() -> None:
    text = report_html(FULL)
    shaded = [float(value) for value in re.findall(r'<td class="best"[^>]*>([\d.]+) ', text)]
    best = []
    for case in FULL["cases"]:
        middle_first = sorted(case["rates"], key=lambda rate: rate != case["middle_rate"])
        for rate in middle_first:
            for q_min in case["q"]:
                groups = [one_group(FULL, case["name"], one["name"], q_min, rate) for one in FULL["systems"]]
                fit = [g["scale95"]["mean"] for g in groups if g["status"] == "served" and g["meets"] != "no"]
                best.append(min(fit))
    # Rows come system by system, so the order within a table differs.
    assert sorted(shaded) == pytest.approx(sorted(best), rel=0.006)


def test_overload_is_not_the_best_even_where_its_bound_is_low() -> None:
    made = copy.deepcopy(SMALL)
    made["groups"][1] |= {"status": "unstable", "statuses": {"unstable": 1}}
    made["groups"][1]["scale95"]["mean"] = 0.01
    text = report_html(made)
    assert "&gt; 0.0100 ▲" in text
    assert re.findall(r'<td class="best"[^>]*>([\d.]+) ', text) == [f"{made['groups'][0]['scale95']['mean']:.2f}"]
    assert "In 1 of 1 setting " in visible(text)


def test_overload_and_a_missed_floor_are_never_the_best() -> None:
    assert 'class="best"' not in report_html(HOPELESS)
    text = visible(report_html(HOPELESS))
    assert "In 0 of 4 settings" in text
    assert "in 4 no system does both" in text
    assert "Of 4 settings, ours misses the floor in 4 and cannot carry the rate in 4." in text
    assert text.count("in no setting are both served") == 3


def test_missing_plans_say_why() -> None:
    text = visible(report_html(FULL))
    why = "deepseek-r1 needs 8 GPUs of 80 GB; give --gpus 40 or more"
    assert text.count(f"No stage skipping, q 84: {why}") == len(FULL["cases"])


def test_count_of_wins_is_that_of_the_groups() -> None:
    wins: dict[str, int] = {}
    names = [one["name"] for one in FULL["systems"] if one["kind"] != "ablation"]
    for case in FULL["cases"]:
        for q_min in case["q"]:
            for rate in case["rates"]:
                groups = [one_group(FULL, case["name"], name, q_min, rate) for name in names]
                fit = [g for g in groups if g["status"] == "served" and g["meets"] != "no"]
                best = min(fit, key=lambda group: group["scale95"]["mean"])["system"]
                wins[best] = wins.get(best, 0) + 1
    assert wins.keys() == {"ours", "routellm-ours"}
    text = visible(report_html(FULL))
    assert f"In {wins['ours']} of 36 settings" in text
    assert f"RouteLLM, our allocation (by a signal of assumed accuracy) in {wins['routellm-ours']}" in text


def test_same_plan_found_by_others_is_no_loss_and_is_said() -> None:
    made = copy.deepcopy(FULL)
    for group in made["groups"]:
        if group["system"] == "automix":
            ours = one_group(made, group["case"], "ours", group["q_min"], group["rate_per_s"])
            group |= {name: ours[name] for name in ("scale95", "status", "meets", "statuses")}
    before = re.search(r"In (\d+) of 36 settings", visible(report_html(FULL)))
    after = re.search(r"In (\d+) of 36 settings .*? floor \(always together with another\)", visible(report_html(made)))
    assert before is not None
    assert after is not None
    assert before[1] == after[1] != "0"


def test_near_wins_are_counted() -> None:
    close = 0
    for case in FULL["cases"]:
        for q_min in case["q"]:
            for rate in case["rates"]:
                ours, best = (one_group(FULL, case["name"], name, q_min, rate) for name in ("ours", "routellm-ours"))
                ratio = ours["scale95"]["mean"] / best["scale95"]["mean"]
                close += best["meets"] != "no" and 1 < ratio <= 1.02
    assert close > 0
    assert f", of which ours comes within 2 % in {close}" in visible(report_html(FULL))


@pytest.mark.parametrize("name", [name for name, _, _, _, _ in SYSTEMS[1:]])
def test_standing_counts_both_directions(name: str) -> None:
    read_ = read_results(FULL)
    found = standing(read_, system(read_, name), system(read_, "ours"))
    mine = [ratio for ratio in FULL["ratios"] if ratio["system"] == name]
    equal = [ratio["scale95_over_ours"]["mean"] for ratio in mine if ratio["on_equal_terms"]]
    assert found.settings == len(mine) == 36
    assert len(found.won) == sum(ratio > 1.02 for ratio in equal)
    assert len(found.lost) == sum(ratio < 0.98 for ratio in equal)
    assert found.compared == len(equal)
    assert found.only_ours == sum(ratio["bound"] == "at_least" or ratio["bound"] is None for ratio in mine)
    if found.lost:
        assert found.worst[1] == min(equal)


def made_ratio(times: float, margin: float = 1.0) -> Results:
    systems = [("ours", "Ours", "ours", 1.0, 1.0), ("other", "Other", "baseline", times, margin)]
    return read_results(results(systems, ("a", "b"), floors=(70.0,), rates=(0.5, 1.0), seeds=3))


def test_sentences_say_it_in_both_directions() -> None:
    better, worse, below = made_ratio(2.0), made_ratio(0.5), made_ratio(0.5, -9.0)
    for read_, said in (
        (better, "needs a deadline 2."),
        (better, " times as long as ours (geometric mean of 4 settings, from"),
        (worse, "meets a deadline "),
        (worse, " times tighter than ours (geometric mean of 4 settings, from"),
    ):
        assert said in lead(read_, system(read_, "other"))
    said = details(better, system(better, "other"), system(better, "ours"))
    assert "Ours is better in 4 (4 beyond the noise of the seeds), worse in none." in said
    said = details(worse, system(worse, "other"), system(worse, "ours"))
    assert "Ours is better in 0, worse in 4 (4 beyond the noise of the seeds; at worst 0." in said
    # Faster because it does less: no win of theirs, and said.
    assert lead(below, system(below, "other")).startswith("in no setting are both served on equal terms")
    said = details(below, system(below, "other"), system(below, "ours"))
    assert "misses the floor in 4 (where it is faster than ours in 4)" in said


def test_sentences_take_equal_terms_first_and_then_all_that_are_served() -> None:
    read_ = read_results(FULL)
    line = read_.headline["routellm-ours"]
    equal, both = line["where_both_meet"]["scale"], line["where_both_serve"]["scale"]
    p95, gap = line["where_both_meet"]["p95"], line["where_both_meet"]["quality_gap"]
    assert gap is not None
    assert 0 < equal["count"] < both["count"]
    assert lead(read_, system(read_, "routellm-ours")) == (
        f"meets a deadline {1 / equal['geomean']:.2f} times tighter than ours (geometric mean of {equal['count']} "
        f"settings, from {equal['least']:.3f}× to {equal['largest']:.2f}×), its p95 is {p95['geomean']:.3f}× ours "
        f"and it answers {-gap:.1f} points worse, where both are served on equal terms; "
        f"{both['geomean']:.3f}× over all {both['count']} in which both are served."
    )
    assert "Assumed of it: its router is right with probability 0.65 (AUC)." in details(
        read_, system(read_, "routellm-ours"), system(read_, "ours")
    )
    # Overloads are no ratios; they are counted by themselves.
    found = standing(read_, system(read_, "single"), system(read_, "ours"))
    assert (found.compared, found.only_ours) == (read_.headline["single"]["where_both_serve"]["scale"]["count"], 13)
    assert "cannot serve 13 that ours serves" in details(read_, system(read_, "single"), system(read_, "ours"))


def test_ablations_come_in_order_of_what_they_cost() -> None:
    read_ = read_results(FULL)
    names = ("uniform-parallelism", "uniform-allocation", "common-threshold", "no-skipping", "alternating")
    means = {name: read_.headline[name]["where_both_meet"]["scale"]["geomean"] or 0.0 for name in names}
    in_order = [system(read_, name)["title"] for name in sorted(names, key=lambda name: -means[name])]
    sentence = visible(ablations(read_, marks_of(read_.systems))).split("dearest loss first: ")[1].split(".  ")[0]
    places = [sentence.index(title) for title in in_order]
    assert places == sorted(places)
    assert sentence.startswith(f"{in_order[0]} {max(means.values()):.3g}×")


def test_single_seed_has_no_noise_and_single_setting_no_mean() -> None:
    text = visible(report_html(SMALL))
    assert "beyond the noise of the seeds" not in text
    assert "geometric mean of 1 settings" not in text
    assert "In 1 of 1 setting " in text


@pytest.mark.parametrize("made", [FULL, SMALL, ABLATIONS])
def test_rate_gain_is_that_of_the_simulated_rates(made: dict[str, Any]) -> None:
    read_ = read_results(made)
    for other in read_.systems[1:]:
        gains, none = [], 0
        for case in made["cases"]:
            for q_min in case["q"]:
                groups = [one_group(made, case["name"], n, q_min, case["middle_rate"]) for n in (other["name"], "ours")]
                if "no" in (groups[0]["meets"], groups[1]["meets"]):
                    continue
                # Both of one seed: those of the curves.
                theirs, mine = (
                    {
                        p["rate_per_s"]: p["scale95"]
                        for c in made["curves"]
                        if (c["case"], c["q_min"], c["system"]) == (case["name"], q_min, name)
                        for p in c["points"]
                        if p["scale95"] is not None
                    }
                    for name in (other["name"], "ours")
                )
                if case["middle_rate"] not in theirs:
                    continue
                scale = theirs[case["middle_rate"]] * 1.02
                rates = [rate for rate, own in mine.items() if own <= scale]
                gains += [max(rates) / case["middle_rate"]] if rates else []
                none += not rates
        found = rate_gain(read_, other, read_.systems[0])
        if found is None:
            assert gains == []
            assert none == 0
        else:
            assert (found.count, found.none) == (len(gains), none)
            if gains:
                assert (found.least, found.largest) == (min(gains), max(gains))
                assert found.geomean == pytest.approx(geometric_mean(gains))


def test_savings_are_those_of_the_results() -> None:
    text = visible(report_html(FULL))
    known = [one["saving"] for one in FULL["savings"] if one["system"] == "sarathi" and one["saving"] is not None]
    assert known
    assert f"Sarathi-Serve: ours attains its scale for {100 * sum(known) / len(known):.2g} % less" in text
    assert "RouteLLM, our allocation: ours does not attain its scale in 12." in text
    assert "USD/h" in text
    assert "USD/h" not in visible(report_html(LARGE))


def test_bars_are_as_long_as_their_numbers() -> None:
    text = report_html(FULL)
    bars = re.findall(r'<div class="bar idle" role="img" aria-label="(.*?)">(.*?)</div>', text)
    assert len(bars) >= 14 * 3 * 4
    for label, segments in bars:
        counts = [float(count) for count in re.findall(r": ([\d.]+)", label)]
        widths = [float(width) for width in re.findall(r"width:([\d.]+)%", segments)]
        assert widths == pytest.approx([100 * count / 32 for count in counts if count], abs=0.06)
        for width, shown in re.findall(r"width:([\d.]+)%\">([\d.]*)<", segments):
            assert (shown != "") == (float(width) >= 12)


def test_bars_of_reach_are_as_long_as_the_visits_per_request() -> None:
    text = report_html(FULL)
    bars = re.findall(r'<div class="bar" role="img" aria-label="(.*?)">(.*?)</div>', text)
    assert len(bars) == len(re.findall(r'<div class="bar idle" role', text))
    totals = set()
    for label, segments in bars:
        reach = [float(share) / 100 for share in re.findall(r": ([\d.]+)", label)]
        widths = [float(width) for width in re.findall(r"width:([\d.]+)%", segments)]
        totals.add(round(sum(widths)))
        assert widths == pytest.approx([100 * share / 2.55 for share in reach if share], abs=0.3)
    assert max(totals) == 100


def test_curves_are_drawn_where_their_values_are() -> None:
    figure = re.search(r'<figure class="panel">.*?</figure>', report_html(FULL), re.DOTALL)
    assert figure is not None
    path = re.search(r'class="line s0 ours" d="M(.*?)"', figure[0])
    assert path is not None
    drawn = [tuple(map(float, place.split())) for place in path[1].split("L")]
    case = FULL["cases"][0]
    group = one_group(FULL, case["name"], "ours", case["q"][0], case["middle_rate"])
    shares = [share for scale, share in zip(FULL["settings"]["scales"], group["attainment"], strict=True)]
    last = shares[len(shares) - len(drawn) :] if drawn[0][0] > 1 else shares[: len(drawn)]
    assert [up for _, up in drawn] == pytest.approx([600 * (1 - share) for share in last], abs=0.6)
    assert [across for across, _ in drawn] == sorted(across for across, _ in drawn)


def test_only_settings_in_which_both_are_served_are_dots() -> None:
    rows = re.findall(r'<div class="strip"><svg.*?</svg>', report_html(FULL))
    others = [one["name"] for one in FULL["systems"] if one["kind"] == "baseline"]
    for name, drawn in zip(others, rows, strict=False):
        faint = re.search(r'class="faint [^"]*" d="(.*?)"', drawn)
        assert faint is not None
        exact = [ratio for ratio in FULL["ratios"] if ratio["system"] == name and ratio["bound"] == "exact"]
        assert faint[1].count("M") == len(exact)


def test_quality_lies_on_its_side_of_the_floor() -> None:
    table = re.search(r'<table class="quality">.*?</table>', report_html(FULL), re.DOTALL)
    assert table is not None
    for meets, place in re.findall(r'class="(yes|no|unsure) point" d="M(\d+) ', table[0]):
        assert (int(place) >= 100) if meets == "yes" else (int(place) <= 100)
    assert len(set(re.findall(r'class="(\w+) point"', table[0]))) == 3


def test_systems_that_miss_the_floor_are_marked_in_the_curves() -> None:
    text = report_html(FULL)
    figures = re.findall(r'<figure class="panel">.*?</figure>', text, re.DOTALL)
    assert len(figures) == 3 * 4 * 3 + 3 * 4
    letters = {mark.letter: name for name, mark in marks_of(FULL["systems"]).items()}
    first = figures[0]
    case = FULL["cases"][0]
    for letter, cross in re.findall(r'title="[^"]*">([A-Z]+)(✗?)</b>', first):
        group = one_group(FULL, case["name"], letters[letter], case["q"][0], case["middle_rate"])
        assert (cross == "✗") == (group["meets"] == "no")


MARK = Mark("A system", "A", "s0", True)
SHARES = st.floats(0, 1, allow_nan=False)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=12), SHARES)
def test_a_line_reaches_what_it_is_as_high_as(points: list[tuple[float, float]], height: float) -> None:
    across, up = (sorted(values) for values in zip(*points, strict=True))
    line = Line(MARK, list(zip(across, up, strict=True)), False)
    at = line.reaches(height)
    assert across[0] <= at[0] <= across[-1]
    assert at[1] == pytest.approx(min(max(height, up[0]), up[-1]))
    if len(set(across)) == len(across):
        assert line.height_at(at[0]) == pytest.approx(at[1], abs=1e-6)


@given(st.integers(1, 9), st.data())
def test_letters_stand_on_their_lines_and_apart(count: int, data: st.DataObject) -> None:
    starts = data.draw(st.lists(st.floats(0, 0.5), min_size=count, max_size=count))
    lines = [
        Line(
            Mark(f"S{k}", chr(65 + k), f"s{k}", False),
            [(0.0, 0.0), (start, 0.0), (start + 0.4, 1.0), (1.0, 1.0)],
            False,
        )
        for k, start in enumerate(starts)
    ]
    x, y = times_scale(1.0, 8.0, "times"), times_scale(1.0, 8.0, "times")
    text = panel("a panel", x, y, lines)
    places = [
        (float(a) / 100, float(b) / 100) for a, b in re.findall(r"left:([\d.]+)%;bottom:([\d.]+)%", text)[-count:]
    ]
    assert len(places) == count
    for k, (across, up) in enumerate(places):
        others = places[:k]
        assert all(abs(across - a) >= 0.05 or abs(up - b) >= 0.07 for a, b in others)
        assert any(abs(line.height_at(across) - up) < 0.02 for line in lines)


@given(st.floats(0.01, 100), st.floats(1.01, 1e4))
def test_scales_of_ratios_have_some_ticks_and_place_them_right(low: float, factor: float) -> None:
    scale = times_scale(low, low * factor, "times")
    assert 1 <= len(scale.ticks) <= 8
    for place, text in scale.ticks:
        assert -1e-6 <= place <= 1 + 1e-6
        assert scale.at(float(text.replace(",", ""))) == pytest.approx(place, abs=1e-4)


def test_every_system_has_a_letter_and_a_look_of_its_own() -> None:
    many: Any = [{"name": f"s{k}", "title": "", "kind": "baseline" if k else "ours"} for k in range(60)]
    marks = marks_of(many)
    assert len({mark.letter for mark in marks.values()}) == 60
    looks = re.findall(r"\.s\d+\{(--c.*?)\}", style(many[:21]))
    assert len(looks) == len(set(looks)) == 20
    for box in re.findall(r'id="(show\d+)"', boxes(many, many, marks)):
        assert f"body:has(#{box}:not(:checked)) .plot .s{box.removeprefix('show')}" in style(many)


def test_pages_of_systems_are_paragraphs_and_lists() -> None:
    read_ = read_results(SMALL)
    text = system_pages(read_, marks_of(read_.systems))
    assert text.count("<details") == 3
    assert "<p>It measures the rate every window and switches to the gear of that rate:</p>" in text
    assert "<ul><li>gears are found by sub-problems, with backtracking;</li>" in text
    assert "<li><code>TP</code> is the smallest that fits.</li></ul>" in text


def test_systems_that_share_a_page_are_told_of_once() -> None:
    read_ = read_results(ABLATIONS)
    text = system_pages(read_, marks_of(read_.systems))
    assert text.count("<details") == 2
    assert all(f"<code>{one['name']}</code>" in text for one in ABLATIONS["systems"])


def test_means_of_each_case_are_those_of_its_ratios() -> None:
    text = report_html(FULL)
    table = re.search(r'<table class="ratios">.*?</table>', text, re.DOTALL)
    assert table is not None
    row = next(row for row in re.findall(r"<tr.*?</tr>", table[0]) if "Sarathi" in row)
    shown = re.findall(r"<td>([\d.]+)× <small>of (\d+) settings", row)
    for case, (mean, count) in zip(FULL["cases"], shown, strict=True):
        equal = [
            ratio["scale95_over_ours"]["mean"]
            for ratio in FULL["ratios"]
            if (ratio["case"], ratio["system"]) == (case["name"], "sarathi") and ratio["on_equal_terms"]
        ]
        assert int(count) == len(equal)
        assert float(mean) == pytest.approx(geometric_mean(equal), rel=0.006)
    assert '<table class="ratios">' not in report_html(SMALL)


def test_command_stands_under_every_section_with_numbers() -> None:
    text = report_html(FULL)
    sections = re.split(r"<h2[^>]*>", text)[1:]
    assert len(sections) == 11
    for section in sections:
        assert ("<code>cascadia-fast compare " in section) == (not section.startswith("The systems"))


def test_all_runs_are_there() -> None:
    text = report_html(FULL)
    rows = re.findall(r'<table class="cells">.*?</table>', text, re.DOTALL)
    assert sum(table.count("<tr>") + table.count("<tr ") for table in rows) == 14 * 36 + 12
    values = " ".join(re.findall(r"<td>([\d. ]+)</td>", "".join(rows)))
    # Neither ramps nor fewer GPUs are among them: a value for each seed.
    in_a_row = [cell.split() for cell in re.findall(r"<td>([\d. ]+)</td>", "".join(rows))]
    assert {len(seeds) for seeds in in_a_row} == {1, 5}
    for cell in FULL["cells"][:50]:
        if cell["measured"]:
            assert f"{cell['measured']['quality']:.4g}" in values


def test_models_beyond_the_tones_differ_from_their_neighbours() -> None:
    legends = re.search(r'<div class="legend models">(.*?)</div>', report_html(LARGE), re.DOTALL)
    assert legends is not None
    looks = re.findall(r'<i class="(m\d[^"]*)">', legends[1])
    assert len(looks) == len(set(looks)) == 16


def test_results_of_a_real_comparison_are_drawn() -> None:
    from cascadia_fast.baselines.systems import system_named
    from cascadia_fast.comparison.running import compare
    from cascadia_fast.comparison.setup import CaseSetup, Setup

    problem = cf.Problem.read(EXAMPLE_DIR / "problem.yaml")
    case = CaseSetup.of("example", problem, (70.0,), (30.0,), "problem.yaml")
    systems = tuple(map(system_named, ("ours", "single", "no-skipping")))
    found = compare(Setup((case,), systems, (0,), 400), jobs=1, command="cascadia-fast compare")
    text = visible(report_html(found))
    for one in systems:
        assert one.title in text
    group = one_group(found, "example", "ours", 70.0, case.middle_rate_per_s)
    assert f"{group['scale95']['mean']:.3g}" in text
    assert math.isfinite(group["scale95"]["mean"])
    assert all(model in text for model in found["cases"][0]["models"])
    assert MODELS[0] not in text
