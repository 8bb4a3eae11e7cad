"""`picoedge run`: serve the cluster with this board until SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import options
from picoedge.cli.output import note
from picoedge.errors import UsageError

if TYPE_CHECKING:
    from picoedge.daemon.memory.board_memory import BoardOptions
    from picoedge.mesh.addresses import Address
    from picoedge.mesh.identity.identity import Identity

# Also without a terminal: a journal keeps it.
_say = partial(note, verbose=True)


def _ports(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,5})\s*-\s*([0-9]{1,5})\s*", value, re.ASCII)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1024 <= first < last <= 65535:
        raise click.BadParameter(
            f"{value!r} is no range of ports like 7434-7440, of 1024 to 65535", ctx, param
        )
    return first, last


@click.command()
@click.argument("model", required=False, metavar="")
@click.option("--join", metavar="STRING", help="Enter a cluster with an invite; - reads it.")
@click.option("--name", help="What this board is called when it joins [default: its host name].")
@options.memory_option
@click.option(
    "--listen", metavar="ADDRESS", envvar="PICOEDGE_LISTEN",
    help="Where other boards reach this one: HOST or HOST:PORT, IPv6 as [HOST]:PORT "
    "[default: every interface, port 7433].",
)  # fmt: skip
@click.option(
    "--ports", metavar="FIRST-LAST", envvar="PICOEDGE_PORTS", callback=_ports,
    help="Where its workers listen, two ports each: to be opened in a firewall. Where they are "
    "closed, the service's own port serves [default: any].",
)  # fmt: skip
@click.option(
    "--peers", metavar="HOST:PORT,…", envvar="PICOEDGE_PEERS", default="",
    help="Boards to look for at once; those met before are remembered.",
)  # fmt: skip
@click.option(
    "--no-mdns", is_flag=True, envvar="PICOEDGE_NO_MDNS",
    help="Neither announce this board on the LAN nor look for others there.",
)  # fmt: skip
@click.option(
    "--models", metavar="FOLDER", type=click.Path(path_type=Path),
    help="Where packs are kept [default: the shelf of `picoedge list`].",
)  # fmt: skip
@options.threads_option
@options.keep_option
def run(**values: Any) -> None:
    """Serve the mesh: hold shards of models, compute with them, pass them on to other boards.

    It needs an identity: `picoedge keys init` on the first board, `--join STRING` on the others.
    """
    if values["model"]:
        raise UsageError(
            f"picoedge run starts this board's service and takes no model: {values['model']!r}",
            f"to talk with a model: picoedge chat {values['model']}",
        )
    from picoedge.mesh.addresses import parse_address, parse_addresses
    from picoedge.mesh.interfaces import everywhere

    listen = parse_address(values["listen"] or everywhere())
    peers = parse_addresses(values["peers"])
    identity = _identity(values["join"], values["name"])
    _serve(identity, listen, peers, _board_options(values), mdns=not values["no_mdns"])


def _board_options(values: dict[str, Any]) -> BoardOptions:
    from picoedge.daemon.memory.board_memory import BoardOptions
    from picoedge.host.resources import board_bytes
    from picoedge.registry.paths import shelf_folder

    available = board_bytes()
    memory = min(values["memory"] or available, available)
    if values["memory"] is None:
        memory -= available // 16  # a margin for other programs
    shelf = values["models"] or shelf_folder(os.environ)
    return BoardOptions(
        memory, shelf.absolute(), values["threads"], values["keep"], values["ports"]
    )


def _identity(join: str | None, name: str | None) -> Identity:
    from picoedge.mesh.cluster_folder import cluster_folder
    from picoedge.mesh.identity.identity import board_name_of, load_identity

    folder = cluster_folder(os.environ)
    if join is None:
        return load_identity(folder)
    import zmq

    from picoedge.mesh.identity.admission import parse_invite
    from picoedge.mesh.node.join import join as join_cluster

    text = sys.stdin.readline() if join == "-" else join
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        called = name or board_name_of(os.uname().nodename)
        identity = join_cluster(context, folder, parse_invite(text.strip()), called)
    finally:
        context.destroy(linger=0)
    _say(f"{identity.name} is in the cluster; from now on: picoedge run")
    return identity


def _serve(
    identity: Identity,
    listen: Address,
    peers: tuple[Address, ...],
    board: BoardOptions,
    *,
    mdns: bool,
) -> None:
    import zmq

    from picoedge.daemon.service import Daemon
    from picoedge.host.resources import return_large_blocks
    from picoedge.host.systemd import notify, watchdog_s
    from picoedge.jobs.spec import VERSION_1
    from picoedge.mesh.identity.roster import RosterFile
    from picoedge.mesh.node.announce import announced
    from picoedge.mesh.node.node import Node
    from picoedge.units import format_size

    return_large_blocks()
    with ExitStack() as stack:
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        rosters = RosterFile(identity.folder)
        node = Node(context, identity, rosters, listen, peers, translation=VERSION_1)
        stack.callback(node.close)
        ending = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            ending.append(signal.SIGHUP)
        for number in ending:
            signal.signal(number, lambda *_: node.stop())
        stack.callback(Daemon(node, board).close)
        stack.callback(notify, "STOPPING=1")
        node.rpc.log(
            f"{identity.name} of cluster {node.roster.cluster.name} listens on "
            f"{node.address} with {format_size(board.memory_bytes)}"
        )
        stack.enter_context(announced(node, mdns, node.rpc.log))
        _watch(node, watchdog_s())
        notify("READY=1")
        node.run()


def _watch(node: Any, every_s: float | None) -> None:
    """Notify systemd's watchdog every `every_s` seconds, if it is set."""
    from picoedge.host.systemd import notify

    if every_s is None:
        return

    def beat() -> None:
        notify("WATCHDOG=1")
        node.rpc.loop.after(every_s, beat)

    beat()
