"""Tables and JSON on stdout: a drawn table on a terminal, tab-separated lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec

PREVIEW_CHARACTERS = 60


def print_json(document: Any) -> None:
    """One document, one line."""
    click.echo(msgspec.json.encode(document).decode())


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    if not sys.stdout.isatty():
        click.echo("\t".join(columns))
        for row in rows:
            click.echo("\t".join(str(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)


def preview(value: bytes | None) -> str:
    """A value in a table's cell: the start of its text, or how many bytes it is."""
    if value is None:
        return ""
    text = value[: 4 * PREVIEW_CHARACTERS].decode(errors="replace")
    if "�" in text[:PREVIEW_CHARACTERS]:
        return f"<{len(value)} bytes>"
    line = "".join(character if character.isprintable() else "·" for character in text)
    return line if len(line) <= PREVIEW_CHARACTERS else line[: PREVIEW_CHARACTERS - 1] + "…"
