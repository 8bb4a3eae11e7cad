"""Links of a group with one hub, to ports or through daemons; notes: JSON between two ranks."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.fields import parse_json
from picoedge.jobs.relay import Relay
from picoedge.mesh.addresses import Address, parse_address, probe
from picoedge.mesh.group.peer_link import FailureRule
from picoedge.mesh.transport.frames import HUB, Header, Kind, pack_prefix, unpack

if TYPE_CHECKING:
    from picoedge.mesh.group.links import Links
    from picoedge.mesh.identity.identity import KeyPair

NOTE_BYTES = 64 << 10  # the longest note is a memory plan
# A rank may send nothing for so long, as while its card is slow. Whether its board is alive and its
# worker runs is known from heartbeats and from its daemon, within a second or two.
WORKER_SILENCE_S = 600.0


def connect(
    links: Links, keys: KeyPair, to: Mapping[int, tuple[str, str]], relays: dict[int, Relay]
) -> dict[int, BoardLostError]:
    """Connect to ranks at their own ports or, where these are closed, through their daemons'.

    `to` has the addresses of both, by rank. Relays that are opened are put into `relays`, for the
    caller to close. Returns why for the ranks that can be reached in neither way. Raises MeshError.
    """
    relayed = {rank: each for rank, each in to.items() if each[1]}
    closed = _closed(relayed.values())
    failures = {}
    for rank, (text, daemon_text) in to.items():
        address, daemon = parse_address(text), parse_address(daemon_text or text)
        if rank not in relayed or address not in closed:
            links.connect(rank, text)
            continue
        try:
            if daemon in closed:
                raise MeshError(closed[daemon])
            relays[rank] = Relay(keys, daemon, links.key(rank), links.name(rank))
            links.connect(rank, text, relays[rank].endpoint, daemon_text)
        except MeshError as error:
            if daemon not in closed and address not in probe([address]):  # it was busy before
                links.connect(rank, text)
            else:
                failures[rank] = _unreachable(links, rank, address, daemon, error)
    return failures


def _closed(pairs: Collection[tuple[str, str]]) -> dict[Address, str]:
    """Reasons, for addresses that accept no connection; tried twice where a board has no other."""
    both = [(parse_address(address), parse_address(daemon)) for address, daemon in pairs]
    closed = probe(each for pair in both for each in pair)
    # They may have been busy, or a packet was lost.
    again = [each for pair in both if all(one in closed for one in pair) for each in pair]
    return {**{each: why for each, why in closed.items() if each not in again}, **probe(again)}


def _unreachable(
    links: Links, rank: int, address: Address, daemon: Address, error: MeshError
) -> BoardLostError:
    name = links.name(rank)
    return BoardLostError(
        f"{name} cannot be reached at {address}, nor through its daemon at {daemon}: "
        f"{error.message}",
        error.hint or f"open port {daemon.port} on {name}",
        board=name,
        key=links.key(rank),
    )


def hub_rule(own_rank: int) -> FailureRule:
    """The hub fails when any rank fails; a worker when the hub or a rank it waits for does.

    Failures among other workers are the hub's to report: it ends the group.
    """

    def concerns(rank: int, ranks: Collection[int]) -> bool:
        return rank in ranks or HUB in (rank, own_rank)

    return concerns


@contextmanager
def blaming(links: Links, rank: int) -> Iterator[None]:
    """What a rank sent makes no sense: a ProtocolError of the block becomes its `Links.fault`."""
    try:
        yield
    except ProtocolError as error:
        raise links.fault(rank, f"sent what makes no sense: {error.message}") from None


def send_note(links: Links, rank: int, note: Mapping[str, Any]) -> None:
    """Send a JSON object to a rank."""
    prefix = pack_prefix(Header(Kind.CONTROL, links.epoch), links.version)
    links.send(rank, prefix + json.dumps(note).encode())


def receive_note(links: Links, rank: int, timeout_s: float | None) -> dict[str, Any]:
    """Wait for the note of a rank. Raises BoardLostError, also for what is no note."""
    _, raw, frame = links.receive((rank,), timeout_s)
    with blaming(links, rank):
        header = unpack(raw, versions=(links.version,))
    if header != Header(Kind.CONTROL, links.epoch) or len(frame) > NOTE_BYTES:
        raise links.fault(rank, f"sent {header} where a note was due")
    try:
        note = parse_json(bytes(frame))
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise links.fault(rank, "sent a note that is no JSON object")
    return note
