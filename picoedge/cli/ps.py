"""`picoedge ps`: the boards of the cluster and what each does now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from picoedge.cli.output import print_json, print_table
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.jobs.status import BoardState, MeshState
    from picoedge.mesh.transport.client import Client

HEADER = (
    "board", "is", "address", "does", "model", "attention", "ffn", "head", "memory", "temperature",
)  # fmt: skip
PRESENT = ("alive", "slow")  # conditions of boards whose reports are of now


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Show the boards of the mesh: what each does, its slice of the model, memory, temperature.

    This board's daemon answers; `picoedge run` starts it.
    """
    from picoedge.jobs.status import ask_mesh

    with daemon() as caller:
        mesh = ask_mesh(caller)
    if as_json:
        print_json(mesh.to_json())
        return
    click.echo(summary(mesh))
    print_table(HEADER, [row(board) for board in mesh.boards])


@contextmanager
def daemon() -> Iterator[Client]:
    """A connection to this board's daemon. Raises AccessError, BoardLostError."""
    import zmq

    from picoedge.jobs.spec import VERSION_1
    from picoedge.mesh.identity.identity import cluster_folder
    from picoedge.mesh.transport.client import connect_local

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with connect_local(context, cluster_folder(os.environ), VERSION_1) as caller:
            yield caller
    finally:
        context.destroy(linger=0)


def summary(mesh: MeshState) -> str:
    """`cluster desk: 3 boards, 2 of them here`."""
    count = len(mesh.boards)
    here = sum(board.condition in PRESENT for board in mesh.boards)
    boards = "1 board" if count == 1 else f"{count} boards"
    return f"cluster {mesh.cluster}: {boards}" + (f", {here} of them here" if here < count else "")


def row(board: BoardState) -> tuple[str, ...]:
    """The cells of one board under `HEADER`."""
    always = (board.name, board.condition, board.address or "-")
    if board.condition not in PRESENT:
        return (*always, *("-",) * 7)
    return (
        *always,
        does(board),
        board.model or "-",
        _span("heads", board.attention),
        _span("shards", board.ffn),
        _span("shards", board.vocabulary),
        memory(board),
        temperature(board),
    )


def does(board: BoardState) -> str:
    """`free`; `computing for desk`; `loading for desk (waits for its disk)`."""
    text = {"hub": "hub of a session", "taken": "taken"}.get(board.does, board.does) or "-"
    if board.holder and board.does != "hub":
        text += f" for {board.holder}"
    text += {"disk": " (waits for its disk)", "stopped": " (stopped)"}.get(board.how, "")
    text += " (relayed)" if board.relayed else ""
    return f"{text}, {board.waiting} waiting" if board.waiting else text


def memory(board: BoardState) -> str:
    """`210 MB of 512 MB`."""
    if board.used_bytes is None or board.budget_bytes is None:
        return "-"
    return f"{format_size(board.used_bytes)} of {format_size(board.budget_bytes)}"


def temperature(board: BoardState) -> str:
    """`61 °C`, `84 °C, throttled`; `-` where the board has no sensor."""
    known = "-" if board.temperature_c is None else f"{board.temperature_c:.0f} °C"
    return f"{known}, throttled" if board.throttled else known


def _span(kind: str, shards: range | None) -> str:
    return f"{kind} {shards.start}-{shards.stop - 1}" if shards else "-"
