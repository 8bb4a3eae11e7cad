"""Reports on stdout: JSON, tables, facts; plain text, the same in a pipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from picoedge.cli.output import one_line


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """`name   value` lines."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{one_line(name).ljust(width)}  {one_line(value)}".rstrip())
