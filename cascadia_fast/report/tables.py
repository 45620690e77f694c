"""Tables with a row for each system."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from cascadia_fast.report.marks import Mark


def table(css: str, head: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls where it is too wide, and repeats its head on every printed page.

    The first column has no title in `head`; `rows` are from `row`.
    """
    titles = "".join(f"<th>{escape(title)}</th>" for title in ("", *head))
    return (
        f'<div class="table"><table class="{css}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(mark: Mark, cells: Iterable[str]) -> str:
    """The row of a system; `cells` are whole cells, as HTML."""
    css = ' class="of-ours"' if mark.is_ours else ""
    return f'<tr{css}><th scope="row">{mark.named}</th>{"".join(cells)}</tr>\n'
