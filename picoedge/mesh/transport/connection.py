"""A connection to one board: whole messages, in order, read and written without blocking.

Two transports implement it: the sealed stream (sealed_stream.py), and here ZeroMQ with CURVE, over
the very connection that proved the boards' keys. Bytes that wait to be read are bounded from a
thread, as their program may be busy.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

import zmq

from picoedge.errors import ProtocolError
from picoedge.mesh.transport.curve import received, shut_down

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Socket

Bytes = bytes | bytearray | memoryview
Items = Sequence[tuple[Any, int]]  # to poll: (a socket or a file descriptor, POLLIN | POLLOUT)
Transport = Literal["stream", "zeromq"]

# Flow control over ZeroMQ: a sender is at most WINDOW messages ahead of the program at the other
# end, which returns a credit (an empty message) for every CREDIT it has taken. libzmq's queues
# therefore never fill. A full one would stop it reading, heartbeats included: a board that computes
# for a second would be taken for lost. 16 of the longest messages, of 256 KB, are 4 MB.
WINDOW, CREDIT = 16, 8
# libzmq counts what has left a queue by halves of its bound, so it has room for twice the window,
# and for credits and goodbyes.
QUEUED_MESSAGES = 2 * (WINDOW + 4)
# After the close libzmq goes on sending that long, so that a goodbye arrives; a board that is gone
# is noticed within that second.
GOODBYE_MS = 1000
_LOOK_S = 0.1  # between two counts of unread bytes: 12 MB at 1 Gbit/s
_BESIDE_BYTES_PER_S = 1024  # above those beside messages, as heartbeats and answers to them
_FRAME_BYTES = 35  # of a frame over CURVE, at least, beside its content


class ConnectionEnded(Exception):
    """The other end is gone, and all it sent has been taken; the text says how."""


class Connection(Protocol):
    """Methods raise ConnectionEnded, and ProtocolError for bytes that are no message."""

    transport: Transport

    def send(self, message: Bytes) -> bool:
        """Send a copy of the message; where False, call `flush` until it returns True."""

    def flush(self) -> bool:
        """Send the rest of a message; True once all of it is on its way."""

    def take(self) -> memoryview | None:
        """The next message, valid until the one after it is taken; None: it is not here yet."""

    def items(self) -> Items:
        """Sockets to poll for the next message and, where one is sent in part, for room."""

    def finish(self) -> bool:
        """Send nothing more; whether the other end's bytes are to be taken before `close`."""

    def close(self) -> None:
        """End the connection; what was sent still goes out. Idempotent."""


class DealerConnection:
    """The connecting end, on a DEALER socket of its own. `window`: see WINDOW; `inbox` counts."""

    transport: Transport = "zeromq"

    def __init__(self, socket: Socket, inbox: Inbox) -> None:
        self._socket, self._unsent, self.window = socket, b"", WINDOW
        self.inbox = inbox
        self._ahead = self._uncredited = 0  # messages sent, and taken, without a credit yet
        self._route: tuple[bytes, ...] = ()  # frames before each message
        self._taken: zmq.Frame | None = None  # keeps the memory of the message handed out

    def send(self, message: Bytes) -> bool:
        assert not self._unsent
        if self._ahead < self.window and self._send(message):
            self._ahead += 1
            return True
        self._unsent = bytes(message)
        return False

    def flush(self) -> bool:
        """Credits are found by `take`."""
        unsent, self._unsent = self._unsent, b""
        return not unsent or self.send(unsent)

    def _send(self, message: Bytes) -> bool:
        try:
            self._socket.send_multipart([*self._route, message], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise ConnectionEnded(f"its connection ended: {error.strerror}") from None
        return True

    def take(self) -> memoryview | None:
        while (frames := self._receive()) is not None:
            if len(frames) > 1:
                raise ProtocolError(f"a message of {len(frames)} frames")
            if len(frames[0]):
                self._taken = frames[0]
                self._uncredited += 1
                with suppress(ConnectionEnded):  # what it sent before may still be taken
                    if self._uncredited >= CREDIT and self._send(b""):
                        self._uncredited -= CREDIT
                return frames[0].buffer
            self._ahead -= CREDIT
            if self._ahead < 0:
                raise ProtocolError("a credit for messages that were not sent to it")
        return None

    def _receive(self) -> list[zmq.Frame] | None:
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.inbox.emptied()
            return None
        except zmq.ZMQError as error:
            raise ConnectionEnded(f"its connection ended: {error.strerror}") from None
        for frame in frames:
            self.inbox.took(len(frame))
        return frames

    def items(self) -> Items:
        """Room comes with a credit."""
        return [(self._socket, zmq.POLLIN)]

    def finish(self) -> bool:
        """libzmq sends on after the close, whatever was not read."""
        return False

    def close(self) -> None:
        self._socket.close()


class RouterConnection(DealerConnection):
    """The listening end: one peer of a ROUTER socket, which belongs to all of them.

    `pump` reads the socket and calls `put` of the connection that each message came over. Up to
    `most` messages wait to be taken: later ones are dropped, and `take` raises ProtocolError.
    """

    def __init__(
        self,
        socket: Socket,
        routing_id: bytes,
        pump: Callable[[], None],
        most: int,
        inbox: Inbox,
    ) -> None:
        super().__init__(socket, inbox)
        self._route = (routing_id,)
        self.routing_id, self._pump, self._most = routing_id, pump, most
        self._waiting: deque[list[zmq.Frame]] = deque()
        self._dropped = 0

    def put(self, frames: list[zmq.Frame]) -> None:
        """One message of this peer."""
        for frame in frames:
            self.inbox.took(len(frame))
        if len(self._waiting) < self._most and not self._dropped:
            self._waiting.append(frames)
        else:
            self._dropped += 1

    def _receive(self) -> list[zmq.Frame] | None:
        if not self._waiting:
            if self._dropped:
                raise ProtocolError(f"{self._most + self._dropped} messages before their time")
            self._pump()
        return self._waiting.popleft() if self._waiting else None

    def items(self) -> Items:
        """A read for another peer may have left a message here: do not sleep."""
        return [(self._socket, zmq.POLLIN | (zmq.POLLOUT if self._waiting else 0))]

    def close(self) -> None:
        """The socket stays, for its other peers."""
        self._waiting.clear()
        self._dropped = 1  # keep nothing that still comes


# -- bytes that wait to be read ------------------------------------------------------------


class Inbox:
    """The bytes of a connection that wait to be read; at most `most_bytes` may.

    Its reader calls `took` for each message, and `emptied` when none is left.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._file = self._inode = -1  # of the connection; its descriptor may be reused
        self._base_bytes = self._taken_bytes = 0
        self._base_s = 0.0
        self._was_emptied = False
        self.is_over = False  # more came, and the connection was shut down

    def opened(self, file: int) -> None:
        """The connection, or the next one, has this descriptor."""
        self._file, self._inode = file, _inode(file)
        self._base_bytes, self._base_s, self._taken_bytes = 0, time.monotonic(), 0

    def took(self, nbytes: int) -> None:
        """A frame of so many bytes was read."""
        self._taken_bytes += nbytes + _FRAME_BYTES

    def emptied(self) -> None:
        """All that had come was read."""
        self._was_emptied = True

    def look(self, now_s: float) -> bool:
        """Shut the connection down if too much is unread; whether it still stands."""
        if self._file < 0 or _inode(self._file) != self._inode:
            return False
        nbytes, _ = received(self._file)
        if self._was_emptied:
            self._was_emptied = False
            self._base_bytes, self._base_s, self._taken_bytes = nbytes, now_s, 0
        beside = _BESIDE_BYTES_PER_S * (now_s - self._base_s)
        if nbytes - self._base_bytes - self._taken_bytes > self._most_bytes + beside:
            self.is_over = True
            shut_down(self._file)
        return True


class InboxGuard:
    """Ends connections over which more has come than their program reads, from a thread.

    libzmq's own bound would let the other side abort this process: see `SocketBounds`. A hub that
    waits for its user reads nothing for hours.
    """

    def __init__(self) -> None:
        self._inboxes: list[Inbox] = []
        self._finding: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)

    def watch(self, inbox: Inbox, file: int) -> None:
        """Guard an inbox, whose connection has this descriptor, until that has ended."""
        with self._lock:
            inbox.opened(file)
            if inbox not in self._inboxes:
                self._inboxes.append(inbox)
            self._start()

    def find_by(self, find: Callable[[], None]) -> None:
        """Call this, which watches connections that are new, from now on: see `find`."""
        with self._lock:
            self._finding.append(find)
            self._start()

    def find(self, find: Callable[[], None]) -> None:
        """Call such a function now, while the thread does not."""
        with self._lock:
            find()

    def _start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_S):
            with self._lock:
                for find in self._finding:
                    find()
                now_s = time.monotonic()
                self._inboxes = [each for each in self._inboxes if each.look(now_s)]

    def close(self) -> None:
        """To be called before the connections' sockets are closed. Idempotent."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()


def _inode(file: int) -> int:
    try:
        return os.fstat(file).st_ino
    except OSError:
        return 0
