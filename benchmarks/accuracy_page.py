"""Tables as Markdown and HTML, and a page that needs no other file."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cascadia_fast.summary_layout import Table

_MANY_COLUMNS = 12  # more than these take smaller letters to fit a page
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto; max-width: 1280px;
       padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, li { max-width: 50rem; } nav a { margin-right: 1rem; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; margin: .5rem 0 1rem; }
th, td { padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; white-space: normal; }
th.left, td.left { text-align: left; } td.first { border-top: 2px solid #bbb; }
td.no { color: #a03000; font-weight: 600; }
table.many { font-size: .76rem; } table.many th, table.many td { padding: .2rem .35rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; } figcaption { max-width: 50rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Listing:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """An SVG with what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Captioned:
    """A table under a small heading."""

    title: str
    table: Table


Part = Text | Listing | Picture | Captioned


@dataclass(frozen=True)
class Section:
    """One heading with what stands under it."""

    title: str
    parts: Sequence[Part]


def markdown(table: Table) -> str:
    """The table in Markdown, without a final newline."""
    rule = tuple(":---" if name in table.left else "---:" for name in table.header)
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.header, rule, *table.rows))


def page(title: str, summary: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    links = "".join(f'<a href="#s{k}">{_said(section.title)}</a>' for k, section in enumerate(sections, 1))
    body = "".join(
        f'<section id="s{k}"><h2>{_said(section.title)}</h2>{"".join(map(_part, section.parts))}</section>\n'
        for k, section in enumerate(sections, 1)
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_said(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{_said(title)}</h1><p>{_said(summary)}</p><nav>{links}</nav>\n{body}</body></html>\n"
    )


def _part(part: Part) -> str:
    match part:
        case Text(text):
            return f"<p>{_said(text)}</p>\n"
        case Listing(items):
            return f"<ul>{''.join(f'<li>{_said(item)}</li>' for item in items)}</ul>\n"
        case Picture(svg, caption):
            # As an image: the pictures' element ids would clash if they all stood in the page itself.
            data = base64.b64encode(svg.encode()).decode()
            image = f'<img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">'
            return f"<figure>{image}<figcaption>{_said(caption)}</figcaption></figure>\n"
        case Captioned(title, table):
            return f'<h3>{_said(title)}</h3><div class="wide">{_table(table)}</div>\n'


def _table(table: Table) -> str:
    left = [' class="left"' if name in table.left else "" for name in table.header]
    head = "".join(f"<th{kind}>{_said(name)}</th>" for name, kind in zip(table.header, left, strict=True))
    firsts = [row[0] for row in table.rows]
    changes = sum(one != other for one, other in itertools.pairwise(firsts))
    blocks = changes < len(firsts) - 1 and changes == len(set(firsts)) - 1
    body = []
    for number, row in enumerate(table.rows):
        begins = blocks and number > 0 and row[0] != firsts[number - 1]
        cells = (
            f'<td class="{_kinds(name in table.left, cell, begins)}">{_said(cell)}</td>'
            for name, cell in zip(table.header, row, strict=True)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    many = ' class="many"' if len(table.header) > _MANY_COLUMNS else ""
    return f"<table{many}><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _kinds(left: bool, cell: str, begins: bool) -> str:
    said = {"left": left, "no": cell == "no", "first": begins}
    return " ".join(name for name, holds in said.items() if holds)


def _said(text: str) -> str:
    """Text for a page; what stands in backquotes is code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if k % 2 else part for k, part in enumerate(parts))
