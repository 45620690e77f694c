"""How a system is recognised everywhere on the page: by a letter, and by a colour and a dash besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import ascii_uppercase

from cascadia_fast.report.results import System

COLOURS = 8  # that the page has beside the ink, which is ours
DASHES = ("none", "7 3", "2 3")


@dataclass(frozen=True, slots=True)
class Mark:
    """A system on the page; `css` gives its colour and dash."""

    title: str
    letter: str
    css: str
    is_ours: bool

    @property
    def badge(self) -> str:
        """The letter on its colour."""
        return f'<b class="badge {self.css}">{self.letter}</b>'

    @property
    def named(self) -> str:
        """The badge and the title; names may run from right to left."""
        return f"{self.badge} <bdi>{escape(self.title)}</bdi>"


def marks_of(systems: Sequence[System]) -> dict[str, Mark]:
    """Return the mark of every system, by its name."""
    letters = [first + second for first in ("", *ascii_uppercase) for second in ascii_uppercase]
    marks = {}
    for place, (letter, system) in enumerate(zip(letters, systems, strict=False)):
        is_ours = system["kind"] == "ours"
        marks[system["name"]] = Mark(system["title"], letter, f"s{place}{' ours' if is_ours else ''}", is_ours)
    return marks


def style(systems: Sequence[System]) -> str:
    """Rules for the colours, and for hiding the lines of systems whose box is not ticked."""
    coloured = [place for place, system in enumerate(systems) if system["kind"] != "ours"]
    colours = "".join(
        f".s{place}{{--c:var(--c{turn % COLOURS});--dash:{DASHES[turn // COLOURS % len(DASHES)]}}}"
        for turn, place in enumerate(coloured)
    )
    hiding = ",".join(f"body:has(#show{place}:not(:checked)) .plot .s{place}" for place in range(len(systems)))
    return f"{colours}{hiding}{{display:none}}"


def boxes(systems: Sequence[System], shown: Sequence[System], marks: dict[str, Mark]) -> str:
    """A legend of lines whose boxes show and hide them, without a script."""
    items = "".join(
        f'<label class="{marks[system["name"]].css}"><input type="checkbox" id="show{place}" checked>'
        f'<svg viewBox="0 0 24 8"><path class="line" d="M0 4H24"/></svg>{marks[system["name"]].named}</label>'
        for place, system in enumerate(systems)
        if system in shown
    )
    return f'<div class="legend">{items}</div>'


def legend(shown: Sequence[System], marks: dict[str, Mark]) -> str:
    """The same lines named again, further down."""
    items = "".join(
        f'<span class="{marks[system["name"]].css}"><svg viewBox="0 0 24 8"><path class="line" d="M0 4H24"/></svg>'
        f"{marks[system['name']].named}</span>"
        for system in shown
    )
    return f'<div class="legend">{items}</div>'
