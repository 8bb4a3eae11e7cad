"""Links of a group with one hub, to ports or through daemons; notes: JSON between two ranks."""

from __future__ import annotations

import json
import socket
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.jobs.relay import Relay
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.group.peer_link import FailureRule
from picoedge.mesh.transport.frames import HUB, Header, Kind, pack_prefix, unpack

if TYPE_CHECKING:
    from picoedge.mesh.group.links import Links
    from picoedge.mesh.identity.identity import KeyPair

NOTE_BYTES = 64 << 10  # the longest note is a memory plan
REACH_S = 1.0  # for a connection to a worker's own port: hundreds of round trips of a LAN
# A rank may send nothing for so long, as while its card is slow. Whether its board is alive and its
# worker runs is known from heartbeats and from its daemon, within a second or two.
WORKER_SILENCE_S = 600.0


def connect(
    links: Links, keys: KeyPair, rank: int, address: str, daemon: str, relays: dict[int, Relay]
) -> None:
    """Connect to that rank's own port or, where it cannot be reached, through its daemon's.

    A relay that is opened is put into `relays`, for the caller to close. Raises MeshError.
    """
    if links.transport == "stream" or not daemon or is_reachable(address):
        return links.connect(rank, address)
    try:
        relays[rank] = Relay(keys, parse_address(daemon), links.key(rank), links.name(rank))
    except MeshError as error:
        if is_reachable(address):  # it was busy, or a packet was lost
            return links.connect(rank, address)
        name = links.name(rank)
        raise BoardLostError(
            f"{name} cannot be reached at {address}, nor through its daemon: {error.message}",
            error.hint,
            board=name,
        ) from None
    links.connect(rank, address, relays[rank].endpoint)


def is_reachable(address: str) -> bool:
    """Whether something accepts connections at HOST:PORT."""
    to = parse_address(address)
    try:
        socket.create_connection((to.host, to.port), REACH_S).close()
    except (OSError, UnicodeError):
        return False
    return True


def hub_rule(own_rank: int) -> FailureRule:
    """The hub fails when any rank fails; a worker when the hub or a rank it waits for does.

    Failures among other workers are the hub's to report: it ends the group.
    """

    def concerns(rank: int, ranks: Collection[int]) -> bool:
        return rank in ranks or HUB in (rank, own_rank)

    return concerns


def send_note(links: Links, rank: int, note: Mapping[str, Any]) -> None:
    """Send a JSON object to a rank."""
    prefix = pack_prefix(Header(Kind.CONTROL, links.epoch), links.version)
    links.send(rank, prefix + json.dumps(note).encode())


def receive_note(links: Links, rank: int, timeout_s: float | None) -> dict[str, Any]:
    """Wait for the note of a rank. Raises ProtocolError, BoardLostError."""
    _, raw, frame = links.receive((rank,), timeout_s)
    header = unpack(raw, versions=(links.version,))
    if header != Header(Kind.CONTROL, links.epoch) or len(frame) > NOTE_BYTES:
        raise links.fault(rank, f"sent {header} where a note was due")
    try:
        note = json.loads(bytes(frame))
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise ProtocolError(f"{links.name(rank)} sent a note that is no JSON object")
    return note
