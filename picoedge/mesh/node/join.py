"""Join a cluster over the network with an invite: the new board's side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.errors import AccessError, BoardLostError
from picoedge.fields import Fields
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.identity.admission import Invitation, accept, joining_keys
from picoedge.mesh.identity.identity import Identity, KeyPair
from picoedge.mesh.node.finder import AddressBook
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.messages import Body

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Context

TIMEOUT_S = 10.0


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
    addresses.add_seen(invitation.server, [parse_address(invitation.address)])
    addresses.save()
    return identity


def ask_to_join(
    context: Context, invitation: Invitation, name: str, keys: KeyPair, timeout_s: float = TIMEOUT_S
) -> Body:
    """The cluster's roster, with this board in it. `keys` are the board's own.

    If an earlier attempt was cut off after the invite was spent, the board is a member already:
    then the roster is requested with its own keys.
    """
    body = {"public": keys.public, "name": name}
    try:
        answer = _ask(context, invitation, invitation.keys, "join", body, timeout_s)
    except (AccessError, BoardLostError) as error:
        try:
            answer = _ask(context, invitation, keys, "roster", {}, timeout_s)
        except (AccessError, BoardLostError):
            if isinstance(error, BoardLostError):
                raise error from None
            raise AccessError(
                "the invite is used up or too old",
                "picoedge keys invite, on the board that gave it",
            ) from None
    return dict(Fields(answer).object("roster").values)


def _ask(
    context: Context, invitation: Invitation, keys: KeyPair, kind: str, body: Body, timeout_s: float
) -> Body:
    address = parse_address(invitation.address)
    with Client(context, keys, address, invitation.server, "that invites") as client:
        return client.ask(kind, body, timeout_s)
