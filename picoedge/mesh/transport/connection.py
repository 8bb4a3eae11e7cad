"""A connection to one board: whole messages, in order, read and written without blocking.

Two transports implement it: the sealed stream (sealed_stream.py), and here ZeroMQ with CURVE, over
the very connection that proved the boards' keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import zmq

from picoedge.errors import ProtocolError

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket
    from picoedge.mesh.transport.waiter import Items

Bytes = bytes | bytearray | memoryview
Transport = Literal["stream", "zeromq"]

# A ROUTER polls as writable when any of its peers is: a send that waits for one asks again instead.
# A millisecond is some 100 KB at the 1 Gbit/s of a board, far less than libzmq has in its queues.
SEND_RETRY_S = 1e-3
# After the close libzmq goes on sending that long, so that a goodbye arrives; a board that is gone
# is noticed within that second.
GOODBYE_MS = 1000


class ConnectionEnded(Exception):
    """The other end is gone, and all it sent has been taken; the text says how."""


class Connection(Protocol):
    """Methods raise ConnectionEnded, and ProtocolError for bytes that are no message."""

    transport: Transport
    retry_s: float | None  # how often a blocked send is tried; None: `items` tell when

    def send(self, message: Bytes) -> bool:
        """Send a copy of the message; where False, call `flush` until it returns True."""

    def flush(self) -> bool:
        """Send the rest of a message; True once all of it is on its way."""

    def take(self) -> memoryview | None:
        """The next message, valid until the one after it is taken; None: it is not here yet."""

    def items(self, sending: bool = False) -> Items:
        """What to poll for the next message or, `sending`, for room as well."""

    def close(self) -> None:
        """End the connection; what was sent still goes out. Idempotent."""


class DealerConnection:
    """The connecting end, on a DEALER socket of its own."""

    transport: Transport = "zeromq"
    retry_s: float | None = None

    def __init__(self, socket: Socket) -> None:
        self._socket, self._unsent = socket, b""
        self._taken: zmq.Frame | None = None  # keeps the memory of the message handed out

    def send(self, message: Bytes) -> bool:
        """See Connection."""
        assert not self._unsent
        if self._send(message):
            return True
        self._unsent = bytes(message)
        return False

    def flush(self) -> bool:
        """See Connection."""
        if self._unsent and self._send(self._unsent):
            self._unsent = b""
        return not self._unsent

    def _send(self, message: Bytes) -> bool:
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise ConnectionEnded(f"its connection ended: {error.strerror}") from None
        return True

    def take(self) -> memoryview | None:
        """See Connection."""
        try:
            frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        except zmq.ZMQError as error:
            raise ConnectionEnded(f"its connection ended: {error.strerror}") from None
        if frame.more:
            raise ProtocolError(f"a message of {1 + len(self._socket.recv_multipart())} frames")
        self._taken = frame
        return frame.buffer

    def items(self, sending: bool = False) -> Items:
        """See Connection."""
        return [(self._socket, zmq.POLLIN | zmq.POLLOUT if sending else zmq.POLLIN)]

    def close(self) -> None:
        """See Connection."""
        self._socket.close()


class RouterConnection(DealerConnection):
    """The listening end: one peer of a ROUTER socket, which belongs to all of them.

    `pump` reads the socket and calls `put` of the connection that each message came over. Up to
    `most` messages wait to be taken: later ones are dropped, and `take` raises ProtocolError.
    """

    retry_s: float | None = SEND_RETRY_S

    def __init__(
        self, socket: Socket, routing_id: bytes, pump: Callable[[], None], most: int
    ) -> None:
        super().__init__(socket)
        self.routing_id, self._pump, self._most = routing_id, pump, most
        self._inbox: deque[list[zmq.Frame]] = deque()
        self._dropped = 0

    def put(self, frames: list[zmq.Frame]) -> None:
        """One message of this peer."""
        if len(self._inbox) < self._most and not self._dropped:
            self._inbox.append(frames)
        else:
            self._dropped += 1

    def _send(self, message: Bytes) -> bool:
        try:
            self._socket.send_multipart([self.routing_id, message], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            raise ConnectionEnded("its connection ended") from None
        return True

    def take(self) -> memoryview | None:
        """See Connection."""
        if not self._inbox:
            if self._dropped:
                raise ProtocolError(f"{self._most + self._dropped} messages before their time")
            self._pump()
            if not self._inbox:
                return None
        frames = self._inbox.popleft()
        if len(frames) > 1:
            raise ProtocolError(f"a message of {len(frames)} frames")
        self._taken = frames[0]
        return frames[0].buffer

    def items(self, sending: bool = False) -> Items:
        """See Connection."""
        return [(self._socket, zmq.POLLIN)]

    def close(self) -> None:
        """See Connection. The socket stays, for its other peers."""
        self._inbox.clear()
        self._dropped = 1  # keep nothing that still comes
