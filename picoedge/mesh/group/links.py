"""Messages between the boards of a group, by rank.

A link that has failed stays failed until its rank is removed. One thread uses a Links. How links
come about is in rendezvous.py and peer_link.py, the two transports are in mesh/transport.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh.group.peer_link import (
    BoardFaultError,
    FailureLog,
    FailureRule,
    LinkSettings,
    LinkState,
    TransportChoice,
)
from picoedge.mesh.group.rendezvous import Rendezvous
from picoedge.mesh.transport.connection import Bytes, Connection, ConnectionEnded, Transport
from picoedge.mesh.transport.frames import PADDING, PREFIX_BYTES, VERSION, Header, Kind, pack
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.waiter import Callback, Items, Waiter

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, SocketBounds

Received = tuple[int, bytes, memoryview]  # rank, prefix, buffer

# A receiver asks that long without sleeping: to be woken takes some 50 us, longer than most sums
# take to come once all boards have computed their parts.
SPIN_S = 500e-6
# How long a board may take no bytes of a message. Its kernel takes some while it computes, so only
# a board that has stopped, or a link that is cut, is that long about it.
SEND_STALL_S = 30.0


class Links:
    """The links of the board of rank `rank`, in the group's `epoch`.

    `bounds`: bytes of a message, and how many a board may send before they are due; `rule`: whom a
    failure concerns; `transport`: what carries messages, or "auto" for the quicker one of each
    pair; `spin_s`: how long a receiver asks without sleeping; `stall_s`: how long a board may take
    no bytes; `version`: of all headers, the lowest of the group's boards. Methods raise
    BoardLostError where a board is gone, BoardFaultError where it breaks the protocol.
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
        transport: TransportChoice = "stream",
        spin_s: float = SPIN_S,
        stall_s: float = SEND_STALL_S,
        version: int = VERSION,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.rank, self.epoch, self.version, self.transport = rank, epoch, version, transport
        # A board may be two sums ahead in what it sends, no more.
        self._stall_s, self._most_early = stall_s, 2 * bounds.messages
        self._waiter, self._failures = Waiter(spin_s), FailureLog(rule)
        self._rendezvous = Rendezvous(
            context,
            keys,
            LinkSettings(rank, epoch, bounds.frame_bytes, transport, version, limits, stall_s),
            self._most_early,
            self._waiter,
            self._failures,
        )
        self._connections = self._rendezvous.connections
        self._early: dict[int, deque[bytes]] = {}
        self._closed = False
        self.bytes_sent = self.bytes_received = 0

    # -- coming and going ----------------------------------------------------------------------

    def add(self, rank: int, key: str, name: str) -> None:
        """Expect the board with this public key as `rank`; `name` is for people."""
        self._failures.names[rank], self._early[rank] = name, deque()
        self._rendezvous.add(rank, key)

    def remove(self, rank: int) -> None:
        """End the link to a rank, and forget it. The other links stay."""
        if rank in self._connections:
            self._say_goodbye(rank)
        self._rendezvous.remove(rank)
        self._failures.remove(rank)
        del self._early[rank]

    def poll_also(self, socket: zmq.Socket[bytes], callback: Callback) -> None:
        """Poll another socket in every wait; the callback empties it, and may raise."""
        self._waiter.watch(socket, callback)

    def listen(self, host: str, relay: str = "") -> int:
        """Accept connections of expected boards; returns the port. Raises MeshError.

        `relay` is the name of a Unix socket (abstract) at which a relay may connect for a board.
        """
        return self._rendezvous.listen(host, relay)

    def connect(self, rank: int, address: str, relay: str = "") -> None:
        """Connect to the listening board of that rank, added before; address is HOST:PORT.

        `relay` is the endpoint of a relay to that board: ZeroMQ then carries the messages.
        """
        self._rendezvous.connect(rank, address, relay)

    def open(self, timeout_s: float, *, keep_listening: bool = False) -> None:
        """Return once the links to all boards added are open.

        With `keep_listening` boards that are added later may still connect, while messages pass
        between the others; otherwise none can from now on. Raises BoardLostError naming a board
        that is not there in time.
        """
        missing = self._rendezvous.open(time.monotonic() + timeout_s, self._early.keys())
        if missing:
            names = [self.name(rank) for rank in missing]
            raise BoardLostError(
                f"{', '.join(names)} did not join the session within {timeout_s:g} s",
                "is it on, and do the boards reach each other?",
                board=names[0],
            )
        if not keep_listening:
            self._rendezvous.close_listener()

    def state(self, rank: int) -> LinkState:
        """How far the link to that rank has come."""
        return self._rendezvous.links[rank].state

    def transports(self) -> dict[int, Transport]:
        """What carries the messages of each open link, by rank."""
        return {rank: each.transport for rank, each in sorted(self._connections.items())}

    def unreachable(self) -> dict[int, str]:
        """Why a stream could not be opened, by rank, where ZeroMQ is used in its place."""
        links = self._rendezvous.links
        return {rank: link.unreachable for rank, link in links.items() if link.unreachable}

    # -- sending -------------------------------------------------------------------------------

    def send(self, rank: int, header: bytes, body: Bytes = b"") -> None:
        """Send a header of 30 bytes, without a tag, and its body."""
        self.send_whole(rank, b"".join((header, PADDING, body)))

    def send_whole(self, rank: int, message: Bytes) -> None:
        """Send a prefix and a body in one piece, which the caller may change at once."""
        connection = self._connections.get(rank)
        try:
            if connection is not None and not connection.send(message):
                self._push(rank, connection)
        except ConnectionEnded as error:
            self._end(rank, str(error))
        if rank not in self._connections:
            raise self._failures.concerning((rank,)) or _closed()
        self.bytes_sent += len(message)

    def _push(self, rank: int, connection: Connection) -> None:
        """Send the rest once there is room, and take in messages: their senders may wait for it."""

        def pushed() -> bool | None:
            self._take_early()
            return (rank in self._connections and connection.flush()) or None

        def items() -> Items:
            return [
                item
                for each in self._connections.values()
                for item in each.items(sending=each is connection)
            ]

        deadline = time.monotonic() + self._stall_s
        if self._waiter.wait(pushed, items, deadline, self._concerning((rank,))) is None:
            self._end(rank, f"it took nothing for {self._stall_s:g} s")

    def bye(self) -> None:
        """Tell every board that the group's work is over."""
        for rank in self._connections:
            self._say_goodbye(rank)

    def _say_goodbye(self, rank: int) -> None:
        goodbye = pack(Header(Kind.BYE, self.epoch, extra=self.rank), self.version) + PADDING
        connection = self._connections[rank]
        with suppress(ConnectionEnded):  # a board that is gone, or takes nothing, is not told
            if connection.flush():
                connection.send(goodbye)
                self.bytes_sent += len(goodbye)

    # -- receiving -----------------------------------------------------------------------------

    def receive(self, ranks: Collection[int], timeout_s: float | None = SEND_STALL_S) -> Received:
        """The next message of one of these boards: its rank, its prefix and its body.

        The body is valid until a message of that board is received again, or any is sent. Without
        a time limit it waits for ever.
        """
        if self._closed:
            raise _closed()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        received = self._waiter.wait(
            lambda: self._take(ranks), lambda: self._items(ranks), deadline, self._concerning(ranks)
        )
        if received is None:
            names = [self.name(rank) for rank in ranks]
            raise BoardLostError(
                f"{', '.join(names)} sent nothing for {timeout_s:g} s", board=names[0]
            )
        rank, message = received
        if len(message) < PREFIX_BYTES:
            raise self.fault(rank, f"sent {len(message)} bytes that are no message")
        self.bytes_received += len(message)
        return rank, bytes(message[:PREFIX_BYTES]), message[PREFIX_BYTES:]

    def _items(self, ranks: Collection[int]) -> Items:
        open_ones = (self._connections.get(rank) for rank in ranks)
        return [item for each in open_ones if each is not None for item in each.items()]

    def _take(self, ranks: Collection[int]) -> tuple[int, memoryview] | None:
        for rank in ranks:
            if early := self._early[rank]:
                return rank, memoryview(early.popleft())
            if (message := self._next(rank)) is not None:
                return rank, message
        return None

    def _take_early(self) -> None:
        """Read messages that are not due yet, to make room for their senders."""
        for rank, early in self._early.items():
            while (message := self._next(rank)) is not None:
                early.append(bytes(message))
                if len(early) > self._most_early:
                    raise self.fault(rank, f"sent {len(early)} messages before their time")

    def _next(self, rank: int) -> memoryview | None:
        """The next message of a connection; None where it has ended, which is recorded."""
        connection = self._connections.get(rank)
        try:
            return connection.take() if connection is not None else None
        except ConnectionEnded as error:
            self._end(rank, str(error))
        except ProtocolError as error:
            raise self.fault(rank, f"sent {error.message}") from None
        return None

    # -- trouble -------------------------------------------------------------------------------

    def name(self, rank: int) -> str:
        """The name, for people, of the board of that rank."""
        return self._failures.names[rank]

    def key(self, rank: int) -> str:
        """The public key of the board of that rank."""
        return self._rendezvous.links[rank].key

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error to raise where a board breaks the protocol."""
        return self._failures.fault(rank, what)

    def _concerning(self, ranks: Collection[int]) -> Callable[[], BoardLostError | None]:
        return lambda: self._failures.concerning(ranks)

    def _end(self, rank: int, why: str) -> None:
        self._rendezvous.end(rank)
        self._failures.add(rank, why)

    def close(self) -> None:
        """End all connections. Idempotent."""
        self._closed = True
        self._rendezvous.close()


def _closed() -> MeshError:
    return MeshError("the session's links are closed")
