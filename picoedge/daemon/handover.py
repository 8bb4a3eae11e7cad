"""Hands connections that come to the daemon's port for its worker on to that process.

A worker's own ports may be closed by a firewall. Streams then come to the daemon's port, marked
(`mesh/transport/listening.py`), and from then on the worker reads and writes them itself. It takes
none that does not show one of its tickets.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from picoedge.mesh.group.handed import handed_name

if TYPE_CHECKING:
    from picoedge.mesh.node.rpc import Rpc

ACCEPTED_PER_TURN = 16  # before other sockets get their turn


class Handover:
    """Accepts on the marked listener of `rpc`'s port. `endpoint()` is the worker's, "" for none."""

    def __init__(self, rpc: Rpc, endpoint: Callable[[], str]) -> None:
        self._endpoint, self._listener = endpoint, rpc.server.marked
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._loop = rpc.loop
        if self._listener is not None:
            self._loop.add(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(ACCEPTED_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except OSError:  # there is none, or it has ended again
                return
            with connection:  # the worker has its own descriptor of it
                self._hand_on(connection)

    def _hand_on(self, connection: socket.socket) -> None:
        endpoint = self._endpoint()
        files = array.array("i", [connection.fileno()])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
        with suppress(OSError):  # it has ended, or takes no more for now
            if endpoint:
                self._sender.sendmsg([b"\0"], rights, 0, f"\0{handed_name(endpoint)}")

    def close(self) -> None:
        """Hand on no more. Idempotent."""
        if self._listener is not None and self._sender.fileno() >= 0:
            self._loop.remove(self._listener.fileno())
        self._sender.close()
