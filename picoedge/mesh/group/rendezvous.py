"""How the boards of a session come together: CURVE first, then the streams that carry it.

Both ends prove their keys over a connection of ZeroMQ and CURVE, and say their rank and the
session's epoch; the one that listens then gives the other a ticket. From there on that connection
only beats, so that a board that is gone is missed within a second, whatever its threads do. The
ticket opens a stream, and all messages go over it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.group.failures import FailureBoard
from picoedge.mesh.group.tickets import Ticket, TicketListener
from picoedge.mesh.transport import curve, seal
from picoedge.mesh.transport.frames import HEADER, PADDING, PREFIX_BYTES, Header, Kind, pack, unpack
from picoedge.mesh.transport.monitor import LinkMonitor
from picoedge.mesh.transport.sealed_stream import ConnectionEnded, SealedStream

if TYPE_CHECKING:
    from picoedge.mesh.identity.keys import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket
    from picoedge.mesh.transport.waiter import Items, Waiter

ENTER_S = 5.0
GREETINGS = curve.SocketBounds(
    frame_bytes=1024, messages=16
)  # all that the first connection carries


@dataclass(eq=False)
class _Guest:
    """A board that is expected. `socket` is None until it is known how to reach it."""

    rank: int
    key: str
    host: str = ""  # where we connect to
    socket: Socket | None = None
    routing_id: bytes = b""  # on our ROUTER; empty for a board we connect to
    has_greeted: bool = False


class Rendezvous:
    """The first connections of the board of rank `rank`, and the `streams` they lead to, by rank.

    `most_bytes` are of a message on a stream. Methods raise what FailureBoard tells of.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        rank: int,
        epoch: int,
        most_bytes: int,
        waiter: Waiter,
        failures: FailureBoard,
        version: int,
    ) -> None:
        self._context, self._keys, self._most_bytes = context, keys, most_bytes
        self._rank, self._epoch, self._waiter, self._failures = rank, epoch, waiter, failures
        self._version = version
        self.streams: dict[int, SealedStream] = {}
        self._guests: dict[int, _Guest] = {}
        self._by_key: dict[str, _Guest] = {}
        self._router: Socket | None = None
        self._gate: curve.Authenticator | None = None
        self._entrance: TicketListener | None = None
        self._monitors: list[LinkMonitor] = []
        self._ciphers = seal.ciphers()

    def expect(self, rank: int, key: str) -> None:
        """Let the board with this public key in as `rank`."""
        assert rank not in (self._rank, *self._guests)
        assert key not in self._by_key
        self._guests[rank] = self._by_key[key] = _Guest(rank, key)

    def listen(self, host: str) -> int:
        """Take connections of the boards expected; gives the port. Raises MeshError."""
        assert self._router is None
        self._gate = curve.Authenticator(self._context, self._admits)
        self._waiter.watch(self._gate.socket, self._gate.answer)
        self._router = socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        curve.configure_server(socket, self._keys, GREETINGS)
        self._watch(socket, LinkMonitor(socket, self._failures.add))
        try:
            socket.bind(f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*")
            first = {rank: self._hello(rank) for rank in self._guests}
            self._entrance = TicketListener(host, first, self._most_bytes)
        except (OSError, zmq.ZMQError) as error:
            raise MeshError(f"cannot listen on {host}: {error.strerror}") from None
        return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def _admits(self, key: str) -> bool:
        guest = self._by_key.get(key)
        return guest is not None and guest.socket is None

    def connect(self, rank: int, address: str) -> None:
        """Connect to the listening board of that rank, expected before; address is HOST:PORT."""
        guest, to = self._guests[rank], parse_address(address)
        guest.host = to.host
        guest.socket = socket = self._context.socket(zmq.DEALER)
        curve.configure_client(socket, self._keys, guest.key, GREETINGS)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._watch(socket, LinkMonitor(socket, self._failures.add, rank))
        try:
            socket.connect(to.endpoint)
        except zmq.ZMQError as error:
            raise MeshError(f"cannot connect to {address}: {error.strerror}") from None
        socket.send(self._hello(self._rank) + bytes([self._ciphers]))

    def _hello(self, rank: int) -> bytes:
        return pack(Header(Kind.HELLO, self._epoch, extra=rank), self._version) + PADDING

    def _watch(self, socket: Socket, monitor: LinkMonitor) -> None:
        self._monitors.append(monitor)
        self._waiter.watch(monitor.socket, monitor.look)
        self._waiter.watch(socket, lambda: self._read(socket))

    # -- open ----------------------------------------------------------------------------------

    def open(self, timeout_s: float) -> None:
        """Return once every board expected is here and has said who it is; then nobody gets in.

        Raises BoardLostError naming one that is not there in time.
        """
        deadline = time.monotonic() + timeout_s

        def lost() -> BoardLostError | None:
            return self._failures.concerning(self._guests)

        if self._waiter.wait(self._are_all_here, self._arriving, deadline, lost) is None:
            missing = [self._failures.names[rank] for rank in self._guests.keys() - self.streams]
            raise BoardLostError(
                f"{', '.join(missing)} did not join the session within {timeout_s:g} s",
                "is it on, and do the boards reach each other?",
                board=missing[0],
            )
        self._close_doors()

    def _are_all_here(self) -> bool | None:
        if self._entrance is not None:
            self.streams.update(self._entrance.accepted())
        return len(self.streams) == len(self._guests) or None

    def _arriving(self) -> Items:
        files = self._entrance.files if self._entrance is not None else []
        return [(file, zmq.POLLIN) for file in files]

    def _read(self, socket: Socket) -> None:
        """Take in what boards say over their first connections."""
        while socket.poll(0):
            routing_id = socket.recv() if socket is self._router else b""
            frames = [socket.recv(copy=False)]
            while frames[-1].more:
                frames.append(socket.recv(copy=False))
            guest = self._sender(socket, routing_id, frames[0])
            message = frames[0].bytes
            if len(frames) > 1 or message[HEADER.size : PREFIX_BYTES] != PADDING:
                raise self._failures.fault(guest.rank, f"began with {len(frames)} frames")
            self._greet(guest, message[: HEADER.size], message[PREFIX_BYTES:])

    def _sender(self, source: Socket, routing_id: bytes, frame: zmq.Frame) -> _Guest:
        """Who proved the key of the connection; a routing id anybody can choose."""
        if source is not self._router:
            return next(guest for guest in self._guests.values() if guest.socket is source)
        guest = self._by_key[curve.sender_of(frame)]
        if not guest.routing_id:
            guest.routing_id, guest.socket = routing_id, source
            self._monitors[0].bind(int(frame.get(zmq.SRCFD)), guest.rank)
        if guest.routing_id != routing_id:
            raise self._failures.fault(guest.rank, "connected twice")
        return guest

    def _greet(self, guest: _Guest, raw: bytes, body: bytes) -> None:
        """A board's greeting: with its ciphers where it connected, else with our ticket."""
        try:
            hello = unpack(raw, versions=(self._version,))
            due = Header(Kind.HELLO, self._epoch, extra=guest.rank)
            if guest.has_greeted or hello != due:
                raise ProtocolError(f"{hello}, in epoch {self._epoch}")
            guest.has_greeted = True
            if guest.routing_id:
                self._give_ticket(guest, body)
            else:
                self._enter(guest, Ticket.from_bytes(body))
        except ProtocolError as error:
            raise self._failures.fault(guest.rank, f"began with {error.message}") from None

    def _give_ticket(self, guest: _Guest, body: bytes) -> None:
        assert self._router is not None
        assert self._entrance is not None
        cipher = seal.common(self._ciphers, seal.ciphers_from(body))
        ticket = self._entrance.ticket(guest.rank, cipher)
        answer = self._hello(self._rank) + ticket.to_bytes()
        try:
            self._router.send_multipart([guest.routing_id, answer], zmq.NOBLOCK)
        except zmq.ZMQError:
            self._failures.add(guest.rank, "its connection ended")

    def _enter(self, guest: _Guest, ticket: Ticket) -> None:
        try:
            stream = ticket.connect(guest.host, self._most_bytes, ENTER_S)
            self.streams[guest.rank] = stream
            stream.send(self._hello(self._rank))
        except (OSError, ConnectionEnded) as error:
            self._failures.add(guest.rank, f"its stream cannot be reached: {error}")

    def _close_doors(self) -> None:
        """From now on strangers are refused. (To unbind the ROUTER would end what it has.)"""
        for guest in self._guests.values():
            assert guest.socket is not None
            self._waiter.unwatch(guest.socket)
        if self._gate is not None:
            self._waiter.unwatch(self._gate.socket)
            self._gate.close()
        if self._entrance is not None:
            self._entrance.close()

    def close(self) -> None:
        """End the first connections, which both ends notice. Idempotent."""
        for monitor in self._monitors:
            monitor.close()
        sockets = {guest.socket for guest in self._guests.values()} | {self._router}
        for socket in sockets - {None}:
            socket.close()  # type: ignore[union-attr]  # None is taken away
        if self._gate is not None:
            self._gate.close()
        if self._entrance is not None:
            self._entrance.close()
