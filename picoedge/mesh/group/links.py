"""Messages between the boards of a group, by rank.

A link that has failed stays failed until its rank is removed. One thread uses a Links. How links
come about is in rendezvous.py and peer_link.py, the two transports are in mesh/transport.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh.group.peer_link import FailureRule, LinkSettings, TransportChoice
from picoedge.mesh.group.rendezvous import Rendezvous
from picoedge.mesh.transport.connection import Bytes, Connection, ConnectionEnded, Items
from picoedge.mesh.transport.frames import PREFIX_BYTES, VERSION, Header, Kind, pack_prefix
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, SocketBounds

_T = TypeVar("_T")
Received = tuple[int, bytes, memoryview]  # rank, prefix, buffer

# A receiver asks that long without sleeping: to be woken takes some 50 us, longer than most sums
# take to come once all boards have computed their parts.
SPIN_S = 500e-6
# How long a board may take no bytes of a message. Its kernel takes some while it computes, so only
# a board that has stopped, or a link that is cut, is that long about it.
SEND_STALL_S = 30.0
# Sockets are polled that often while messages never stop coming: a lost board is then noticed in a
# tenth of the second that heartbeats take.
_LOOK_S = 0.1
LEAVE_S = 0.5  # for the others to leave, too, when a group's work is over: they know it by then


class Links(Rendezvous):
    """The links of the board of rank `rank`, in the group's `epoch`: messages over them.

    How they are opened is in the base class: one object in two files, each of which can be read
    without the other.

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
        self._spin_s, self._stall_s, self._look_at = spin_s, stall_s, 0.0
        nbytes = bounds.frame_bytes
        own = LinkSettings(rank, epoch, nbytes, transport, version, limits, stall_s)
        # A board may be two sums ahead in what it sends, no more.
        super().__init__(context, keys, own, 2 * bounds.messages, rule)
        self._closed = False
        self.bytes_sent = self.bytes_received = 0

    def open(self, timeout_s: float, *, keep_listening: bool = False) -> None:
        """Return once the links to all boards added are open.

        With `keep_listening` boards that are added later may still connect, while messages pass
        between the others; otherwise none can from now on. Raises BoardLostError naming a board
        that is not there in time.
        """
        awaited = set(self._links)

        def is_open() -> bool | None:
            self._advance()
            return awaited <= self._connections.keys() or None

        if self._wait(is_open, lambda: (), timeout_s, awaited) is None:
            missing = sorted(awaited - self._connections.keys())
            names = [self.name(rank) for rank in missing]
            raise BoardLostError(
                f"{', '.join(names)} did not join the session within {timeout_s:g} s",
                "is it on, and do the boards reach each other?",
                board=names[0],
                key=self.key(missing[0]),
            )
        if not keep_listening:
            self.close_listener()

    def remove(self, rank: int) -> None:
        """End the link to a rank, and forget it. The other links stay."""
        self._say_goodbye(rank)
        super().remove(rank)

    # -- waiting -------------------------------------------------------------------------------

    def poll_also(self, socket: zmq.Socket[bytes], callback: Callable[[], None]) -> None:
        """Poll another socket in every wait; the callback empties it, and may raise."""
        self._watched[socket] = callback

    def _wait(
        self,
        attempt: Callable[[], _T | None],
        items: Callable[[], Items],
        timeout_s: float | None,
        ranks: Collection[int],
    ) -> _T | None:
        """The first result of `attempt` that is not None; None at the time limit.

        For `spin_s` it tries without sleeping, and yields the core between two attempts; then
        `items` are polled. Raises the failure that concerns `ranks` once an attempt gives nothing.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._poll((), 0)
        deadline = None if timeout_s is None else now + timeout_s
        while (result := attempt()) is None and time.monotonic() < now + self._spin_s:
            os.sched_yield()
        while result is None:
            result = attempt()
            if result is None and (error := self._concerning(ranks)) is not None:
                result = attempt()  # messages sent before the failure count
                if result is None:
                    raise error
            if result is not None:
                break
            wait_s = None if deadline is None else deadline - time.monotonic()
            if wait_s is not None and wait_s <= 0:
                break
            self._poll(items(), wait_s)
        return result

    def _poll(self, items: Items, wait_s: float | None) -> None:
        """Poll these and all other sockets, and serve the others."""
        joining, due = self._joining()
        if due is not None:
            due_s = max(0.0, due - time.monotonic())
            wait_s = due_s if wait_s is None else min(wait_s, due_s)
        watched: list[tuple[Any, int]] = [(socket, zmq.POLLIN) for socket in self._watched]
        wait_ms = -1 if wait_s is None else math.ceil(wait_s * 1000)
        try:
            ready = zmq.zmq_poll([*items, *watched, *joining], wait_ms)
        except zmq.ZMQError as error:
            raise MeshError(f"the session's links are closed: {error.strerror}") from None
        for socket, _ in ready:
            if callback := self._watched.get(socket):
                callback()
        self._advance()

    # -- sending -------------------------------------------------------------------------------

    def send(self, rank: int, message: Bytes) -> None:
        """Send a prefix and a body in one piece, which the caller may change at once."""
        connection = self._connections.get(rank)
        try:
            if connection is not None and not connection.send(message):
                self._push(rank, connection)
        except ConnectionEnded as error:
            self._lose(rank, str(error))
        if rank not in self._connections:
            raise self._concerning((rank,)) or _closed()
        self.bytes_sent += len(message)

    def _push(self, rank: int, connection: Connection) -> None:
        """Send the rest once there is room, and take in messages: their senders may wait for it."""

        def pushed() -> bool | None:
            self._take_early()
            return (rank in self._connections and connection.flush()) or None

        if self._wait(pushed, lambda: self._items(self._links), self._stall_s, (rank,)) is None:
            self._lose(rank, f"it took nothing for {self._stall_s:g} s")

    def bye(self) -> None:
        """Tell every board that the group's work is over."""
        for rank in self._connections:
            self._say_goodbye(rank)

    def _say_goodbye(self, rank: int) -> None:
        goodbye = pack_prefix(Header(Kind.BYE, self.epoch, extra=self.rank), self.version)
        connection = self._connections.get(rank)
        with suppress(ConnectionEnded):  # a board that is gone, or takes nothing, is not told
            if connection is not None and connection.flush():
                connection.send(goodbye)
                self.bytes_sent += len(goodbye)

    def leave(self, within_s: float = LEAVE_S) -> None:
        """Send nothing more, and take what comes until the others have left or the time is over.

        Another board may still send what this one does not need, and need what this one has sent.
        """
        deadline = time.monotonic() + within_s
        leaving = [each for each in self._connections.values() if each.finish()]
        while leaving := [each for each in leaving if not _taken_to_end(each, deadline)]:
            wait_s = deadline - time.monotonic()
            if wait_s <= 0:
                return
            zmq.zmq_poll([item for each in leaving for item in each.items()], int(wait_s * 1000))

    # -- receiving -----------------------------------------------------------------------------

    def receive(self, ranks: Collection[int], timeout_s: float | None = SEND_STALL_S) -> Received:
        """The next message of one of these boards: its rank, its prefix and its body.

        The body is valid until a message of that board is received again, or any is sent. Without
        a time limit it waits for ever.
        """
        if self._closed:
            raise _closed()
        received = self._wait(
            lambda: self._take(ranks), lambda: self._items(ranks), timeout_s, ranks
        )
        if received is None:
            names, key = [self.name(rank) for rank in ranks], self.key(min(ranks))
            why = f"{', '.join(names)} sent nothing for {timeout_s:g} s"
            raise BoardLostError(why, board=self.name(min(ranks)), key=key)
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
            if early := self._links[rank].early:
                return rank, memoryview(early.popleft())
            if (message := self._next(rank)) is not None:
                return rank, message
        return None

    def _take_early(self) -> None:
        """Read messages that are not due yet, to make room for their senders."""
        for rank, link in self._links.items():
            while (message := self._next(rank)) is not None:
                link.early.append(bytes(message))
                if len(link.early) > self._most_early:
                    raise self.fault(rank, f"sent {len(link.early)} messages before their time")

    def _next(self, rank: int) -> memoryview | None:
        """The next message of a connection; None where it has ended, which is recorded."""
        connection = self._connections.get(rank)
        try:
            return connection.take() if connection is not None else None
        except ConnectionEnded as error:
            self._lose(rank, str(error))
        except ProtocolError as error:
            raise self.fault(rank, f"sent {error.message}") from None
        return None

    # -- the end -------------------------------------------------------------------------------

    def _lose(self, rank: int, why: str) -> None:
        self._end(self._links[rank])
        self._fail(rank, why)

    def close(self) -> None:
        """End all connections. Idempotent."""
        self._closed = True
        super().close()


def _closed() -> MeshError:
    return MeshError("the session's links are closed")


def _taken_to_end(connection: Connection, deadline: float) -> bool:
    """Drop what has come over a connection; whether it has ended."""
    try:
        while connection.take() is not None and time.monotonic() < deadline:
            pass
    except (ConnectionEnded, ProtocolError):
        return True
    return False
