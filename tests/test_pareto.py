"""Fronts: what they refuse, how they are written, and what their text and picture show."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cascadia_fast.blueprint import Pool
from cascadia_fast.errors import InputError
from cascadia_fast.pareto.front import Front, FrontPoint, checked_axes
from cascadia_fast.pareto.picture import HEIGHT, WIDTH, picture_html, write_picture
from cascadia_fast.pareto.scale import scale_of
from cascadia_fast.pareto.text import spread, text_of

POOLS = (Pool("h100", "h100-sxm-80gb", 32, 8, 2.0),)


def point(latency_s: float, quality: float, usd: float | None = 64.0, models: str = "small>large") -> FrontPoint:
    names = tuple(models.split(">"))
    stage_gpus = (8,) * (len(names) - 1) + (32 - 8 * (len(names) - 1),)
    return FrontPoint(latency_s, quality, usd, 32, names, stage_gpus, (math.inf,) * (len(names) - 1))


def front(*points: FrontPoint, axes: tuple[str, ...] = ("latency", "quality"), **changes: Any) -> Front:
    fields: dict[str, Any] = {
        "axes": axes,
        "metric": "end_to_end_p95",
        "points": points or (point(10.0, 60.0, models="small"), point(20.0, 70.0), point(40.0, 75.0)),
        "singles": (point(12.0, 50.0, models="small"), point(45.0, 74.0, models="large")),
        "pools": POOLS,
        "rate_per_s": 1.5,
        "q_min": 0.0,
        "slo_s": None,
        "slo_metric": None,
        "budget_usd_per_hour": None,
        "certificate": "all plans of this grid",
        "complete": True,
        "seconds": 0.25,
    }
    return Front(**{**fields, **changes})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("latency", "qualty"), "a front has no axis 'qualty'; use two or all of latency, quality, cost; did you mean"),
        (("latency", "latency"), "a front has the axis latency twice; give each once"),
        (("latency",), "a front has 1 axis; give two or all of latency, quality, cost"),
        (("",), "a front has no axis ''; use two or all of"),
    ],
)
def test_axes_are_two_or_three_known_ones(axes: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        checked_axes(axes)


def test_a_front_by_cost_needs_prices() -> None:
    assert checked_axes(("cost", "quality", "latency")) == ("cost", "quality", "latency")
    with pytest.raises(InputError, match="a front by cost needs a price for every pool"):
        front(point(1.0, 60.0, None), axes=("quality", "cost"))
    assert front(point(1.0, 60.0, None)).points[0].usd_per_hour is None


def test_json_is_documented_and_has_no_infinity() -> None:
    text = front().to_json()
    document = json.loads(text)
    assert b"Infinity" not in text
    assert document["axes"] == ["latency", "quality"]
    assert document["points"][1] == {
        "latency_s": 20.0,
        "quality": 70.0,
        "usd_per_hour": 64.0,
        "gpus": 32,
        "models": ["small", "large"],
        "stage_gpus": [8, 24],
        "thresholds": ["never"],
    }
    assert document["pools"][0]["gpus"] == 32
    assert front().to_json() == text


def test_files_are_csv_by_their_name_and_else_json(tmp_path: Path) -> None:
    found = front(point(20.0, 70.0, None))
    found.write(tmp_path / "front.csv")
    found.write(tmp_path / "front.json")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "front.csv").read_text()))
    assert row == {
        "latency_s": "20.0",
        "quality": "70.0",
        "usd_per_hour": "",
        "gpus": "32",
        "models": "small > large",
        "stage_gpus": "8 / 24",
        "thresholds": "never",
    }
    assert json.loads((tmp_path / "front.json").read_bytes())["points"][0]["thresholds"] == ["never"]


def many(count: int) -> Front:
    """A front that first rises steeply in quality and then creeps on in latency."""
    steep = [point(1.0 + 0.001 * k, 50.0 + 40.0 * k / count) for k in range(count)]
    flat = [point(2.0 + 98.0 * k / count, 91.0 + 0.001 * k) for k in range(count)]
    return front(*steep, *flat)


@pytest.mark.parametrize("most", [2, 5, 24])
def test_rows_are_spread_along_the_front(most: int) -> None:
    whole = many(400)
    shown = spread(whole, most)
    assert len(shown) == most
    assert (shown[0], shown[-1]) == (whole.points[0], whole.points[-1])
    assert list(shown) == sorted(set(shown), key=whole.points.index)
    if most == 24:
        assert sum(chosen.quality < 91 for chosen in shown) == pytest.approx(12, abs=4)


def test_short_and_flat_fronts_are_shown_whole() -> None:
    assert spread(front(), 24) == front().points
    same = front(*(point(1.0, 60.0) for _ in range(30)))
    assert len(spread(same, 24)) == 24


def test_text_says_what_is_traded_and_within_what() -> None:
    limits: dict[str, Any] = {"q_min": 55.0, "slo_s": 60.0, "slo_metric": "ttft_p95", "budget_usd_per_hour": 90.0}
    text = " ".join(text_of(front(**limits), 200).split())
    for fact in (
        "Front of latency (end-to-end p95) and quality on 32 h100-sxm-80gb at 1.5 requests/s, with quality 55 or more "
        "and p95 of the final answer's first token 60 s or less and 90.00 USD per hour or less: 3 plans that no other",
        "p95 quality USD/h GPUs of each model thresholds models",
        "20.0 s 70 64.00 32 8 / 24 never small > large",
        "Models alone: p95",
        "45.0 s 74 64.00 32 32 large",
        "all plans of this grid; 250 ms",
    ):
        assert fact in text
    assert "are shown" not in text
    stopped = text_of(dataclasses.replace(many(100), complete=False))
    assert "plans are shown; --json and -o have them all" in stopped
    assert "all plans of this grid; the search was stopped at its time limit; 250 ms" in " ".join(stopped.split())
    assert text_of(front(), ascii_only=True).isascii()
    assert max(map(len, text_of(front(), 60).splitlines())) <= 60


@pytest.mark.parametrize(
    ("axis", "values", "unit", "logarithmic", "labels"),
    [
        ("latency", (20.0, 70.0), "s", False, ["20", "40", "60"]),
        ("latency", (1200.0, 4200.0), "min", False, ["20", "40", "60"]),
        ("latency", (0.01, 0.9), "ms", True, ["10", "20", "50", "100", "200", "500", "1,000"]),
        ("latency", (0.1, 1e4), "h", True, ["0.0001", "0.001", "0.01", "0.1", "1"]),
        ("latency", (7.0, 7.0), "s", False, ["4", "6", "8", "10"]),
        ("quality", (70.0, 75.0), "0 to 100", False, ["70", "72", "74"]),
        ("quality", (0.0, 0.0), "0 to 100", False, ["-1", "-0.5", "0", "0.5", "1"]),
        ("cost", (0.0, 10.0), "USD per hour", False, ["0", "5", "10"]),
        ("cost", (10.0, 1000.0), "USD per hour", True, ["10", "20", "50", "100", "200", "500", "1,000"]),
    ],
)
def test_scales_have_round_ticks_in_their_range(
    axis: Any, values: tuple[float, ...], unit: str, logarithmic: bool, labels: list[str]
) -> None:
    scale = scale_of(axis, values)
    assert (scale.unit, scale.logarithmic) == (unit, logarithmic)
    assert [label for _, label in scale.ticks] == labels
    assert all(-1e-9 <= place <= 1 + 1e-9 for place, _ in scale.ticks)
    assert all(0 <= scale.at(value) <= 1 for value in values)
    assert scale.at(scale.low) == pytest.approx(0)
    assert scale.at(scale.high) == pytest.approx(1)


class Page(HTMLParser):
    """Tags that are open, and what the page holds."""

    VOID = ("meta", "path", "i")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.paths: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        if tag == "path":
            self.paths.append(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "path":
            self.paths.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def dots(page: Page, css: str = "dot") -> list[tuple[float, float]]:
    """Places of the dots in a page, (across, down)."""
    found = []
    for path in page.paths:
        if (path["class"] or "").split()[0] == css:
            match = re.fullmatch(r"M([\d.]+) ([\d.]+)h0", path["d"] or "")
            assert match is not None
            found.append((float(match[1]), float(match[2])))
    return found


def test_the_picture_is_sound_and_loads_nothing() -> None:
    text = picture_html(front())
    page = Page(text)
    assert page.open == []
    assert "$" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert picture_html(front()) == text
    assert len(dots(page)) == 3
    assert len(dots(page, "alone")) == 2
    assert all(0 <= across <= WIDTH and 0 <= down <= HEIGHT for across, down in dots(page) + dots(page, "alone"))
    assert [across for across, _ in dots(page)] == sorted(across for across, _ in dots(page))
    assert [down for _, down in dots(page)] == sorted((down for _, down in dots(page)), reverse=True)
    for word in ("mean quality ", "end-to-end p95 ", "large alone", "small > large", "beaten by a plan of the front"):
        assert word in page.words


def test_what_the_front_beats_is_shaded() -> None:
    (shade,) = (path["d"] for path in Page(picture_html(front())).paths if path["class"] == "beaten")
    first, *others = dots(Page(picture_html(front())))
    corners = "".join(f"H{across:.1f}V{down:.1f}" for across, down in others)
    assert shade == f"M{first[0]:.1f} {HEIGHT}V{first[1]:.1f}{corners}H{WIDTH}V{HEIGHT}Z"
    falling = front(point(10.0, 60.0, 90.0), point(20.0, 60.0, 50.0), axes=("latency", "cost"))
    text = picture_html(falling)
    (shade,) = (path["d"] for path in Page(text).paths if path["class"] == "beaten")
    assert shade is not None
    assert shade.endswith(f"H{WIDTH}V0Z")
    # Where quality is not drawn, models alone say theirs: they need not meet the floor.
    assert "small alone, quality 50" in text


def test_three_axes_are_two_pictures_without_shade() -> None:
    three = front(
        point(10.0, 60.0, 90.0), point(20.0, 60.0, 50.0), point(30.0, 70.0, 90.0), axes=("latency", "quality", "cost")
    )
    page = Page(picture_html(three))
    assert len(dots(page)) == 6
    assert not any(path["class"] == "beaten" for path in page.paths)
    assert sum(path["class"] == "steps" for path in page.paths) == 2
    assert "beaten by a plan of the front" not in page.words


def test_floor_and_deadline_are_marked_where_they_are_in_sight() -> None:
    def words(found: Front, floor: float = 0.0) -> list[str]:
        return Page(picture_html(found, floor)).words

    assert "floor 72" in words(front(), 72.0)
    assert not any("floor" in word for word in words(front(), 99.0))
    assert "deadline 30 s" in words(front(slo_s=30.0, slo_metric="end_to_end_p95"))
    assert not any("deadline" in word for word in words(front(slo_s=30.0, slo_metric="ttft_p95")))


def test_names_cannot_break_the_page() -> None:
    evil = "<b &amp;"
    text = picture_html(front(point(1.0, 60.0, models=evil), singles=(point(2.0, 70.0, models=evil),)))
    assert "<b" not in text.replace("<body", "")
    assert text.count("&lt;b &amp;amp; alone") == 2  # in the picture and in the table


def test_one_point_and_no_price_can_be_drawn(tmp_path: Path) -> None:
    write_picture(front(point(7.0, 60.0, None), singles=()), tmp_path / "front.html")
    page = Page((tmp_path / "front.html").read_text(encoding="utf-8"))
    assert dots(page) == [(WIDTH / 2, HEIGHT / 2)]
    assert any("1 plan that" in word for word in page.words)


def test_long_fronts_are_drawn_whole_and_listed_in_part() -> None:
    text = picture_html(many(400))
    assert len(dots(Page(text))) == 800
    assert re.search(r"<p>\d+ of 800 plans\.</p>", text)
    assert len(text) < 400_000
