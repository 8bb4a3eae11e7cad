"""`picoedge keys`: make a cluster, invite, allow and revoke boards."""

from __future__ import annotations

import os
import re
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.cli import output
from picoedge.cli.options import Group, json_option
from picoedge.errors import UsageError
from picoedge.sanitize import one_line
from picoedge.suggest import did_you_mean

if TYPE_CHECKING:
    from picoedge.mesh.identity.roster import Roster, RosterFile

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORTEST_S, _LONGEST_S = 60, 30 * 86400


@click.group("keys", cls=Group, no_args_is_help=False)
def keys() -> None:
    """Make a cluster, and decide which boards are in it.

    The board where `init` is run keeps the cluster's signing key: invite, allow and revoke are
    run there. $PICOEDGE_CLUSTER names another folder for keys than the user's.
    """


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> int:
    match = re.fullmatch(r"\s*([0-9]{1,7})\s*([smhd])\s*", value, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{value!r} is no time like 30m, 1h or 2d", ctx, param)
    seconds = int(match[1]) * _UNITS_S[match[2]]
    if not _SHORTEST_S <= seconds <= _LONGEST_S:
        raise click.BadParameter(f"{value} is not between 1m and 30d", ctx, param)
    return seconds


@keys.command("init")
@click.option("--name", "cluster", default="home", show_default=True, help="Name of the cluster.")
@click.option("--board", help="Name of this board [default: its host name].")
@click.option(
    "--roster", "roster", type=click.Path(exists=True, dir_okay=False),
    help="Make this board's keys for the cluster of this roster.json, for `keys allow` there.",
)  # fmt: skip
@json_option
def init(cluster: str, board: str | None, roster: str | None, as_json: bool) -> None:
    """Make a cluster of this board.

    From then on it can invite others.
    """
    from picoedge.mesh.cluster_folder import read_json
    from picoedge.mesh.identity.admission import await_allow, found_cluster
    from picoedge.mesh.identity.identity import board_name_of
    from picoedge.mesh.identity.roster import RosterFile

    folder, board = _folder(), board_name_of(socket.gethostname()) if board is None else board
    if roster is not None:
        value = read_json(Path(roster), "copy it again")
        identity = await_allow(folder, value, board)
    else:
        identity = found_cluster(folder, cluster, board)
    made = RosterFile(folder).roster.cluster
    if as_json:
        facts = {"cluster": made.name, "cluster_key": made.key, "board": board}
        output.print_json({**facts, "public": identity.keys.public, "folder": str(folder)})
    elif roster is not None:
        click.echo(one_line(f"{board} has keys for cluster {made.name}, in {folder}"))
        click.echo("to let it in, on the board with the signing key:")
        click.echo(f"picoedge keys allow {shlex.quote(identity.keys.public)} {board}")
    else:
        click.echo(one_line(f"made cluster {made.name} with this board, {board}, in {folder}"))
        output.note("keep a copy of that folder safe: without it no board can be let in or revoked")
        output.note("next: picoedge run, and picoedge keys invite for each other board")


@keys.command("invite")
@click.option(
    "--ttl", "ttl_s", default="1h", show_default=True, callback=_seconds, metavar="TIME",
    help="How long it is valid: 30m, 1h, 2d.",
)  # fmt: skip
@click.option("--address", metavar="HOST:PORT,…", help="Addresses of this board for the new one.")
@json_option
def invite(ttl_s: int, address: str | None, as_json: bool) -> None:
    """Print a string with which one other board can join, once.

    Keep it secret until it is used or expired: anyone with the string can join. `picoedge run`
    must be running on this board when the other one joins.
    """
    from picoedge.mesh.identity.admission import Invites, parse_invite
    from picoedge.mesh.identity.lifetime import Moment

    folder = _folder()
    cluster = _roster_file(folder).roster.cluster
    if address is None:
        address, why = _own_addresses(folder)
        output.warn(f"at {address.replace(',', ', ')}: {why}; --address names another")
    string = Invites(folder).issue(address, cluster.key, ttl_s, Moment.now())
    if as_json:
        issued = parse_invite(string)
        addresses = issued.addresses
        where = {"address": addresses[0], "addresses": list(addresses)}
        output.print_json({"invite": string, **where, "expires": issued.expires})
    else:
        click.echo(string)
        click.echo(f"picoedge run --join {string}")
        output.note("type the second line on the other board, while picoedge run runs here")


def _own_addresses(folder: Path) -> tuple[str, str]:
    """Addresses at which other boards reach this one's daemon, as HOST:PORT,…, and why, in words.

    Raises UsageError where no other board can.
    """
    from picoedge.mesh.addresses import parse_address
    from picoedge.mesh.cluster_folder import find_local
    from picoedge.mesh.interfaces import everywhere, own_addresses

    daemon, listen = find_local(folder), os.environ.get("PICOEDGE_LISTEN") or everywhere()
    listens = parse_address(listen) if daemon is None else daemon.listens
    found, why = own_addresses(listens)
    usable = [str(address) for address in found if not address.is_loopback]
    if not usable:
        raise UsageError(
            f"this board listens on {listens}, where no other board can reach it",
            "start it with another --listen, or name where it is reached: --address HOST:PORT",
        )
    return ",".join(usable), why


@keys.command("show")
@json_option
def show_keys(as_json: bool) -> None:
    """Show the boards of the cluster.

    This board, allowed and revoked boards, and open invites; no secrets.
    """
    facts = _facts(_folder())
    if as_json:
        output.print_json(facts)
        return
    board = facts["board"]
    state = "allowed" if board["allowed"] else "not allowed (yet)"
    output.print_facts(
        [
            ("cluster", f"{facts['cluster']['name']} ({facts['cluster']['tag']})"),
            ("this board", f"{board['name']}, {state}"),
            ("signing key", "here" if board["signs"] else "on another board"),
            ("folder", facts["folder"]),
            ("open invites", str(len(facts["invites"]))),
        ]
    )
    click.echo()
    states = (("allowed", facts["members"]), ("revoked", facts["revoked"]))
    rows = [(one["name"], state, one["public"]) for state, boards in states for one in boards]
    output.print_table(("NAME", "STATE", "PUBLIC KEY"), rows)


@keys.command("allow")
@click.argument("public", metavar="PUBLIC")
@click.argument("name", metavar="NAME")
@json_option
def allow(public: str, name: str, as_json: bool) -> None:
    """Allow a board by its public key, or rename it.

    `picoedge keys init --roster` prints the key there; write it between single quotes.
    """
    from picoedge.mesh.identity.identity import is_key, load_signing_key, require_board_name

    folder = _folder()
    if not is_key(public):
        raise UsageError("PUBLIC is not a public key", "40 characters, between single quotes")
    require_board_name(name)
    signing, file = load_signing_key(folder), _roster_file(folder)
    file.update(lambda roster: roster.with_allow(signing, public, name))
    _report("allowed", public, name, as_json)


@keys.command("revoke")
@click.argument("board", metavar="NAME|PUBLIC")
@click.option("--force", is_flag=True, help="Also if it is this board.")
@json_option
def revoke(board: str, force: bool, as_json: bool) -> None:
    """Exclude a board for good.

    Its sessions end, and its key is never allowed again. With new keys and a new invite the board
    can join anew.
    """
    from picoedge.mesh.identity.identity import load_identity, load_signing_key

    folder = _folder()
    signing, file = load_signing_key(folder), _roster_file(folder)
    public, name = _key_and_name(file.roster, board)
    if public == load_identity(folder).keys.public and not force:
        raise UsageError(f"{name} is this board", "add --force to revoke it all the same")
    file.update(lambda roster: roster.with_revoke(signing, public))
    _report("revoked", public, name, as_json)


def _report(done: str, public: str, name: str, as_json: bool) -> None:
    line = f"{done} {name}: running boards of the cluster notice within seconds"
    output.print_result(as_json, {"name": name, "public": public, "state": done}, line)


def _key_and_name(roster: Roster, board: str) -> tuple[str, str]:
    """Key and name of a board, from either. Raises UsageError."""
    name = roster.name_of(board)
    if name is not None:
        return board, name
    found = [public for public, called in roster.members.items() if called == board]
    if not found:
        near = did_you_mean(board, list(roster.members.values()))
        raise UsageError(f"no board {board} is let in", near or "picoedge keys show lists them")
    if len(found) > 1:
        raise UsageError(f"several boards are called {board}", "name it by its public key")
    return found[0], board


def _facts(folder: Path) -> dict[str, Any]:
    from picoedge.mesh.identity.admission import Invites
    from picoedge.mesh.identity.identity import has_signing_key, load_identity
    from picoedge.mesh.identity.lifetime import Moment

    identity, roster = load_identity(folder), _roster_file(folder).roster
    public, cluster = identity.keys.public, roster.cluster
    return {
        "cluster": {"name": cluster.name, "key": cluster.key, "tag": cluster.tag},
        "board": {
            "name": roster.name_of(public) or identity.name,
            "public": public,
            "allowed": roster.is_allowed(public),
            "signs": has_signing_key(folder),
        },
        "folder": str(folder),
        "members": [{"name": name, "public": key} for key, name in roster.members.items()],
        "revoked": [{"name": name, "public": key} for key, name in roster.revoked.items()],
        "invites": [{"expires": at} for at in Invites(folder).open_until(Moment.now())],
    }


def _folder() -> Path:
    from picoedge.mesh.cluster_folder import cluster_folder

    return cluster_folder(os.environ)


def _roster_file(folder: Path) -> RosterFile:
    from picoedge.mesh.identity.identity import load_identity
    from picoedge.mesh.identity.roster import RosterFile

    load_identity(folder)  # a folder without keys is the first thing to complain of
    return RosterFile(folder)
