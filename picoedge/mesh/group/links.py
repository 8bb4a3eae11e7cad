"""What a board of a session sends to the others and receives from them, message by message.

A link that is lost stays lost: the session ends, and the next one has other links. One thread uses
them. How they come about is in meeting.py, how a message travels in stream.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh.group.failures import BoardFaultError, FailureBoard, FailureRule
from picoedge.mesh.group.rendezvous import Rendezvous
from picoedge.mesh.transport.frames import PADDING, PREFIX_BYTES, VERSION, Header, Kind, pack
from picoedge.mesh.transport.seal import Bytes
from picoedge.mesh.transport.sealed_stream import ConnectionEnded, SealedStream
from picoedge.mesh.transport.waiter import Callback, Items, Waiter

if TYPE_CHECKING:
    from picoedge.mesh.identity.keys import KeyPair
    from picoedge.mesh.transport.curve import Context, SocketBounds

Received = tuple[int, bytes, memoryview]  # rank, prefix, buffer

SPIN_S = 500e-6
SEND_STALL_S = 30.0


class Links:
    """The links of the board of rank `rank`.

    `bounds` are the bytes of a message, and how many may wait here before they are due; `spin_s`
    is how long a receiver asks without sleeping, `stall_s` how long a board may take nothing.
    `version` is that of all headers of the group: its lowest member's.
    Methods raise BoardLostError where a board is gone, BoardFaultError where it misbehaves.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        rank: int,
        epoch: int,
        bounds: SocketBounds,
        *,
        rule: FailureRule,
        spin_s: float = SPIN_S,
        stall_s: float = SEND_STALL_S,
        version: int = VERSION,
    ) -> None:
        self.rank, self.epoch, self.version = rank, epoch, version
        self._bounds, self._stall_s = bounds, stall_s
        self._waiter, self._failures = Waiter(spin_s), FailureBoard(rule)
        self._meeting = Rendezvous(
            context, keys, rank, epoch, bounds.frame_bytes, self._waiter, self._failures, version
        )
        self._streams = self._meeting.streams
        self._early: dict[int, deque[bytes]] = {}
        self._closed = False
        self.bytes_sent = self.bytes_received = 0

    # -- coming together -----------------------------------------------------------------------

    def add(self, rank: int, key: str, name: str) -> None:
        """Let the board with this public key in as `rank`; `name` is for people."""
        self._meeting.expect(rank, key)
        self._failures.names[rank], self._early[rank] = name, deque()

    def poll_also(self, socket: zmq.Socket[bytes], callback: Callback) -> None:
        """Poll another socket in every wait; the callback empties it, and may raise."""
        self._waiter.watch(socket, callback)

    def listen(self, host: str) -> int:
        """Take connections of the boards expected; gives the port. Raises MeshError."""
        return self._meeting.listen(host)

    def connect(self, rank: int, address: str) -> None:
        """Connect to the listening board of that rank, expected before; address is HOST:PORT."""
        self._meeting.connect(rank, address)

    def open(self, timeout_s: float) -> None:
        """Return once every board expected is here and has said who it is; then nobody gets in.

        Raises BoardLostError naming one that is not there in time.
        """
        self._meeting.open(timeout_s)

    # -- sending -------------------------------------------------------------------------------

    def send(self, rank: int, header: bytes, body: Bytes = b"") -> None:
        """Send a header of 30 bytes, without a tag, and the buffer it describes."""
        self.send_whole(rank, b"".join((header, PADDING, body)))

    def send_whole(self, rank: int, message: Bytes) -> None:
        """Send a prefix and a buffer in one piece; it may be changed at once."""
        stream = self._streams.get(rank)
        try:
            if stream is not None and not stream.send(message):
                self._push(rank, stream)
        except ConnectionEnded as error:
            self._end(rank, str(error))
        if rank not in self._streams:
            raise self._failures.concerning((rank,)) or _closed()
        self.bytes_sent += len(message)

    def _push(self, rank: int, stream: SealedStream) -> None:
        """Send the rest once there is room. Who sends to us meanwhile may wait for just that."""

        def pushed() -> bool | None:
            self._take_early()
            return (rank in self._streams and stream.flush()) or None

        def items() -> Items:
            both = zmq.POLLIN | zmq.POLLOUT
            return [(s, both if s is stream else zmq.POLLIN) for s in self._streams.values()]

        deadline = time.monotonic() + self._stall_s
        if (
            self._waiter.wait(pushed, items, deadline, lambda: self._failures.concerning((rank,)))
            is None
        ):
            self._end(rank, f"it took nothing for {self._stall_s:g} s")

    def bye(self) -> None:
        """Tell every board that the session is over."""
        goodbye = pack(Header(Kind.BYE, self.epoch, extra=self.rank), self.version) + PADDING
        for stream in self._streams.values():
            with suppress(ConnectionEnded):  # who is gone, or takes nothing, is not told
                if stream.flush():
                    stream.send(goodbye)
                    self.bytes_sent += len(goodbye)

    # -- receiving -----------------------------------------------------------------------------

    def receive(self, ranks: Collection[int], timeout_s: float | None = SEND_STALL_S) -> Received:
        """The next message of one of these boards: its rank, its prefix and its buffer.

        The buffer is there until a message of that board is received again, or any is sent.
        Without a time limit it waits for ever.
        """
        if self._closed:
            raise _closed()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        found = self._waiter.wait(
            lambda: self._take(ranks),
            lambda: [(self._streams[r], zmq.POLLIN) for r in ranks if r in self._streams],
            deadline,
            lambda: self._failures.concerning(ranks),
        )
        if found is None:
            names = [self.name(rank) for rank in ranks]
            raise BoardLostError(
                f"{', '.join(names)} sent nothing for {timeout_s:g} s", board=names[0]
            )
        rank, message = found
        if len(message) < PREFIX_BYTES:
            raise self.fault(rank, f"sent {len(message)} bytes that are no message")
        self.bytes_received += len(message)
        return rank, bytes(message[:PREFIX_BYTES]), message[PREFIX_BYTES:]

    def _take(self, ranks: Collection[int]) -> tuple[int, memoryview] | None:
        for rank in ranks:
            if early := self._early[rank]:
                return rank, memoryview(early.popleft())
            if (message := self._next(rank)) is not None:
                return rank, message
        return None

    def _take_early(self) -> None:
        """Make room for what others send, though it is not due."""
        for rank, early in self._early.items():
            while (message := self._next(rank)) is not None:
                early.append(bytes(message))
                if len(early) > 2 * self._bounds.messages:
                    raise self.fault(rank, f"sent {len(early)} messages before their time")

    def _next(self, rank: int) -> memoryview | None:
        """The next message on a stream; none where it has ended, which is noted."""
        stream = self._streams.get(rank)
        try:
            return stream.take() if stream is not None else None
        except ConnectionEnded as error:
            self._end(rank, str(error))
        except ProtocolError as error:
            raise self.fault(rank, f"sent {error.message}") from None
        return None

    # -- trouble -------------------------------------------------------------------------------

    def name(self, rank: int) -> str:
        """What people call the board of that rank."""
        return self._failures.names[rank]

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error that says a board misbehaves, to be raised."""
        return self._failures.fault(rank, what)

    def _end(self, rank: int, why: str) -> None:
        if stream := self._streams.pop(rank, None):
            stream.close()
        self._failures.add(rank, why)

    def close(self) -> None:
        """Let all connections go. Idempotent."""
        self._closed = True
        while self._streams:
            self._streams.popitem()[1].close()
        self._meeting.close()


def _closed() -> MeshError:
    """What is said where links are used that are let go."""
    return MeshError("the session's links are closed")
