"""`picoedge verify`: every byte of a pack against its hashes."""

from __future__ import annotations

import click

from picoedge.cli.options import model_argument
from picoedge.cli.output import showing_progress


@click.command("verify")
@model_argument(required=False)
def command(model: str | None) -> None:
    """Check every byte of a pack against its hashes; names the first file that differs."""
    from picoedge.engine.fetching import stage
    from picoedge.engine.shelf import Shelf
    from picoedge.store.reader import Pack
    from picoedge.units import format_size

    pack = Pack.open(Shelf.from_environment().find(model))
    with showing_progress() as progress:
        pack.verify(stage(progress, f"verifying {pack.name}"))
    click.echo(f"{pack.path}: {format_size(pack.nbytes)}, all as packed")
