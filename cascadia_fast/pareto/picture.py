"""A front as one HTML page that loads nothing: a picture for each pair of axes, and the plans in a table.

As in a timeline, pictures stretch to any width and all words are HTML around them, so that one page reads on a phone,
on a wide screen and on paper. Equal fronts give equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from cascadia_fast.pareto.front import Axis, Front, FrontPoint
from cascadia_fast.pareto.scale import Scale, scale_of
from cascadia_fast.pareto.text import spread, thresholds_text, title_of
from cascadia_fast.plan_json import replace_file
from cascadia_fast.summary_units import OBJECTIVES, dollars, duration, number

COLOURS = 8  # that the page has for cascades
MOST_ROWS = 200
# Pictures in their own units; the page stretches them.
WIDTH, HEIGHT = 1000, 600


def write_picture(front: Front, path: str | Path, floor: float = 0.0) -> None:
    """Write the page of a front: readers see the old file or the whole new one.

    Parameters
    ----------
    front : the front.
    path : an HTML file.
    floor : a quality to mark, such as the floor that plans must meet.

    Raises
    ------
    InputError
        The file cannot be written there.
    """
    replace_file(Path(path), picture_html(front, floor).encode())


def picture_html(front: Front, floor: float = 0.0) -> str:
    """Return the page of a front, with a mark at a quality where that is above 0."""
    colours = {models: f"c{number % COLOURS}" for number, models in enumerate(_cascades(front))}
    template = files("cascadia_fast").joinpath("data", "front.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(f"Front of {' and '.join(front.axes)}"),
        heading=escape(title_of(front)),
        figures="".join(_figure(front, x, y, colours, floor) for x, y in _pairs(front)),
        legend=_legend(front, colours),
        note=_note(front),
        table=_table(front, colours),
        certificate=escape(f"{front.certificate}{'' if front.complete else '; the search was stopped early'}."),
    )


def _cascades(front: Front) -> list[tuple[str, ...]]:
    """The cascades on the front, in order of appearance."""
    return list(dict.fromkeys(point.models for point in front.points))


def _pairs(front: Front) -> tuple[tuple[Axis, Axis], ...]:
    """What is drawn against what: quality upwards, where there is one."""
    if "quality" not in front.axes:
        return (("latency", "cost"),)
    across: tuple[Axis, ...] = ("latency", "cost")
    return tuple((axis, "quality") for axis in across if axis in front.axes)


def _figure(front: Front, x: Axis, y: Axis, colours: dict[tuple[str, ...], str], floor: float) -> str:
    drawn = [point for point in (*front.points, *front.singles) if None not in (point.value(x), point.value(y))]
    across, up = (scale_of(axis, [point.value(axis) or 0.0 for point in drawn]) for axis in (x, y))
    places = [(across.at(point.value(x)), up.at(point.value(y))) for point in front.points]
    grid = "".join(f"M{WIDTH * at:.1f} 0V{HEIGHT}" for at, _ in across.ticks)
    grid += "".join(f"M0 {_down(at):.1f}H{WIDTH}" for at, _ in up.ticks)
    beaten, steps = _steps(sorted(places), falls=y != "quality")
    shade = f'<path class="beaten" d="{beaten}"/>' if len(front.axes) == 2 else ""
    dots = "".join(
        f'<path class="dot {colours[point.models]}" d="{_dot(place)}"><title>{escape(_said(point))}</title></path>'
        for point, place in zip(front.points, places, strict=True)
    )
    limits, limit_labels = _limits(front, x, y, across, up, floor)
    alone, labels = _alone([point for point in front.singles if point in drawn], x, y, across, up)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{x} against {y}">'
        f'<path class="grid" d="{grid}"/>{shade}{limits}<path class="steps" d="{steps}"/>{dots}{alone}</svg>'
    )
    return (
        f'<figure><div class="y">{_title(front, y, up)}</div><div class="chart">'
        f'<div class="rows">{_ticks(up, "bottom")}</div><div class="plot">{svg}{limit_labels}{labels}</div>'
        f'<div class="columns">{_ticks(across, "left")}</div><div class="x">{_title(front, x, across)}</div>'
        "</div></figure>\n"
    )


def _down(share: float) -> float:
    """Pictures count from above."""
    return HEIGHT * (1 - share)


def _dot(place: tuple[float, float]) -> str:
    return f"M{WIDTH * place[0]:.1f} {_down(place[1]):.1f}h0"


def _steps(places: Sequence[tuple[float, float]], falls: bool) -> tuple[str, str]:
    """What plans of the front beat in both directions, and the edge of it: better is up and left, or down and left."""
    edge: list[tuple[float, float]] = []
    for across, up in places:
        if not edge or (up < edge[-1][1] if falls else up > edge[-1][1]):
            edge.append((across, up))
    if not edge:
        return "", ""
    worst = 0 if falls else HEIGHT
    first_across, first_up = edge[0]
    line = "".join(f"H{WIDTH * across:.1f}V{_down(up):.1f}" for across, up in edge[1:]) + f"H{WIDTH}"
    start = f"{WIDTH * first_across:.1f}"
    return f"M{start} {worst}V{_down(first_up):.1f}{line}V{worst}Z", f"M{start} {worst}V{_down(first_up):.1f}{line}"


def _limits(front: Front, x: Axis, y: Axis, across: Scale, up: Scale, floor: float) -> tuple[str, str]:
    """Lines at the floor of quality and at the deadline, and their names."""
    drawn, labels = "", ""
    if y == "quality" and up.low < floor < up.high:
        at = up.at(floor)
        drawn += f'<path class="limit" d="M0 {_down(at):.1f}H{WIDTH}"/>'
        labels += f'<span class="label limit" style="left:.3rem;bottom:{100 * at:.2f}%">floor {number(floor)}</span>'
    counts = front.slo_s is not None and front.slo_metric == front.metric and x == "latency"
    if counts and front.slo_s is not None and across.low < front.slo_s < across.high:
        at = across.at(front.slo_s)
        drawn += f'<path class="limit" d="M{WIDTH * at:.1f} 0V{HEIGHT}"/>'
        said = f"deadline {duration(front.slo_s)}"
        labels += f'<span class="label limit column" style="left:{100 * at:.2f}%;bottom:.2rem">{said}</span>'
    return drawn, labels


def _alone(singles: Sequence[FrontPoint], x: Axis, y: Axis, across: Scale, up: Scale) -> tuple[str, str]:
    """The single models as squares under their names, which run to the side where there is more room."""
    drawn, labels = "", ""
    hidden = "" if y == "quality" else ", quality {}"
    for point in singles:
        place = across.at(point.value(x)), up.at(point.value(y))
        drawn += f'<path class="alone" d="{_dot(place)}"><title>{escape(_said(point))}</title></path>'
        side, room = ("left", place[0]) if place[0] < 0.5 else ("right", 1 - place[0])
        labels += (
            f'<span class="label" style="{side}:calc({100 * room:.2f}% - .3rem);bottom:{100 * place[1]:.2f}%">'
            f"{escape(point.models[0])} alone{hidden.format(number(point.quality))}</span>"
        )
    return drawn, labels


def _ticks(scale: Scale, side: str) -> str:
    return "".join(f'<span style="{side}:{100 * at:.2f}%">{text}</span>' for at, text in scale.ticks)


def _title(front: Front, axis: Axis, scale: Scale) -> str:
    names = {"latency": OBJECTIVES[front.metric], "quality": "mean quality", "cost": "cost"}
    better = "more is better" if axis == "quality" else "less is better"
    how = ", logarithmic" if scale.logarithmic else ""
    return f"{escape(names[axis])} <small>({scale.unit}{how}; {better})</small>"


def _said(point: FrontPoint) -> str:
    """A point in words, shown when pointed at."""
    cost = "" if point.usd_per_hour is None else f", {dollars(point.usd_per_hour)} USD/h"
    gpus = " / ".join(f"{gpus:,}" for gpus in point.stage_gpus)
    return (
        f"{duration(point.latency_s)}, quality {number(point.quality)}{cost}: {' > '.join(point.models)}, "
        f"{gpus} GPUs" + (f", thresholds {thresholds_text(point)}" if point.thresholds else "")
    )


def _legend(front: Front, colours: dict[tuple[str, ...], str]) -> str:
    items = [f'<li class="{colour}"><i></i>{escape(" > ".join(models))}</li>' for models, colour in colours.items()]
    if front.singles:
        items.append('<li><i class="alone"></i>one model alone, at its best latency</li>')
    if len(front.axes) == 2:
        items.append('<li><i class="beaten"></i>beaten by a plan of the front</li>')
    return "".join(items)


def _note(front: Front) -> str:
    if len(front.axes) == 2:
        return "Every dot is a plan; beyond the line, towards the better corner, there is none."
    left = [next(axis for axis in front.axes if axis not in pair) for pair in _pairs(front)]
    return (
        "Every dot is a plan. Dots on the wrong side of the line are beaten in what the picture shows, and better in "
        f"what it leaves out ({' and '.join(left)})."
    )


def _table(front: Front, colours: dict[tuple[str, ...], str]) -> str:
    shown = spread(front, MOST_ROWS)
    head = "".join(
        f"<th>{name}</th>" for name in ("", "p95", "quality", "USD/h", "GPUs", "of each model", "thresholds", "models")
    )
    rows = "".join(_row(point, colours[point.models], " > ".join(point.models)) for point in shown)
    rows += "".join(_row(point, "alone", f"{point.models[0]} alone") for point in front.singles)
    some = f"<p>{len(shown)} of {len(front.points):,} plans.</p>" if len(shown) < len(front.points) else ""
    return f"{some}<table><tr>{head}</tr>{rows}</table>"


def _row(point: FrontPoint, colour: str, models: str) -> str:
    cells = (
        duration(point.latency_s, zeros=True),
        number(point.quality),
        dollars(point.usd_per_hour),
        f"{point.gpus:,}",
        " / ".join(f"{gpus:,}" for gpus in point.stage_gpus),
        thresholds_text(point) or "–",
    )
    said = "".join(f"<td>{escape(cell)}</td>" for cell in (*cells, models))
    return f'<tr class="{colour}"><td><i></i></td>{said}</tr>'
