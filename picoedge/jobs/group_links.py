"""What a hub and its workers tie their slices together with, set up alike on both sides."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from picoedge.errors import ProtocolError
from picoedge.host.cores import is_rationed
from picoedge.mesh.group.failures import FailureRule
from picoedge.mesh.group.links import SPIN_S, Links
from picoedge.mesh.transport.frames import HUB, Header, Kind, pack, unpack

if TYPE_CHECKING:
    from picoedge.cluster.spec import GroupSpec
    from picoedge.mesh.identity.keys import KeyPair
    from picoedge.mesh.transport.curve import Context, SocketBounds

NOTE_BYTES = 64 << 10
# Of a board that is there and says nothing, as while its card takes long. Whether it is there and
# how it is, heartbeats and its daemon tell within a second or two.
WORKER_SILENCE_S = 600.0


def make_links(context: Context, keys: KeyPair, spec: GroupSpec, bounds: SocketBounds) -> Links:
    """The links of the board at `spec.rank`, to whom it exchanges sums with; none is open yet."""
    spin_s = 0.0 if is_rationed() else SPIN_S
    links = Links(
        context,
        keys,
        spec.rank,
        spec.epoch,
        bounds,
        rule=hub_rule(spec.rank),
        transport=spec.transport,  # type: ignore[arg-type]  # checked where it was read
        spin_s=spin_s,
        stall_s=WORKER_SILENCE_S,
    )
    for rank, seat in enumerate(spec.ranks):
        if rank != spec.rank and (spec.allreduce == "exchange" or HUB in (rank, spec.rank)):
            links.add(rank, seat.key, seat.name)
    return links


def hub_rule(own_rank: int) -> FailureRule:
    """The hub fails when any rank fails; a worker when the hub or a rank it waits for does.

    Failures among other workers are the hub's to report: it ends the group.
    """

    def concerns(rank: int, ranks: Collection[int]) -> bool:
        return rank in ranks or HUB in (rank, own_rank)

    return concerns


def send_note(links: Links, rank: int, note: Mapping[str, Any]) -> None:
    """Tell a board of the session something that is no array."""
    links.send(
        rank, pack(Header(Kind.CONTROL, links.epoch), links.version), json.dumps(note).encode()
    )


def receive_note(links: Links, rank: int, timeout_s: float | None) -> dict[str, Any]:
    """What a board of the session tells. Raises ProtocolError, BoardLostError."""
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
