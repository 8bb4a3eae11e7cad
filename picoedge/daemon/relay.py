"""Passes bytes between this daemon's port and its worker, for boards that reach no other port.

    relay-open    connect to the worker of the job that runs here, for a board of its group
    relay-send    "data" for the worker, base64; replied to once the worker has taken it. "taken":
                  how many chunks of the worker's have arrived
    -> relay-data    "data" of the worker's; empty at its end

Each connection has at most one relay. The bytes are those of a CURVE connection between board and
worker, which the daemon cannot read. It holds at most a chunk one way, and a window of chunks the
other.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from picoedge.errors import MeshError, ProtocolError
from picoedge.fields import Fields
from picoedge.jobs.relay import RELAY_CHUNK_BYTES, RELAY_WINDOW
from picoedge.mesh.transport.replies import Pending
from picoedge.mesh.transport.server import Sender

if TYPE_CHECKING:
    from picoedge.mesh.node.rpc import Rpc
    from picoedge.mesh.transport.messages import Body

# A peer that sends 4 MB between two heartbeats is cut off as flooding, so a relay is slower: base64
# makes 8 MB of 6 MB, and a heartbeat comes each 250 ms.
BYTES_PER_S = 6 << 20
BURST_BYTES = 1 << 20
WRITE_RETRY_S = 1e-3  # until a worker that took no bytes is tried again


@dataclass(eq=False)
class _Relay:
    sender: Sender
    connection: socket.socket
    sent: int = 0  # chunks to the board
    taken: int = 0  # of these, by the board
    is_reading: bool = False
    allowed_bytes: float = BURST_BYTES  # to the worker, at `at_s`
    at_s: float = 0.0
    unsent: bytes = b""  # to the worker
    pending: Pending = field(default_factory=Pending)


class Relays:
    """The relays of this board. `endpoint_of` names a worker's socket for a board of its group."""

    def __init__(self, rpc: Rpc, endpoint_of: Callable[[str], str]) -> None:
        self._rpc, self._endpoint_of = rpc, endpoint_of
        self._relays: dict[bytes, _Relay] = {}
        rpc.on("relay-open", self._open)
        rpc.on("relay-send", self._send)
        rpc.on_gone(lambda sender: self._end(sender.route))

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._relays)

    def _open(self, peer: str, body: Body) -> None:
        if not isinstance(peer, Sender) or peer.route in self._relays:
            raise ProtocolError("a relay needs a connection of its own")
        endpoint = self._endpoint_of(str(peer))
        if not endpoint:
            raise MeshError("no worker of yours listens on this board")
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.setblocking(False)
            connection.connect(f"\0{endpoint}")
        except OSError as error:
            connection.close()
            raise MeshError(f"its worker cannot be reached: {error.strerror}") from None
        relay = _Relay(peer, connection, at_s=self._rpc.loop.clock())
        self._relays[peer.route] = relay
        self._listen(relay)

    # -- to the worker -------------------------------------------------------------------------

    def _send(self, peer: str, body: Body) -> Pending:
        relay = self._relays.get(peer.route) if isinstance(peer, Sender) else None
        if relay is None or relay.unsent:
            raise MeshError("the worker has closed its end")
        fields = Fields(body, "the relay", ProtocolError)
        taken, text = fields.integer("taken"), fields.get("data", str)
        try:
            relay.unsent = base64.b64decode(text, validate=True)
        except ValueError:
            raise ProtocolError("a relay of what is no base64") from None
        if len(relay.unsent) > RELAY_CHUNK_BYTES or taken > relay.sent:
            raise ProtocolError("a relay of more than a chunk, or of chunks never sent")
        relay.taken = taken
        if relay.sent - taken < RELAY_WINDOW:
            self._listen(relay)
        relay.pending = Pending()
        self._write(relay)
        return relay.pending

    def _write(self, relay: _Relay) -> None:
        """Write on; reply once all is written, not sooner than the rate allows."""
        if self._relays.get(relay.sender.route) is not relay:
            return
        try:
            written = relay.connection.send(relay.unsent) if relay.unsent else 0
        except BlockingIOError:
            written = 0
        except OSError:
            return self._worker_left(relay)
        relay.unsent, now_s = relay.unsent[written:], self._rpc.loop.clock()
        regained = (now_s - relay.at_s) * BYTES_PER_S
        relay.allowed_bytes = min(BURST_BYTES, relay.allowed_bytes + regained) - written
        relay.at_s = now_s
        if relay.unsent:
            self._rpc.loop.after(WRITE_RETRY_S, lambda: self._write(relay))
        elif relay.allowed_bytes < 0:
            pending = relay.pending
            self._rpc.loop.after(-relay.allowed_bytes / BYTES_PER_S, lambda: pending.answer({}))
        else:
            relay.pending.answer({})

    # -- from the worker -----------------------------------------------------------------------

    def _listen(self, relay: _Relay) -> None:
        if not relay.is_reading:
            relay.is_reading = True
            self._rpc.loop.add(relay.connection.fileno(), lambda: self._read(relay))

    def _pause(self, relay: _Relay) -> None:
        if relay.is_reading:
            relay.is_reading = False
            self._rpc.loop.remove(relay.connection.fileno())

    def _read(self, relay: _Relay) -> None:
        try:
            data = relay.connection.recv(RELAY_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            return self._worker_left(relay)
        self._push(relay, data)
        relay.sent += 1
        if relay.sent - relay.taken >= RELAY_WINDOW:  # until the board has taken some
            self._pause(relay)

    def _push(self, relay: _Relay, data: bytes) -> None:
        body = {"data": base64.b64encode(data).decode()}
        self._rpc.push(relay.sender, "relay-data", body)

    # -- the end -------------------------------------------------------------------------------

    def _worker_left(self, relay: _Relay) -> None:
        self._push(relay, b"")
        self._end(relay.sender.route)

    def _end(self, route: bytes) -> None:
        relay = self._relays.pop(route, None)
        if relay is not None:
            self._pause(relay)
            relay.pending.answer(MeshError("the worker has closed its end"))
            with suppress(OSError):
                relay.connection.close()

    def close(self) -> None:
        """End all relays."""
        for route in list(self._relays):
            self._end(route)
