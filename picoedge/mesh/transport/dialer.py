"""Connections that a daemon makes to the other boards, one link to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.mesh.addresses import Address
from picoedge.mesh.transport.curve import configure_client
from picoedge.mesh.transport.monitor import read_event
from picoedge.mesh.transport.server import CONTROL, Frames

if TYPE_CHECKING:
    from picoedge.mesh.identity.keys import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket
    from picoedge.mesh.transport.loop import Loop

RECONNECT_MS = 200
RECONNECT_MOST_MS = 4000
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 16.0
MOST_DIALS = 256
_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | _REFUSED

Pair = tuple[Address, str]


@dataclass
class Connection:
    """One DEALER on its way to, or connected with, the board `key` at `address`."""

    address: Address
    key: str
    socket: Socket
    monitor: Any
    is_up: bool = False  # the handshake is done
    is_greeted: bool = False  # hello was answered

    def receive(self) -> list[bytes] | None:
        """The next message; None where there is none."""
        if self.socket.closed:
            return None
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def send(self, frames: Frames) -> bool:
        """Send without waiting; False where there is no connection or its pipe is full."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True


class Dialer:
    """Opens and closes dials; tells `up`, `down` and `read` (a message is there) of each."""

    def __init__(self, context: Context, keys: KeyPair, loop: Loop) -> None:
        self._context = context
        self._keys = keys
        self._loop = loop
        self._dials: dict[Pair, Connection] = {}
        self._waits: dict[Pair, tuple[float, float]] = {}  # not before; the wait after that
        self.up: Callable[[Connection], None] = _nothing
        self.down: Callable[[Connection], None] = _nothing
        self.read: Callable[[Connection], None] = _nothing
        self.refused: Callable[[Connection, bool], None] = lambda each, by_roster: None

    @property
    def greeted(self) -> list[Connection]:
        """Links that stand."""
        return [each for each in self._dials.values() if each.is_greeted]

    def link(self, key: str) -> Connection | None:
        """The link with a board, if one stands."""
        return next((each for each in self.greeted if each.key == key), None)

    def dial(self, pairs: set[Pair]) -> None:
        """Dial these, give up the others; links that stand are kept."""
        for pair, each in list(self._dials.items()):
            if pair not in pairs and not each.is_greeted:
                self.close(each)
        now_s = self._loop.clock()
        for pair in sorted(pairs - self._dials.keys()):
            if self._waits.get(pair, (0.0, 0.0))[0] <= now_s and len(self._dials) < MOST_DIALS:
                self._open(pair)
        for pair in self._waits.keys() - pairs - self._dials.keys():
            del self._waits[pair]

    def close(self, each: Connection) -> None:
        """End a connection; it may be opened again later."""
        if self._dials.pop((each.address, each.key), None) is None:
            return
        self._loop.remove(each.socket)
        self._loop.remove(each.monitor)
        each.socket.disable_monitor()
        each.monitor.close()
        each.socket.close()
        self._lost(each)

    def drop(self, each: Connection) -> None:
        """End a connection that failed, and wait with the next, longer each time."""
        pair = each.address, each.key
        wait_s = self._waits.get(pair, (0.0, FIRST_WAIT_S))[1]
        self._waits[pair] = self._loop.clock() + wait_s, min(2 * wait_s, LONGEST_WAIT_S)
        self.close(each)

    def settle(self, each: Connection) -> None:
        """The board has answered: this is its link, and what failed before is forgotten."""
        each.is_greeted = True
        self._waits.pop((each.address, each.key), None)

    def close_key(self, key: str) -> None:
        """End everything that has to do with a key."""
        for each in list(self._dials.values()):
            if each.key == key:
                self.close(each)

    def close_all(self) -> None:
        """Let go of every socket. Idempotent."""
        for each in list(self._dials.values()):
            self.close(each)

    def _open(self, pair: Pair) -> None:
        address, key = pair
        socket: Socket = self._context.socket(zmq.DEALER)
        configure_client(socket, self._keys, key, CONTROL)
        socket.immediate = True  # a message goes to a board that is there, or nowhere
        socket.reconnect_ivl = RECONNECT_MS
        socket.reconnect_ivl_max = RECONNECT_MOST_MS
        each = Connection(address, key, socket, socket.get_monitor_socket(_WATCHED))
        self._dials[pair] = each
        self._loop.add(socket, lambda: self.read(each))
        self._loop.add(each.monitor, lambda: self.look(each))
        socket.connect(address.endpoint)

    def look(self, each: Connection) -> None:
        """Take note of what has happened to a connection."""
        while not each.socket.closed and (happened := read_event(each.monitor)) is not None:
            self._happened(each, happened[0])

    def _happened(self, each: Connection, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            each.is_up = True
            self.up(each)
        elif event & _REFUSED:
            self.refused(each, event == zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            self.drop(each)
        else:
            self._lost(each)

    def _lost(self, each: Connection) -> None:
        was_greeted = each.is_greeted
        each.is_up = each.is_greeted = False
        if was_greeted:
            self.down(each)


def _nothing(each: Connection) -> None:
    """Nobody asked to be told."""
