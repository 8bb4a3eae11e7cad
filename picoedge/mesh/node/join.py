"""Join a cluster over the network with an invite: the new board's side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.errors import AccessError, BoardLostError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address, parse_address, probe
from picoedge.mesh.identity.admission import Invitation, accept, joining_keys
from picoedge.mesh.identity.identity import Identity, KeyPair
from picoedge.mesh.interfaces import scoped
from picoedge.mesh.node.finder import AddressBook
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.messages import Body

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Context

TIMEOUT_S = 10.0  # a handshake takes 5 s at most, and a reply of a board that is swapping, too
REACH_S = 4.0  # TCP repeats a lost packet after one second, and again after three


def join(
    context: Context, folder: Path, invitation: Invitation, name: str, timeout_s: float = TIMEOUT_S
) -> Identity:
    """Use an invite, and save the membership in `folder`.

    Raises AccessError if the invite is used up or expired or the board is in a cluster already,
    BoardLostError if the inviting board does not answer.
    """
    keys = joining_keys(folder)
    roster = ask_to_join(context, invitation, name, keys, timeout_s)
    identity = accept(folder, invitation, roster, keys)
    addresses = AddressBook(folder)
    addresses.add_seen(invitation.server, map(parse_address, invitation.addresses))
    addresses.save()
    return identity


def ask_to_join(
    context: Context, invitation: Invitation, name: str, keys: KeyPair, timeout_s: float = TIMEOUT_S
) -> Body:
    """The cluster's roster, with this board in it. `keys` are the board's own.

    If an earlier attempt was cut off after the invite was spent, the board is a member already:
    then the roster is requested with its own keys.
    """
    body, address = {"public": keys.public, "name": name}, _reached(invitation)
    ask = partial(_ask, context, address, invitation.server, timeout_s)
    try:
        answer = ask(invitation.keys, "join", body)
    except (AccessError, BoardLostError) as error:
        try:
            answer = ask(keys, "roster", {})
        except (AccessError, BoardLostError):
            if isinstance(error, BoardLostError):
                raise error from None
            raise AccessError(
                "the invite is used up or too old",
                "a new one: picoedge keys invite, on the board that gave it",
            ) from None
    return dict(Fields(answer).object("roster").values)


def _reached(invitation: Invitation) -> Address:
    """The first address of an invite at which something listens. Raises BoardLostError."""
    named = map(parse_address, invitation.addresses)
    addresses = [address for each in named for address in scoped(each)]
    closed = probe(addresses, REACH_S)
    for address in addresses:
        if address not in closed:
            return address
    tried = "; ".join(f"{address}: {why}" for address, why in closed.items())
    port = parse_address(invitation.addresses[0]).port
    raise BoardLostError(
        f"the board that invites cannot be reached ({tried})",
        f"is `picoedge run` running there, and is port {port} open in its firewall?",
        board="that invites",
    )


def _ask(
    context: Context,
    address: Address,
    server: str,
    timeout_s: float,
    keys: KeyPair,
    kind: str,
    body: Body,
) -> Body:
    with Client(context, keys, address, server, "that invites") as client:
        return client.ask(kind, body, timeout_s)
