"""How a summary is laid out: plain text of any width, or drawn by rich on a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

_ASCII = str.maketrans({"×": "x", "…": "~", "–": "-", "µ": "u", "→": ">"})
_MIN_WIDTH = 40
_LABEL_WIDTH = 13
_FILE_WIDTH = 120
_MIN_TEXT = 6
_GAP = "  "
# On narrow screens these columns go first, and the last of them only where texts would get shorter than this.
_DISPENSABLE = ("of each model", "batch", "weights", "not idle", "queue p95", "rate", "utilised")
_SHORT_TEXT = 16
# Names of models differ at their ends, so they are cut in the middle.
_NAMES = ("model", "models", "deployment", "instead")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of a table; columns named in `left` are left-aligned, the others right-aligned."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[str]

    def widths(self) -> list[int]:
        """Width of every column."""
        return [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]

    def fitted(self, width: int, gap: int) -> Table:
        """The table without columns that can be spared, then with shortened text, as far as `width` demands it."""
        table = self
        for name in _DISPENSABLE:
            spare = table._spare() if name == _DISPENSABLE[-1] else 0
            if name in table.header and table._excess(width, gap) > spare:
                k = table.header.index(name)
                rows = tuple(row[:k] + row[k + 1 :] for row in table.rows)
                table = Table(table.header[:k] + table.header[k + 1 :], rows, table.left)
        widths = table.widths()
        excess = table._excess(width, gap)
        for k in sorted(range(len(widths)), key=lambda k: -widths[k]):
            if table.header[k] in table.left:
                cut = max(0, min(excess, widths[k] - _MIN_TEXT))
                widths[k] -= cut
                excess -= cut
        columns = [
            (_clipped(name, size), *(_distinct(cells, size) if name in _NAMES else (_clipped(c, size) for c in cells)))
            for name, size, cells in zip(table.header, widths, zip(*table.rows, strict=True), strict=True)
        ]
        lines = tuple(zip(*columns, strict=True))
        return Table(lines[0], lines[1:], table.left)

    def _spare(self) -> int:
        """Characters that texts can lose and still be read."""
        sizes = zip(self.header, self.widths(), strict=True)
        return sum(max(0, size - _SHORT_TEXT) for name, size in sizes if name in self.left)

    def _excess(self, width: int, gap: int) -> int:
        return sum(self.widths()) + gap * (len(self.header) - 1) - width


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a summary says, before layout."""

    title: str
    stages: Table
    facts: tuple[tuple[str, str], ...]
    versus: Table
    verdict: str
    commands: tuple[tuple[str, str], ...]


def text_of(report: Report, width: int, ascii_only: bool) -> str:
    """Plain text wrapped at `width` columns, of which at least 40 are used."""
    text = plain(report, width)
    return to_ascii(text) if ascii_only else text


def write(report: Report, file: IO[str]) -> None:
    """Write to `file`: drawn as wide as the terminal on one, plain text elsewhere."""
    if file.isatty():
        draw(report, file)
        return
    text = plain(report, _FILE_WIDTH)
    file.write(text if encodable(text, file) else to_ascii(text))


def plain(report: Report, width: int) -> str:
    """The report as text of at most `width` columns, except commands, which stay whole to be copied."""
    width = max(width, _MIN_WIDTH)
    indent = " " * _LABEL_WIDTH
    lines = [*wrap(report.title, width), "", *table_lines(report.stages, width), ""]
    for label, text in report.facts:
        lines += wrap(text, width, initial_indent=label.ljust(_LABEL_WIDTH), subsequent_indent=indent)
    lines += ["", *table_lines(report.versus, width), "", *wrap(report.verdict, width), "", "Next:"]
    commands = max((len(line) for line, _ in report.commands), default=0)
    for line, why in report.commands:
        beside = 4 + commands + len(why) <= width
        lines += [f"  {line:<{commands}}  {why}"] if beside else [f"  {line}", f"      {why}"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def wrap(text: str, width: int, initial_indent: str = "", subsequent_indent: str = "") -> list[str]:
    """Wrapped lines that keep a number and its unit, and the names of models, together."""
    glued = re.sub(r"(?<=\d) (?=\S)", "\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(
        glued, width, initial_indent=initial_indent, subsequent_indent=subsequent_indent, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def table_lines(table: Table, width: int) -> Iterator[str]:
    """Lines of a table in at most `width` columns, as far as it can be narrowed."""
    table = table.fitted(width, len(_GAP))
    widths = table.widths()
    left = [name in table.left for name in table.header]
    for row in (table.header, *table.rows):
        cells = zip(row, widths, left, strict=True)
        yield _GAP.join(cell.ljust(size) if is_left else cell.rjust(size) for cell, size, is_left in cells).rstrip()


def _clipped(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def _distinct(cells: tuple[str, ...], width: int) -> list[str]:
    """Names in at most `width` characters, cut in the middle where that keeps those that differ apart."""
    found: list[str] = []
    for head in range((width - 1) // 3, -1, -1):
        tail = width - 1 - head
        found = [cell if len(cell) <= width else f"{cell[:head]}…{cell[len(cell) - tail :]}" for cell in cells]
        if len(set(found)) == len(set(cells)):
            break
    return found


def draw(report: Report, file: IO[str]) -> None:
    """Draw the report on a terminal, in its width; colours follow the terminal and NO_COLOR."""
    from rich.console import Console  # 60 ms to import: only for terminals
    from rich.text import Text

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    # Rich falls back to ASCII boxes by itself, but not to ASCII text.
    text = str if encodable("×…–µ→", file) else to_ascii
    console.print(Text(text(report.title), style="bold"))
    console.print(rich_table(report.stages, console.width, text))
    for label, fact in report.facts:
        style = "yellow" if label == "warning" else ""
        wrapped = wrap(text(fact), max(console.width, _MIN_WIDTH) - _LABEL_WIDTH)
        for number, line in enumerate(wrapped):
            console.print(Text.assemble(((label if number == 0 else "").ljust(_LABEL_WIDTH), "dim"), (line, style)))
    console.print(rich_table(report.versus, console.width, text))
    console.print(Text(text(report.verdict)))
    console.print(Text("\nNext:", style="bold"))
    for line, why in report.commands:
        console.print(Text.assemble("  ", (text(line), "cyan"), "  ", (text(why), "dim")), soft_wrap=True)


def rich_table(table: Table, width: int, text: Callable[[str], str]) -> rich.table.Table:
    """Return a table as rich draws it; `text` says how each cell is encoded."""
    from rich import box
    from rich.table import Table as RichTable

    table = table.fitted(width - 2, len(_GAP))  # the box adds a blank on either side and one between columns
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, len(_GAP) - 1, 0, 0))
    for name in table.header:
        if name in table.left:
            drawn.add_column(text(name), no_wrap=True)
        else:
            drawn.add_column(text(name), justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*map(text, row))
    return drawn


def to_ascii(text: str) -> str:
    """`text` with ASCII stand-ins for the few other characters summaries use."""
    return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def encodable(text: str, file: IO[str]) -> bool:
    """Whether the file's encoding can write `text`."""
    try:
        text.encode(getattr(file, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
