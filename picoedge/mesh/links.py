"""The data sockets of one session: a link to each board it exchanges sums with.

A board that listens has one ROUTER; boards of lower rank connect a DEALER each. Both ends prove
their keys, and say their rank and the session's epoch before anything else. A link that is lost
stays lost: the session ends, and the next one has other links. One thread uses them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh import curve
from picoedge.mesh.monitors import LinkMonitor
from picoedge.mesh.wire import HEADER, Header, Kind, pack, unpack

if TYPE_CHECKING:
    from picoedge.mesh.curve import Context, Socket
    from picoedge.mesh.keys import KeyPair

Callback = Callable[[], None]
Items = Sequence[tuple[Any, int]]  # sockets, and what is asked of them
Body = bytes | bytearray | memoryview

HUB = 0
NOW = zmq.NOBLOCK
MORE_NOW = zmq.NOBLOCK | zmq.SNDMORE
SPIN_S = 50e-6
LOOK_S = 0.1  # how often monitors and reports are looked at while messages never stop coming
SEND_STEP_MS = 2  # a full pipe is tried again after that: it has no event of its own
PATIENCE_S = 30.0
FAREWELL_MS = 500
# Of the kernel: what waits there delays the heartbeats behind it.
SEND_BUFFER = 512 << 10
PARTS = 8  # frames of one message that are looked at; a message has two


class BoardFaultError(ProtocolError):
    """A board of the session sent what makes no sense. `board` is its name."""

    def __init__(self, message: str, hint: str = "", *, board: str = "") -> None:
        super().__init__(message, hint)
        self.board = board


@dataclass(eq=False)
class Peer:
    """A board at the other end. `socket` is None until it is known how to reach it."""

    rank: int
    key: str
    name: str
    socket: Socket | None = None
    routing_id: bytes = b""  # on our ROUTER; empty for a board we connected to
    ready: bool = False
    early: deque[tuple[bytes, zmq.Frame]] = field(default_factory=deque)


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
        self._context, self._keys, self._bounds, self._spin_s = context, keys, bounds, spin_s
        self._peers: dict[int, Peer] = {}
        self._by_key: dict[str, Peer] = {}
        self._router: Socket | None = None
        self._gate: curve.Gate | None = None
        self._monitors: list[LinkMonitor] = []
        self._watched: dict[Socket, Callback] = {}
        self._gone: dict[int, str] = {}  # why, by rank
        self._look_at = 0.0
        self.bytes_sent = self.bytes_received = 0

    # -- coming together -----------------------------------------------------------------------

    def expect(self, rank: int, key: str, name: str) -> None:
        """Let the board with this public key in as `rank`; `name` is for people."""
        assert rank not in (self.rank, *self._peers)
        assert key not in self._by_key
        self._peers[rank] = self._by_key[key] = Peer(rank, key, name)

    def also(self, socket: Socket, callback: Callback) -> None:
        """Poll another socket in every wait; the callback empties it, and may raise."""
        self._watched[socket] = callback

    def listen(self, host: str) -> int:
        """Take connections of the boards expected; gives the port. Raises MeshError."""
        assert self._router is None
        self._gate = curve.Gate(self._context, self._by_key.__contains__)
        self._watched[self._gate.socket] = self._gate.answer
        self._router = socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        curve.serve(socket, self._keys, self._bounds)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody gets in without a gate either
        self._prepare(socket, LinkMonitor(socket, self._lost))
        try:
            socket.bind(f"tcp://{_bracketed(host)}:*")
        except zmq.ZMQError as error:
            raise MeshError(f"cannot listen on {host}: {error.strerror}") from None
        return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def connect(self, rank: int, address: str) -> None:
        """Connect to the listening board of that rank, expected before; address is HOST:PORT."""
        peer = self._peers[rank]
        host, _, port = address.rpartition(":")
        peer.socket = socket = self._context.socket(zmq.DEALER)
        curve.dial(socket, self._keys, peer.key, self._bounds)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._prepare(socket, LinkMonitor(socket, self._lost, rank))
        try:
            socket.connect(f"tcp://{_bracketed(host)}:{port}")
        except zmq.ZMQError as error:
            raise MeshError(f"cannot connect to {address}: {error.strerror}") from None
        self._say(peer, Kind.HELLO)

    def _prepare(self, socket: Socket, monitor: LinkMonitor) -> None:
        socket.setsockopt(zmq.SNDBUF, SEND_BUFFER)
        self._monitors.append(monitor)
        self._watched[monitor.socket] = monitor.look

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
        for source in self._sources(self._peers):
            while source.poll(0):
                rank, raw, frame = self._read(source)
                peer = self._peers[rank]
                if peer.ready:  # quicker than the others: it is through, and has begun
                    self._keep_early(peer, raw, frame)
                else:
                    self._greet(peer, raw)

    def _greet(self, peer: Peer, raw: bytes) -> None:
        hello = self._header(peer, raw)
        if hello != Header(Kind.HELLO, self.epoch, extra=peer.rank):
            raise self.fault(peer.rank, f"began with {hello}, in epoch {self.epoch}")
        peer.ready = True
        if peer.routing_id:
            self._say(peer, Kind.HELLO)

    def _header(self, peer: Peer, raw: bytes) -> Header:
        try:
            return unpack(raw)
        except ProtocolError as error:
            raise self.fault(peer.rank, f"sent {error.message}") from None

    def _say(self, peer: Peer, kind: Kind) -> None:
        self.send(peer.rank, pack(Header(kind, self.epoch, extra=self.rank)), b"")

    def _close_door(self) -> None:
        """From now on libzmq refuses whoever knocks. (To unbind would end the links we have.)"""
        if self._gate is not None:
            del self._watched[self._gate.socket]
            self._gate.close()

    # -- sending -------------------------------------------------------------------------------

    def send(self, rank: int, header: bytes, body: Body) -> None:
        """Send a message; it is copied, so the buffer may be used again at once."""
        peer = self._peers[rank]
        send = peer.socket.send  # type: ignore[union-attr]
        self.bytes_sent += len(header) + len(body)
        while True:
            try:
                if peer.routing_id:
                    send(peer.routing_id, MORE_NOW)
                send(header, MORE_NOW)
                send(body, NOW)
                return
            except zmq.ZMQError as error:
                self._judge_sending(peer, error)

    def _judge_sending(self, peer: Peer, error: zmq.ZMQError) -> None:
        """Wait a little where its pipe is full; raise where the board is gone."""
        if error.errno == zmq.EHOSTUNREACH:
            self._lost(peer.rank, "its connection ended")
        elif error.errno != zmq.EAGAIN:
            raise _closed(error) from None
        self._look(SEND_STEP_MS)
        if lost := self._lost_of((peer.rank,)):
            raise lost from None

    def bye(self) -> None:
        """Tell every board that the session is over; closing waits a moment for it to go out."""
        for peer in self._peers.values():
            if peer.ready and peer.socket is not None:
                self._say(peer, Kind.BYE)
                peer.socket.linger = FAREWELL_MS

    # -- receiving -----------------------------------------------------------------------------

    def receive(
        self, ranks: Collection[int], timeout_s: float | None = PATIENCE_S
    ) -> tuple[int, bytes, zmq.Frame]:
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
                raise BoardLostError(f"{name} sent nothing for {timeout_s:g} s", board=name)
            message = self._read(source)
            if message[0] in ranks:
                return message
            self._keep_early(self._peers[message[0]], *message[1:])

    def _sources(self, ranks: Collection[int]) -> list[Socket]:
        """The sockets that messages of these boards come by."""
        sockets = [self._peers[rank].socket or self._router for rank in ranks]
        return list(dict.fromkeys(socket for socket in sockets if socket is not None))

    def _ready(self, ranks: Collection[int], deadline: float | None) -> Socket | None:
        """The first of these boards' sockets with a message; None at the deadline."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look(0)
        items = [(source, zmq.POLLIN) for source in self._sources(ranks)]
        spin_until = now + self._spin_s
        while True:
            if ready := self._poll(items, 0):
                first: Socket = ready[0][0]
                return first
            if time.monotonic() >= spin_until:
                return self._sleep(items, ranks, deadline)

    def _sleep(self, items: Items, ranks: Collection[int], deadline: float | None) -> Socket | None:
        sources: list[Socket] = [socket for socket, _ in items]
        while True:
            wait_ms = -1 if deadline is None else _milliseconds(deadline - time.monotonic())
            watched = [(socket, zmq.POLLIN) for socket in self._watched]
            ready: list[Socket] = [s for s, _ in self._poll([*items, *watched], wait_ms)]
            if ready and ready[0] in sources:
                return ready[0]
            if not ready and wait_ms == 0:
                return None
            self._call(ready)
            if self._gone and (lost := self._lost_of(ranks)) and not self._poll(items, 0):
                raise lost  # and all it sent before has been taken

    def _look(self, wait_ms: int) -> None:
        """Hear what is reported of the boards and their links."""
        watched = [(socket, zmq.POLLIN) for socket in self._watched]
        self._call([socket for socket, _ in self._poll(watched, wait_ms)])

    def _call(self, ready: list[Socket]) -> None:
        for socket in ready:
            if callback := self._watched.get(socket):
                callback()

    @staticmethod
    def _poll(items: Items, wait_ms: int) -> Items:
        try:
            return zmq.zmq_poll(items, wait_ms)
        except zmq.ZMQError as error:
            raise _closed(error) from None

    def _read(self, source: Socket) -> tuple[int, bytes, zmq.Frame]:
        """One message, all of which is there. Raises BoardFaultError where it has other parts."""
        routing_id = source.recv(NOW) if source is self._router else b""
        frames = [source.recv(NOW, copy=False)]
        while frames[-1].more:
            frames = [*frames[:PARTS], source.recv(NOW, copy=False)]
        peer = self._sender(source, routing_id, frames[0])
        if len(frames) != 2 or len(frames[0]) != HEADER.size:
            raise self.fault(peer.rank, "sent a message that is not a header and a buffer")
        self.bytes_received += HEADER.size + len(frames[1])
        return peer.rank, frames[0].bytes, frames[1]

    def _sender(self, source: Socket, routing_id: bytes, frame: zmq.Frame) -> Peer:
        """Who proved the key of the connection; a routing id anybody can choose."""
        if source is not self._router:
            return next(peer for peer in self._peers.values() if peer.socket is source)
        peer = self._by_key[curve.sender_of(frame)]
        if not peer.routing_id:
            peer.routing_id, peer.socket = routing_id, source
            self._monitors[0].bind(int(frame.get(zmq.SRCFD)), peer.rank)
        if peer.routing_id != routing_id:
            raise self.fault(peer.rank, "connected twice")
        return peer

    def _keep_early(self, peer: Peer, raw: bytes, frame: zmq.Frame) -> None:
        if len(peer.early) >= 2 * self._bounds.messages:
            raise self.fault(peer.rank, f"sent {len(peer.early)} messages nobody asked for")
        peer.early.append((raw, frame))

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


def _milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))


def _closed(error: zmq.ZMQError) -> MeshError:
    return MeshError(f"the session's links are closed: {error.strerror}")
