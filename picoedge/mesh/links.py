"""The data sockets of one session: a link to each board it exchanges sums with.

A board that listens has one ROUTER; boards of lower rank connect a DEALER each. Both ends prove
their keys, and say their rank and the session's epoch before anything else. A link that is lost
stays lost: the session ends, and the next one has other links. One thread uses them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh import curve
from picoedge.mesh.monitors import LinkMonitor
from picoedge.mesh.waiting import Callback, Items, Waiter, closed
from picoedge.mesh.wire import HEADER, Header, Kind, pack, unpack

if TYPE_CHECKING:
    from picoedge.mesh.curve import Context, Socket
    from picoedge.mesh.keys import KeyPair

Bytes = bytes | bytearray | memoryview
Received = tuple[int, bytes, memoryview]  # rank, header, buffer

HUB = 0
NOW = zmq.NOBLOCK
MORE_NOW = zmq.NOBLOCK | zmq.SNDMORE
SPIN_S = 500e-6
SEND_STEP_MS = 2  # a full pipe is tried again after that: it has no event of its own
PATIENCE_S = 30.0
FAREWELL_MS = 500
# Of the kernel: what waits there delays the heartbeats behind it.
SEND_BUFFER = 512 << 10
# A message is one frame, as each is encrypted for itself: the header, filled up so that the numbers
# behind it are aligned, then the buffer.
PREFIX_BYTES = 32
PADDING = bytes(PREFIX_BYTES - HEADER.size)


class BoardFaultError(BoardLostError, ProtocolError):
    """A board of the session sent what makes no sense: it is lost to the session."""


@dataclass(eq=False)
class Peer:
    """A board at the other end. `socket` is None until it is known how to reach it."""

    rank: int
    key: str
    name: str
    socket: Socket | None = None
    routing_id: bytes = b""  # on our ROUTER; empty for a board we connected to
    ready: bool = False
    early: deque[tuple[bytes, memoryview]] = field(default_factory=deque)


class Links:
    """What a board of rank `rank` sends to and receives from the other boards of a session.

    `bounds` are what a socket takes; `spin_s` is how long a receiver asks without sleeping.
    Methods raise BoardLostError where a board is gone, BoardFaultError where it misbehaves.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        rank: int,
        epoch: int,
        bounds: curve.Bounds,
        *,
        spin_s: float = SPIN_S,
    ) -> None:
        self.rank, self.epoch = rank, epoch
        self._context, self._keys, self._bounds = context, keys, bounds
        self._peers: dict[int, Peer] = {}
        self._by_key: dict[str, Peer] = {}
        self._dialled: dict[Socket, Peer] = {}
        self._router: Socket | None = None
        self._gate: curve.Gate | None = None
        self._monitors: list[LinkMonitor] = []
        self._waiter = Waiter(spin_s)
        self._closed = False
        self._gone: dict[int, str] = {}  # why, by rank
        self.bytes_sent = self.bytes_received = 0

    # -- coming together -----------------------------------------------------------------------

    def expect(self, rank: int, key: str, name: str) -> None:
        """Let the board with this public key in as `rank`; `name` is for people."""
        assert rank not in (self.rank, *self._peers)
        assert key not in self._by_key
        self._peers[rank] = self._by_key[key] = Peer(rank, key, name)

    def also(self, socket: Socket, callback: Callback) -> None:
        """Poll another socket in every wait; the callback empties it, and may raise."""
        self._waiter.watch(socket, callback)

    def listen(self, host: str) -> int:
        """Take connections of the boards expected; gives the port. Raises MeshError."""
        assert self._router is None
        self._gate = curve.Gate(self._context, self._admits)
        self._waiter.watch(self._gate.socket, self._gate.answer)
        self._router = socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        curve.serve(socket, self._keys, self._bounds)
        self._prepare(socket, LinkMonitor(socket, self._lost))
        try:
            socket.bind(f"tcp://{_bracketed(host)}:*")
        except zmq.ZMQError as error:
            raise MeshError(f"cannot listen on {host}: {error.strerror}") from None
        return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def _admits(self, key: str) -> bool:
        peer = self._by_key.get(key)
        return peer is not None and peer.socket is None

    def connect(self, rank: int, address: str) -> None:
        """Connect to the listening board of that rank, expected before; address is HOST:PORT."""
        peer = self._peers[rank]
        host, _, port = address.rpartition(":")
        peer.socket = socket = self._context.socket(zmq.DEALER)
        self._dialled[socket] = peer
        curve.dial(socket, self._keys, peer.key, self._bounds)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._prepare(socket, LinkMonitor(socket, self._lost, rank))
        try:
            socket.connect(f"tcp://{_bracketed(host)}:{port}")
        except zmq.ZMQError as error:
            raise MeshError(f"cannot connect to {address}: {error.strerror}") from None
        self._hello(peer)

    def _prepare(self, socket: Socket, monitor: LinkMonitor) -> None:
        socket.setsockopt(zmq.SNDBUF, SEND_BUFFER)
        self._monitors.append(monitor)
        self._waiter.watch(monitor.socket, monitor.look)

    def open(self, timeout_s: float) -> None:
        """Return once every board expected is here and has said who it is; then nobody gets in.

        Raises BoardLostError naming one that is not there in time.
        """
        deadline = time.monotonic() + timeout_s
        while missing := [peer for peer in self._peers.values() if not peer.ready]:
            names = ", ".join(peer.name for peer in missing)
            if self._ready(self._peers, deadline) is None:
                raise BoardLostError(
                    f"{names} did not join the session within {timeout_s:g} s",
                    "is it on, and do the boards reach each other?",
                    board=missing[0].name,
                )
            self._read_hello()
        self._close_door()

    def _read_hello(self) -> None:
        for source, _ in self._asked(self._peers):
            while source.poll(0):
                message = self._read(source)
                peer = self._peers[message[0]]
                if peer.ready:  # quicker than the others: it is through, and has begun
                    self._keep_early(message)
                else:
                    self._greet(peer, message[1])

    def _greet(self, peer: Peer, raw: bytes) -> None:
        hello = self._header(peer, raw)
        if hello != Header(Kind.HELLO, self.epoch, extra=peer.rank):
            raise self.fault(peer.rank, f"began with {hello}, in epoch {self.epoch}")
        peer.ready = True
        if peer.routing_id:
            self._hello(peer)

    def _header(self, peer: Peer, raw: bytes) -> Header:
        try:
            return unpack(raw)
        except ProtocolError as error:
            raise self.fault(peer.rank, f"sent {error.message}") from None

    def _hello(self, peer: Peer) -> None:
        self.send(peer.rank, pack(Header(Kind.HELLO, self.epoch, extra=self.rank)))

    def _close_door(self) -> None:
        """From now on libzmq refuses whoever knocks. (To unbind would end the links we have.)"""
        if self._gate is not None:
            self._waiter.unwatch(self._gate.socket)
            self._gate.close()

    # -- sending -------------------------------------------------------------------------------

    def send(self, rank: int, header: bytes, body: Bytes = b"") -> None:
        """Send a header and what it speaks of."""
        self.send_whole(rank, b"".join((header, PADDING, body)))

    def send_whole(self, rank: int, message: Bytes) -> None:
        """Send a prefix and a buffer in one piece; it is copied, so it may be changed at once."""
        peer = self._peers[rank]
        give_up = 0.0
        while True:
            try:
                self._put(peer, message)
                return
            except zmq.ZMQError as error:
                give_up = give_up or time.monotonic() + PATIENCE_S
                self._judge_sending(peer, error, give_up)

    def _put(self, peer: Peer, message: Bytes) -> None:
        send = peer.socket.send  # type: ignore[union-attr]  # the links are open
        if peer.routing_id:
            send(peer.routing_id, MORE_NOW)
        send(message, NOW)
        self.bytes_sent += len(message)

    def _judge_sending(self, peer: Peer, error: zmq.ZMQError, give_up: float) -> None:
        """Wait a little where its pipe is full; raise where the board is gone."""
        if error.errno == zmq.EHOSTUNREACH:
            self._lost(peer.rank, "its connection ended")
        elif error.errno != zmq.EAGAIN:
            raise closed(error) from None
        elif time.monotonic() >= give_up:
            self._lost(peer.rank, f"it took nothing for {PATIENCE_S:g} s")
        self._waiter.look(SEND_STEP_MS)
        if lost := self._lost_of((peer.rank,)):
            raise lost from None

    def bye(self) -> None:
        """Tell every board that the session is over; closing waits a moment for it to go out."""
        goodbye = pack(Header(Kind.BYE, self.epoch, extra=self.rank)) + PADDING
        for peer in self._peers.values():
            if peer.ready and peer.socket is not None and not peer.socket.closed:
                peer.socket.linger = FAREWELL_MS
                with suppress(zmq.ZMQError):  # who is gone, or takes nothing, is not told
                    self._put(peer, goodbye)

    # -- receiving -----------------------------------------------------------------------------

    def receive(self, ranks: Collection[int], timeout_s: float | None = PATIENCE_S) -> Received:
        """The next message of one of these boards: its rank, its header's bytes and its buffer.

        Without a time limit it waits for ever. What other boards sent meanwhile is kept.
        """
        for rank in ranks:
            if self._peers[rank].early:
                return rank, *self._peers[rank].early.popleft()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            source = self._ready(ranks, deadline)
            if source is None:
                name = ", ".join(self.name(rank) for rank in ranks)
                silent = self.name(next(iter(ranks)))
                raise BoardLostError(f"{name} sent nothing for {timeout_s:g} s", board=silent)
            try:
                message = self._read(source)
            except zmq.ZMQError as error:
                raise closed(error) from None
            if message[0] in ranks:
                return message
            self._keep_early(message)

    def _ready(self, ranks: Collection[int], deadline: float | None) -> Socket | None:
        if self._closed:  # such sockets look like file descriptors to zmq_poll
            raise MeshError("the session's links are closed")
        return self._waiter.ready(self._asked(ranks), deadline, lambda: self._lost_of(ranks))

    def _asked(self, ranks: Collection[int]) -> Items:
        """What to poll for messages of these boards."""
        sockets = [self._peers[rank].socket or self._router for rank in ranks]
        return [(socket, zmq.POLLIN) for socket in dict.fromkeys(sockets) if socket is not None]

    def _read(self, source: Socket) -> Received:
        """One message, all of which is there. Raises BoardFaultError where it has other parts."""
        routing_id = source.recv(NOW) if source is self._router else b""
        frame = source.recv(NOW, copy=False)
        peer = self._sender(source, routing_id, frame)
        parts = 1
        while frame.more:
            parts, frame = parts + 1, source.recv(NOW, copy=False)
        message = frame.buffer
        if parts > 1 or message[HEADER.size : PREFIX_BYTES] != PADDING:
            raise self.fault(peer.rank, f"sent {parts} frames, the last of {len(message)} bytes")
        self.bytes_received += len(message)
        return peer.rank, bytes(message[: HEADER.size]), message[PREFIX_BYTES:]

    def _sender(self, source: Socket, routing_id: bytes, frame: zmq.Frame) -> Peer:
        """Who proved the key of the connection; a routing id anybody can choose."""
        if source is not self._router:
            return self._dialled[source]
        peer = self._by_key[curve.sender_of(frame)]
        if not peer.routing_id:
            peer.routing_id, peer.socket = routing_id, source
            self._monitors[0].bind(int(frame.get(zmq.SRCFD)), peer.rank)
        if peer.routing_id != routing_id:
            raise self.fault(peer.rank, "connected twice")
        return peer

    def _keep_early(self, message: Received) -> None:
        early = self._peers[message[0]].early
        if len(early) >= 2 * self._bounds.messages:
            raise self.fault(message[0], f"sent {len(early)} messages before their time")
        early.append(message[1:])

    # -- trouble -------------------------------------------------------------------------------

    def name(self, rank: int) -> str:
        """What people call the board of that rank."""
        return self._peers[rank].name

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error that says a board misbehaves, to be raised."""
        name = self.name(rank)
        return BoardFaultError(
            f"{name} {what}", "update picoedge there; if that is not it, revoke its key", board=name
        )

    def _lost(self, rank: int, why: str) -> None:
        self._gone.setdefault(rank, why)

    def _lost_of(self, ranks: Collection[int]) -> BoardLostError | None:
        """The error where a lost board matters to one that waits for these ranks.

        The hub minds any, everybody minds the hub. Of the rest, the hub will say what becomes.
        """
        for rank, why in self._gone.items():
            if rank in ranks or HUB in (rank, self.rank):
                name = self.name(rank)
                return BoardLostError(f"{name} is lost: {why}", board=name)
        return None

    def close(self) -> None:
        """Let all connections go. Idempotent."""
        self._closed = True
        for monitor in self._monitors:
            monitor.close()
        for peer in self._peers.values():
            if peer.socket is not None:
                peer.socket.close()
        if self._router is not None:
            self._router.close()
        if self._gate is not None:
            self._gate.close()


def _bracketed(host: str) -> str:
    """IPv6 addresses are written in brackets, also where the user did not."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
