"""Events of a socket's connections, from libzmq's socket monitor: when one is lost, and why.

The events are read here because pyzmq's own reader (`zmq.utils.monitor`) imports asyncio, which
takes 8 MB of every daemon and worker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

UP = zmq.EVENT_ACCEPTED
DOWN: dict[int, str] = {
    zmq.EVENT_DISCONNECTED: "its connection ended",
    zmq.EVENT_CLOSED: "nothing listens at its address",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not let this board's key in",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "its key is not the one expected, or it is no board",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "its connection ended during the handshake",
}


_EVENT = struct.Struct("=Hi")


def read_event(monitor: Socket) -> tuple[int, int] | None:
    """The next event and its value, a file descriptor or an error number; None if there is none."""
    try:
        frames = monitor.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None
    event, value = _EVENT.unpack(frames[0])
    return event, value


class LinkMonitor:
    """Watches a socket's connections and calls `lost(rank, why)` once for each that ends.

    A socket that connects has one connection, to `rank`. A socket that listens has several, told
    apart by their file descriptors (`bind`). The kernel reuses descriptors, so events are followed
    in order. Poll `socket`, and call `look` when it is readable.
    """

    def __init__(
        self, watched: Socket, lost: Callable[[int, str], None], rank: int | None = None
    ) -> None:
        self._watched, self._lost, self._rank = watched, lost, rank
        self._ranks: dict[int, int] = {}  # by descriptor
        self._up: set[int] = set()
        events = UP | sum(DOWN)
        self.socket: Socket = watched.get_monitor_socket(events)

    def bind(self, descriptor: int, rank: int) -> None:
        """Say that the connection with this file descriptor leads to `rank`."""
        self._ranks[descriptor] = rank

    def look(self) -> None:
        """Read the events that are there; passes on what `lost` raises."""
        why = ""
        while (happened := read_event(self.socket)) is not None:
            event, descriptor = happened
            if event == UP:
                self._up.add(descriptor)
            elif event in DOWN:
                self._up.discard(descriptor)
                why = why or DOWN[event]
        if why:
            self._report(why)

    def _report(self, why: str) -> None:
        if self._rank is not None:
            self._lost(self._rank, why)
            return
        for descriptor in self._ranks.keys() - self._up:
            self._lost(self._ranks.pop(descriptor), DOWN[zmq.EVENT_DISCONNECTED])

    def close(self) -> None:
        """Stop watching. To be called before the watched socket is closed. Idempotent."""
        if not self.socket.closed:
            self._watched.disable_monitor()
            self.socket.close(0)
