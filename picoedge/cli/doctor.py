"""`picoedge doctor`: faults of this board and their remedies."""

from __future__ import annotations

import dataclasses

import click

from picoedge.cli.options import json_option
from picoedge.cli.output import print_json


@click.command("doctor")
@click.option("--kernels", envvar="PICOEDGE_KERNELS", help="Check for these: numpy or native.")
@json_option
def command(kernels: str | None, as_json: bool) -> int:
    """Say what is wrong with this board and what to do, one line each.

    The exit code is 1 where something keeps picoedge from working as it should.
    """
    from picoedge.engine.doctor import check_board
    from picoedge.registry.shelf import Shelf

    checks = list(check_board(Shelf.from_environment(), kernels))
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            remedy = f" -> {check.remedy}" if check.remedy else ""
            click.echo(f"{check.status:4}  {check.name:{width}}  {check.text}{remedy}")
    return 1 if any(check.status == "fail" for check in checks) else 0
