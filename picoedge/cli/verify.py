"""`picoedge verify`: check every byte of a pack against its hashes."""

from __future__ import annotations

import click

from picoedge.cli.options import model_argument
from picoedge.cli.output import print_result, showing_progress


@click.command("verify")
@model_argument(required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str | None, as_json: bool) -> None:
    """Check every byte of a pack against its hashes; names the first file that differs."""
    from picoedge.progress import one_stage
    from picoedge.registry.shelf import Shelf
    from picoedge.store.pack.reader import Pack
    from picoedge.units import format_size

    pack = Pack.open(Shelf.from_environment().find(model))
    with showing_progress() as progress:
        pack.verify(one_stage(progress, f"verifying {pack.name}"))
    size = format_size(pack.nbytes)
    if not pack.is_whole:
        size = f"{format_size(pack.held_bytes)} of {size} here"
    facts = {"name": pack.name, "path": str(pack.path), "bytes": pack.nbytes}
    print_result(as_json, facts, f"{pack.path}: {size}, all as packed")
