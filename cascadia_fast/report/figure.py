"""Small pictures of rising lines: SVG that stretches, with all words as HTML around it, as in timelines and fronts."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from cascadia_fast.pareto.scale import Scale
from cascadia_fast.report.marks import Mark
from cascadia_fast.timeline.series import round_number

WIDTH, HEIGHT = 1000, 600  # of pictures in their own units
_MOST_TICKS = 7
# Labels closer than this, as shares of the picture, hide one another.
_LABEL_WIDTH, _LABEL_HEIGHT = 0.055, 0.075

NOBODY = "<p>none is served</p>"

Place = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """Places, as shares of the picture, from left to right and never falling; `dots` draws each of them.

    Its letter has a ✗ where the system `misses` the floor of quality: then it has not done the same work.
    """

    mark: Mark
    places: Sequence[Place]
    misses: bool
    dots: bool = False

    def height_at(self, across: float) -> float:
        """How high the line runs there."""
        right = bisect_left([place[0] for place in self.places], across)
        if right == 0 or right == len(self.places):
            return self.places[min(right, len(self.places) - 1)][1]
        (x0, y0), (x1, y1) = self.places[right - 1 : right + 1]
        return y0 + (y1 - y0) * (across - x0) / (x1 - x0)

    def reaches(self, height: float) -> Place:
        """Where it first is so high; its end if it never is."""
        before = self.places[0]
        for place in self.places:
            if place[1] >= height:
                rise = place[1] - before[1]
                share = (height - before[1]) / rise if rise > 0 else 1.0
                return before[0] + share * (place[0] - before[0]), before[1] + share * rise
            before = place
        return self.places[-1]


def times_scale(low: float, high: float, unit: str) -> Scale:
    """A logarithmic scale of ratios: powers of two, or finer steps where they are close."""
    if high / low >= 4:
        first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
        step = math.ceil((last - first + 1) / _MOST_TICKS)
        ticks = [2.0**power for power in range(first, last + 1) if power % step == 0]
    else:
        ticks = _multiples(low, high)
    return Scale(low, high, True, tuple((_log_share(tick, low, high), f"{tick:,.6g}") for tick in ticks), unit)


def _log_share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low)


def linear_scale(low: float, high: float, unit: str) -> Scale:
    """A scale with round ticks."""
    ticks = _multiples(low, high)
    return Scale(low, high, False, tuple(((tick - low) / (high - low), f"{tick:,.6g}") for tick in ticks), unit)


def _multiples(low: float, high: float) -> list[float]:
    step = round_number((high - low) / (_MOST_TICKS - 1))
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def panel(title: str, x: Scale, y: Scale, lines: Sequence[Line], level: float | None = None) -> str:
    """One picture: a grid, a dashed line at a level, the lines, and a letter on each of them."""
    grid = "".join(f"M{WIDTH * at:.0f} 0V{HEIGHT}" for at, _ in x.ticks)
    grid += "".join(f"M0 {down(at):.0f}H{WIDTH}" for at, _ in y.ticks)
    drawn = "" if level is None else f'<path class="limit" d="M0 {down(y.at(level)):.0f}H{WIDTH}"/>'
    # Ours is the last line of all, so that none hides it.
    for line in sorted(lines, key=lambda line: line.mark.is_ours):
        path = "L".join(f"{WIDTH * across:.0f} {down(up):.0f}" for across, up in line.places)
        drawn += f'<path class="line {line.mark.css}" d="M{path}"/>'
        if line.dots:
            dots = "".join(f"M{WIDTH * across:.0f} {down(up):.0f}h0" for across, up in line.places)
            drawn += f'<path class="dot {line.mark.css}" d="{dots}"/>'
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f'<path class="grid" d="{grid}"/>{drawn}</svg>'
    )
    return (
        f'<figure class="panel"><figcaption>{escape(title)} <small>{escape(y.unit)}</small></figcaption>'
        f'<div class="chart"><div class="rows">{_ticks(y, "bottom")}</div>'
        f'<div class="plot">{svg}{_letters(lines) or NOBODY}</div>'
        f'<div class="columns">{_ticks(x, "left")}</div><div class="x">{escape(x.unit)}</div></div></figure>\n'
    )


def down(share: float) -> float:
    """Pictures count from above."""
    return HEIGHT * (1 - share)


def _ticks(scale: Scale, side: str) -> str:
    return "".join(f'<span style="{side}:{100 * at:.1f}%">{text}</span>' for at, text in scale.ticks)


def _letters(lines: Sequence[Line]) -> str:
    """A letter on every line, where it stands out.

    Of a bundle of rising lines the leftmost is alone at the bottom and the rightmost at the top; the letters climb
    from the one to the other.
    """
    in_order = sorted(lines, key=lambda line: line.reaches(0.5))
    placed: list[Place] = []
    texts = []
    for number, line in enumerate(in_order):
        wanted = line.reaches(0.1 + 0.8 * number / max(1, len(in_order) - 1))
        at = next((at for at in _along(line, wanted) if not any(_hides(at, other) for other in placed)), wanted)
        placed.append(at)
        place = f'style="left:{100 * at[0]:.1f}%;bottom:{100 * at[1]:.1f}%" title="{escape(line.mark.title)}"'
        texts.append(f'<b class="badge {line.mark.css}" {place}>{line.mark.letter}{"✗" if line.misses else ""}</b>')
    return "".join(texts)


def _along(line: Line, wanted: Place) -> Iterator[Place]:
    """Places on a line, from one of them further and further off, left and right; in the end, above and below it."""
    steps = [sign * step * _LABEL_WIDTH / 2 for step in range(40) for sign in (-1, 1)]
    for across in (wanted[0] + step for step in steps):
        # At the edges letters would cover the numbers of the axes.
        inside = _LABEL_WIDTH / 2 <= across <= 1 - _LABEL_WIDTH / 2
        if inside and line.places[0][0] <= across <= line.places[-1][0]:
            yield across, wanted[1] if across == wanted[0] else line.height_at(across)
    yield wanted
    for step in (1, -1, 2, -2):
        yield wanted[0], wanted[1] + step * _LABEL_HEIGHT


def _hides(at: Place, other: Place) -> bool:
    return abs(at[0] - other[0]) < _LABEL_WIDTH and abs(at[1] - other[1]) < _LABEL_HEIGHT
