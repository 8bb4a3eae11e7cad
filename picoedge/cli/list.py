"""`picoedge list`: the models on this board and in the catalogue."""

from __future__ import annotations

import click

from picoedge.cli.output import print_json, print_table


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the models on this board, then the catalogue's others, for `picoedge pull`."""
    from picoedge.registry.shelf import Shelf
    from picoedge.units import format_size

    items = Shelf.from_environment().items()
    if as_json:
        print_json([item.to_json() for item in items])
        return
    rows = [
        (item.name, item.state, format_size(item.n_bytes), item.licence, item.description)
        for item in items
    ]
    print_table(("NAME", "STATE", "SIZE", "LICENCE", ""), rows)
