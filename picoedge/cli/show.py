"""`picoedge show`: facts about a model."""

from __future__ import annotations

from typing import Any

import click

from picoedge.cli.options import model_argument
from picoedge.cli.output import print_facts, print_json


@click.command("show")
@model_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str | None, as_json: bool) -> None:
    """Show facts about a model: architecture, shape, formats, shards, context, licence, tokenizer.

    Nothing is fetched or packed.
    """
    from picoedge.registry.details import describe
    from picoedge.registry.shelf import Shelf

    facts = describe(Shelf.from_environment(), model)
    if as_json:
        print_json(facts)
    else:
        print_facts([(name.replace("_", " "), _text(name, value)) for name, value in facts.items()])


def _text(name: str, value: Any) -> str:
    from picoedge.units import format_size

    if name == "formats":
        return ", ".join(f"{key} {format_size(size)}" for key, size in value.items())
    if name == "source":
        return f"{value.get('kind', '?')} {value.get('file', '')}".rstrip()
    if isinstance(value, dict):
        return ", ".join(f"{count} {key}" for key, count in value.items())
    if name in ("bytes", "held_bytes", "memory_bytes"):
        return format_size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not stated" if value is None else str(value)
