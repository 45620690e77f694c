"""Reports of texts and tables one after another: plain text of any width, or drawn by rich on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from cascadia_fast.summary_layout import Table, encodable, rich_table, table_lines, to_ascii, wrap

Block = str | Table

_FILE_WIDTH = 120


def show(blocks: Sequence[Block], file: IO[str]) -> None:
    """Write to `file`: tables drawn as wide as the terminal on one, plain text elsewhere."""
    if file.isatty():
        _draw(blocks, file)
        return
    text = plain(blocks, _FILE_WIDTH)
    file.write(text if encodable(text, file) else to_ascii(text))


def plain(blocks: Sequence[Block], width: int) -> str:
    """Plain text of at most `width` columns, a blank line between blocks."""
    parts = [
        "\n".join(table_lines(block, width) if isinstance(block, Table) else _wrapped(block, width)) for block in blocks
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    return [line for paragraph in text.split("\n") for line in wrap(paragraph, width, subsequent_indent="  ")]


def _draw(blocks: Sequence[Block], file: IO[str]) -> None:
    from rich.console import Console  # 60 ms to import: only for terminals

    console = Console(file=file, highlight=False, markup=False, emoji=False)
    text = str if encodable("×…–µ→", file) else to_ascii
    for block in blocks:
        if isinstance(block, Table):
            console.print(rich_table(block, console.width, text))
        else:
            console.print("\n".join(map(text, _wrapped(block, console.width))))
