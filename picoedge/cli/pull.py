"""`picoedge pull`: fetch a model of the catalogue and pack it."""

from __future__ import annotations

import click

from picoedge.cli.output import showing_progress


@click.command("pull")
@click.argument("name", metavar="[NAME]", required=False)
def command(name: str | None) -> None:
    """Fetch a model of the catalogue and pack it.

    NAME is as in `picoedge list`; without it the default model is meant. Nothing is fetched that
    is there already, and a download that was cut goes on where it stopped.
    """
    from picoedge.engine.shelf import Shelf

    shelf = Shelf.from_environment()
    entry = shelf.entry(name)
    with showing_progress() as progress:
        path = shelf.resolve(entry.name, progress=progress)
    click.echo(f"{entry.name} is ready: {path}")
