"""`picoedge pull`: fetch a model of the catalogue and pack it."""

from __future__ import annotations

import click

from picoedge.cli.output import print_result, showing_progress


@click.command("pull")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """Fetch a model of the catalogue and pack it.

    NAME is as in `picoedge list` [default: the default model]. A model that is here already is
    not fetched again, and an interrupted download is resumed.
    """
    from picoedge.registry.paths import disk_bytes
    from picoedge.registry.shelf import Shelf

    shelf = Shelf.from_environment()
    entry = shelf.entry(name)
    with showing_progress() as progress:
        path = shelf.resolve(entry.name, progress=progress)
    facts = {"name": entry.name, "path": str(path), "bytes": disk_bytes(path)}
    print_result(as_json, facts, f"{entry.name} is ready: {path}")
