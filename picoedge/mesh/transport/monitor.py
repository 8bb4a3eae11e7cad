"""What libzmq tells of the connections behind a socket: when one is lost, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq
from zmq.utils.monitor import recv_monitor_message

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


class LinkMonitor:
    """Watches a socket's connections and calls `lost(rank, why)` once for one that is gone.

    A socket that connects has one, that of `rank`. Those of a socket that listens are told apart
    by their file descriptors (`bind`), of which the kernel uses a number again and again: hence
    the events are followed in order. Poll `socket`, and call `look` where it is readable.
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
        """The connection with this descriptor is that of `rank`."""
        self._ranks[descriptor] = rank

    def look(self) -> None:
        """Take in what has happened; `lost` may raise."""
        why = ""
        while self.socket.poll(0):
            message = recv_monitor_message(self.socket)
            event, descriptor = int(message["event"]), int(message["value"])
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
        """Watch no more; before the watched socket is closed. Idempotent."""
        if not self.socket.closed:
            self._watched.disable_monitor()
            self.socket.close(0)
