"""`picoedge rm`: remove a model from the shelf."""

from __future__ import annotations

import sys

import click

from picoedge.cli.output import print_result
from picoedge.errors import UsageError


@click.command("rm")
@click.argument("name", metavar="NAME")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str, yes: bool, as_json: bool) -> None:
    """Remove a packed model from this board.

    NAME is as in `picoedge list`. Nothing outside the shelf is removed: the GGUF file or folder
    that a pack was made from stays.
    """
    from picoedge.registry.shelf import Shelf
    from picoedge.units import format_size

    shelf = Shelf.from_environment()
    shelf.held(name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"not removing {name} without being asked", "add -y")
        if not click.confirm(f"Remove {name} from {shelf.folder}?", err=True):
            return
    freed = shelf.remove(name)
    line = f"removed {name}: {format_size(freed)} freed"
    print_result(as_json, {"name": name, "bytes": freed}, line)
