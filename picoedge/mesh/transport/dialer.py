"""Outgoing connections of a daemon: at most one established to each board."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.mesh.addresses import Address
from picoedge.mesh.transport.curve import (
    SocketBounds,
    close_monitored,
    configure_client,
    events,
    receive_frames,
    received,
)
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.messages import Dialect
from picoedge.mesh.transport.strikes import Ration

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket
    from picoedge.mesh.transport.loop import Loop
    from picoedge.mesh.transport.server import Frames

_RECONNECT_MS = 200  # doubled by libzmq each time: the first comes before the next heartbeat is due
_LONGEST_RECONNECT_MS = 4000  # a packet in 4 s to a board that is off, found so soon when it is on
_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_WATCHED = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _REFUSED

DialTarget = tuple[Address, str]


@dataclass
class OutgoingConnection:
    """A DEALER that connects, or is connected, to the board with public key `key`."""

    address: Address
    key: str
    socket: Socket
    monitor: Any
    dialect: Dialect
    is_established: bool = False  # the board has answered our hello
    file: int = -1  # descriptor, while it is connected
    received_bytes: int = 0

    def receive(self) -> list[bytes] | None:
        """The next message; None if there is none."""
        return None if self.socket.closed else receive_frames(self.socket)

    def send(self, frames: Frames) -> bool:
        """Send without waiting; False if it is not connected or its queue is full."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True


class Dialer:
    """Opens and closes connections. `new_dialect(key)` makes the Dialect of each.

    Callbacks: `up` after a handshake, `down` when an established connection ends, `read` when a
    message is there, `refused(connection, by_roster)` when the handshake fails.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        loop: Loop,
        new_dialect: Callable[[str], Dialect],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._context = context
        self._keys = keys
        self._loop = loop
        self._new_dialect = new_dialect
        self._limits = limits
        self._connections: dict[DialTarget, OutgoingConnection] = {}
        self._ration: Ration[DialTarget] = Ration(limits.burst_bytes)
        self._retries: dict[DialTarget, tuple[float, float]] = {}  # next try, wait after it
        self.up: Callable[[OutgoingConnection], None] = lambda each: None
        self.down: Callable[[OutgoingConnection], None] = lambda each: None
        self.read: Callable[[OutgoingConnection], None] = lambda each: None
        self.refused: Callable[[OutgoingConnection, bool], None] = lambda each, by_roster: None

    @property
    def established(self) -> list[OutgoingConnection]:
        """Connections over which the board has answered our hello."""
        return [each for each in self._connections.values() if each.is_established]

    def to(self, key: str) -> OutgoingConnection | None:
        """The established connection to a board, if there is one."""
        return next((each for each in self.established if each.key == key), None)

    def dial(self, pairs: Iterable[DialTarget]) -> None:
        """Connect to these, and give up attempts to others; established connections are kept.

        Where they are too many, the first ones are tried.
        """
        wanted = dict.fromkeys(pairs)
        room = max(0, self._limits.outgoing_connections - len(self.established))
        tried = dict.fromkeys(islice(wanted, room))
        for pair, each in list(self._connections.items()):
            if pair not in tried and not each.is_established:
                self.close(each)
        now_s = self._loop.clock()
        for pair in tried:
            due_s, _ = self._retries.get(pair, (0.0, 0.0))
            if pair not in self._connections and due_s <= now_s:
                self._open(pair)
        for pair in self._retries.keys() - wanted.keys() - self._connections.keys():
            del self._retries[pair]

    def close(self, each: OutgoingConnection) -> None:
        """Close a connection; it may be opened again later."""
        if self._connections.pop((each.address, each.key), None) is None:
            return
        self._loop.remove(each.socket)
        self._loop.remove(each.monitor)
        close_monitored(each.socket, each.monitor)
        self._lost(each)

    def end_floods(self, now_s: float) -> list[str]:
        """Close connections over which more comes than is believed; return their keys."""
        counted: dict[DialTarget, tuple[int, int]] = {}
        for pair, each in self._connections.items():
            if each.file >= 0:
                nbytes, _ = received(each.file)
                counted[pair] = nbytes - each.received_bytes, self._limits.bytes_per_s
                each.received_bytes = nbytes
        over = self._ration.over(counted, now_s)
        for pair in over:
            self.fail(self._connections[pair], self._limits.flood_s)
        return [key for _, key in over]

    def fail(self, each: OutgoingConnection, least_s: float = 0.0) -> None:
        """Close a connection that failed; the wait until it is retried doubles each time.

        `least_s`: the shortest that it may be.
        """
        pair = each.address, each.key
        wait_s = max(least_s, self._retries.get(pair, (0.0, self._limits.first_retry_s))[1])
        longer_s = min(2 * wait_s, self._limits.longest_retry_s)
        self._retries[pair] = self._loop.clock() + wait_s, longer_s
        self.close(each)

    def establish(self, each: OutgoingConnection) -> None:
        """The board has answered our hello; earlier failures are forgotten."""
        each.is_established = True
        self._retries.pop((each.address, each.key), None)

    def close_key(self, key: str) -> None:
        """Close all connections to a key."""
        for each in list(self._connections.values()):
            if each.key == key:
                self.close(each)

    def close_all(self) -> None:
        """Close every connection. Idempotent."""
        for each in list(self._connections.values()):
            self.close(each)

    def _open(self, pair: DialTarget) -> None:
        address, key = pair
        socket: Socket = self._context.socket(zmq.DEALER)
        bounds = SocketBounds(
            self._limits.frame_bytes,
            self._limits.queued_messages,
            bounds_received=False,
            heartbeats=False,
        )
        configure_client(socket, self._keys, key, bounds)
        socket.immediate = True  # no message is queued for a board that is not connected
        socket.reconnect_ivl = _RECONNECT_MS
        socket.reconnect_ivl_max = _LONGEST_RECONNECT_MS
        monitor = socket.get_monitor_socket(_WATCHED)
        each = OutgoingConnection(address, key, socket, monitor, self._new_dialect(key))
        self._connections[pair] = each
        self._loop.add(socket, lambda: self.read(each))
        self._loop.add(each.monitor, lambda: self.read_monitor(each))
        socket.connect(address.endpoint)

    def read_monitor(self, each: OutgoingConnection) -> None:
        """Read the events of a connection."""
        for event, value in events(each.monitor):
            if event == zmq.EVENT_CONNECTED:
                each.file, each.received_bytes = value, 0
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                each.dialect = self._new_dialect(each.key)  # it may have been updated meanwhile
                self.up(each)
            elif event & _REFUSED:
                self.refused(each, event == zmq.EVENT_HANDSHAKE_FAILED_AUTH)
                self.fail(each)
            else:
                self._lost(each)

    def _lost(self, each: OutgoingConnection) -> None:
        each.file = -1
        was_established = each.is_established
        each.is_established = False
        if was_established:
            self.down(each)
