"""Passes bytes between this daemon's port and its worker, for boards that reach no other port.

    relay-open    connect to the worker of the job that runs here, for a board of its group
    relay-send    "data" for the worker, base64; more of it only after `relay-taken`. "taken": how
                  many chunks of the worker's have arrived; that is also sent with empty data
    -> relay-taken   the worker has taken the data
    -> relay-data    "data" of the worker's; empty at its end

Each board has at most one relay: opening another ends it. The bytes belong to a CURVE connection
between board and worker, which the daemon cannot read. It holds at most a chunk one way, and a
window of chunks the other.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from picoedge.errors import MeshError, ProtocolError
from picoedge.fields import Fields
from picoedge.jobs.relay import read_chunk
from picoedge.mesh.transport.server import Sender

if TYPE_CHECKING:
    from picoedge.mesh.node.rpc import Rpc
    from picoedge.mesh.transport.messages import Body


@dataclass(eq=False)
class _Relay:
    sender: Sender
    connection: socket.socket
    allowed_bytes: float  # to the worker, at `at_s`
    at_s: float
    sent: int = 0  # chunks to the board
    taken: int = 0  # of these, by the board
    unsent: bytes = b""  # to the worker
    is_sending: bool = False  # until `relay-taken`


class Relays:
    """The relays of this board. `endpoint_of` names a worker's socket for a board of its group."""

    def __init__(self, rpc: Rpc, endpoint_of: Callable[[str], str]) -> None:
        self._rpc, self._limits, self._endpoint_of = rpc, rpc.limits, endpoint_of
        self._relays: dict[str, _Relay] = {}  # by the board's key
        rpc.on("relay-open", self._open)
        rpc.on("relay-send", self._send)
        rpc.on_gone(lambda sender: self._end(self._relay_of(sender)))

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._relays)

    def _relay_of(self, peer: str) -> _Relay | None:
        """The relay of a connection."""
        relay = self._relays.get(peer)
        is_its = relay and isinstance(peer, Sender) and relay.sender.route == peer.route
        return relay if is_its else None

    def _open(self, peer: str, body: Body) -> None:
        if not isinstance(peer, Sender) or self._relay_of(peer):
            raise ProtocolError("a relay needs a connection of its own")
        endpoint = self._endpoint_of(str(peer))
        if not endpoint:
            raise MeshError("no worker of yours listens on this board")
        if peer in self._relays:
            self._worker_left(self._relays[peer])
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.connect(f"\0{endpoint}")
        except OSError as error:
            connection.close()
            raise MeshError(f"its worker cannot be reached: {error.strerror}") from None
        burst, now_s = self._limits.relay_burst_bytes, self._rpc.loop.clock()
        self._rpc.server.allow_bulk(peer)
        relay = self._relays[str(peer)] = _Relay(peer, connection, burst, now_s)
        self._watch(relay)

    def _watch(self, relay: _Relay) -> None:
        """Read while the board's window has room; write while there is something to write."""
        file = relay.connection.fileno()
        has_room = relay.sent - relay.taken < self._limits.relay_window
        readable = (lambda: self._read(relay)) if has_room else None
        writable = (lambda: self._write(relay)) if relay.unsent else None
        if readable or writable:
            self._rpc.loop.add(file, readable, writable)
        else:
            self._rpc.loop.remove(file)

    # -- to the worker -------------------------------------------------------------------------

    def _send(self, peer: str, body: Body) -> None:
        relay = self._relay_of(peer)
        if relay is None:
            raise MeshError("the worker has closed its end")
        data = read_chunk(body, self._limits)
        if data and relay.is_sending:
            raise ProtocolError("a relayed chunk before the last was taken")
        relay.taken = Fields(body, "the relay").integer("taken", relay.taken, relay.sent)
        if data:
            relay.unsent, relay.is_sending = data, True
            return self._write(relay)
        self._watch(relay)

    def _write(self, relay: _Relay) -> None:
        """Write on; once all is written, ask for more, not sooner than the rate allows."""
        try:
            written = relay.connection.send(relay.unsent)
        except BlockingIOError:
            written = 0
        except OSError:
            return self._worker_left(relay)
        relay.unsent, now_s = relay.unsent[written:], self._rpc.loop.clock()
        rate = self._limits.relay_bytes_per_s
        regained = relay.allowed_bytes + (now_s - relay.at_s) * rate
        relay.allowed_bytes = min(self._limits.relay_burst_bytes, regained) - written
        relay.at_s = now_s
        if not relay.unsent:
            self._rpc.loop.after(max(0.0, -relay.allowed_bytes / rate), lambda: self._taken(relay))
        self._watch(relay)

    def _taken(self, relay: _Relay) -> None:
        if self._relay_of(relay.sender) is relay:
            relay.is_sending = False
            self._rpc.push(relay.sender, "relay-taken", {})

    # -- from the worker -----------------------------------------------------------------------

    def _read(self, relay: _Relay) -> None:
        try:
            data = relay.connection.recv(self._limits.relay_chunk_bytes)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self._worker_left(relay)
        self._push(relay, data)
        relay.sent += 1
        self._watch(relay)

    def _push(self, relay: _Relay, data: bytes) -> None:
        body = {"data": base64.b64encode(data).decode()}
        self._rpc.push(relay.sender, "relay-data", body)

    # -- the end -------------------------------------------------------------------------------

    def _worker_left(self, relay: _Relay) -> None:
        self._push(relay, b"")
        self._end(relay)

    def _end(self, relay: _Relay | None) -> None:
        if relay is not None:
            del self._relays[relay.sender]
            self._rpc.loop.remove(relay.connection.fileno())
            with suppress(OSError):
                relay.connection.close()

    def close(self) -> None:
        """End all relays."""
        for relay in list(self._relays.values()):
            self._end(relay)
