"""Boards held for a session: each is given to one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from picoedge.mesh.transport.messages import integer_of

if TYPE_CHECKING:
    from picoedge.jobs.boards import MeshView, Peer

    Tell = Callable[[str], None]

QUEUE_S = 24 * 3600.0


def take_boards(mesh: MeshView, peers: Sequence[Peer], tell: Tell) -> int:
    """Hold these boards, waiting for those that others have; bytes of memory that the first gives.

    In the order of their keys, as every session does: no two wait for each other. Raises MeshError.
    """
    memory = 0
    for peer in sorted(peers, key=lambda peer: peer.key):
        told = partial(_queued, peer.name, tell)
        answer = mesh.callers[peer.key].ask("session-take", timeout_s=QUEUE_S, told=told)
        if peer is peers[0]:
            memory = integer_of(answer, "memory_bytes")
    return memory


def _queued(name: str, tell: Tell, kind: str, body: dict[str, Any]) -> None:
    if kind == "session-queued":
        before, place = str(body.get("held_by", ""))[:64], body.get("place")
        line = f", {place - 1} more before this one" if type(place) is int and place > 1 else ""
        tell(f"waiting for {name}: it is taken by a session of {before}{line}")
