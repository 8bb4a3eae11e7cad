"""Boards of a group connect, prove their keys over CURVE, and open the links between them.

Each pair has one CURVE connection; what happens over it is in peer_link.py. It stays open, and its
heartbeats tell within a second that a board is gone, whatever that board's threads do.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.group.peer_link import HELLO, FailureLog, LinkSettings, LinkState, PeerLink
from picoedge.mesh.group.ticket_listener import TicketListener
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.connection import (
    GOODBYE_MS,
    QUEUED_MESSAGES,
    Connection,
    ConnectionEnded,
    DealerConnection,
    RouterConnection,
)
from picoedge.mesh.transport.curve import LinkMonitor

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket
    from picoedge.mesh.transport.waiter import Items, Waiter

# Where the stream alone carries messages, a CURVE connection has the handshake to carry.
HANDSHAKE = curve.SocketBounds(1024, QUEUED_MESSAGES)
CURVE_BYTES = 33  # of a message: command name, flags, nonce and tag (RFC 26)


class Rendezvous:
    """The links of the board `own.rank`, and the `connections` of those that are open, by rank.

    `most_early` messages of a board are kept before they are taken. A PollSource.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        own: LinkSettings,
        most_early: int,
        waiter: Waiter,
        failures: FailureLog,
    ) -> None:
        self._context, self._keys, self._own, self._most_early = context, keys, own, most_early
        self._waiter, self._failures = waiter, failures
        self.links: dict[int, PeerLink] = {}
        self.connections: dict[int, Connection] = {}
        self._by_key: dict[str, PeerLink] = {}
        self._by_serial: dict[int, PeerLink] = {}  # so that no old connection stands for a new link
        self._serial = 0
        # Keys and routing ids of links that have ended, whose messages may still come.
        self._past: deque[tuple[str, bytes]] = deque(maxlen=own.limits.closed_routes)
        self._ending: list[tuple[float, int]] = []  # when (monotonic) to disconnect which serial
        self._bounds = HANDSHAKE
        if own.wish != "stream":
            self._bounds = dataclasses.replace(HANDSHAKE, frame_bytes=own.most_bytes + CURVE_BYTES)
        self._router: Socket | None = None
        self._router_monitor: LinkMonitor | None = None
        self._authenticator: curve.Authenticator | None = None
        self._tickets: TicketListener | None = None
        self._dealers: dict[PeerLink, tuple[Socket, LinkMonitor]] = {}

    # -- links ---------------------------------------------------------------------------------

    def add(self, rank: int, key: str) -> None:
        """Expect the board with this public key as `rank`."""
        assert rank not in (self._own.rank, *self.links)
        assert key not in self._by_key
        link = PeerLink(self._own, rank, key)
        self.links[rank] = self._by_key[key] = link
        if self._tickets is not None:
            self._tickets.expect(rank, self._hello_of(rank))
        self._waiter.add_source(self)

    def remove(self, rank: int) -> None:
        """End the link to that rank; the others stay."""
        link = self.links.pop(rank)
        del self._by_key[link.key]
        self._end(link)

    def listen(self, host: str, relay: str = "") -> int:
        """Accept connections of expected boards; returns the port. Raises MeshError.

        `relay` is the name of a Unix socket (abstract) at which a relay may connect for a board.
        """
        assert self._router is None
        self._authenticator = curve.Authenticator(self._context, self._is_expected)
        self._waiter.watch(self._authenticator.socket, self._authenticator.answer)
        self._router = socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        curve.configure_server(socket, self._keys, self._bounds)
        self._router_monitor = LinkMonitor(
            socket, self._lost, most_silent=self._own.limits.silent_connections
        )
        self._waiter.watch(self._router_monitor.socket, self._router_monitor.look)
        try:
            socket.bind(f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*")
            if self._own.wish != "zeromq":
                first = {rank: self._hello_of(rank) for rank in self.links}
                self._tickets = TicketListener(host, first, self._own.most_bytes, self._own.limits)
        except (OSError, zmq.ZMQError) as error:
            raise MeshError(f"cannot listen on {host}: {error.strerror}") from None
        port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        if relay and self._own.wish != "stream":
            with suppress(zmq.ZMQError):  # without it boards still come by the port
                socket.bind(f"ipc://@{relay}")
        return port

    def _hello_of(self, rank: int) -> bytes:
        return dataclasses.replace(self._own, rank=rank).message(HELLO)

    def _is_expected(self, key: str) -> bool:
        link = self._by_key.get(key)
        return link is not None and link.proven is None

    def connect(self, rank: int, address: str, relay: str = "") -> None:
        """Connect to the listening board of that rank, added before; address is HOST:PORT.

        `relay` is the endpoint of a relay to that board: ZeroMQ then carries the messages.
        """
        link, to = self.links[rank], parse_address(address)
        if relay:
            assert self._own.wish != "stream"
            link.own = dataclasses.replace(self._own, wish="zeromq")
        socket = self._context.socket(zmq.DEALER)
        curve.configure_client(socket, self._keys, link.key, self._bounds)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        monitor = LinkMonitor(socket, self._lost, self._number(link))
        self._dealers[link] = socket, monitor
        self._waiter.watch(monitor.socket, monitor.look)
        try:
            socket.connect(relay or to.endpoint)
        except zmq.ZMQError as error:
            raise MeshError(f"cannot connect to {address}: {error.strerror}") from None
        link.connects(DealerConnection(socket), to.host)

    def _number(self, link: PeerLink) -> int:
        self._serial += 1
        self._by_serial[self._serial] = link
        return self._serial

    # -- opening -------------------------------------------------------------------------------

    def open(self, deadline: float, ranks: Collection[int] = ()) -> list[int]:
        """Wait until the links to these ranks are open; returns those that are not in time.

        Raises what the failures of those ranks are.
        """
        awaited = set(ranks)

        def moved() -> bool | None:
            return self._advance() or awaited <= self.connections.keys() or None

        def failed() -> BoardLostError | None:
            return self._failures.concerning(awaited)

        while not awaited <= self.connections.keys():
            if self._waiter.wait(moved, lambda: (), deadline, failed) is None:
                break
        return sorted(awaited - self.connections.keys())

    def items(self) -> Items:
        """See PollSource."""
        files = self._tickets.files if self._tickets is not None else []
        items: list[tuple[Any, int]] = [(file, zmq.POLLIN) for file in files]
        if self._router is not None and self._authenticator is not None:
            items.append((self._router, zmq.POLLIN))
        for link in self.links.values():
            items += link.items()
        return items

    def due(self) -> float | None:
        """See PollSource."""
        ending = [at for at, _ in self._ending]
        joining = [at for link in self.links.values() if (at := link.due())]
        return min(ending + joining, default=None)

    def handle(self) -> None:
        """See PollSource."""
        now = time.monotonic()
        for each in [each for each in self._ending if each[0] <= now]:
            self._ending.remove(each)
            if self._router_monitor is not None:
                self._router_monitor.disconnect(each[1])
        self._advance()

    def _advance(self) -> bool:
        """Take in what has come for links that are not open; True where that was something."""
        moved = False
        if self._authenticator is not None:
            self._pump()
        if self._tickets is not None:
            for rank, stream in self._tickets.accepted():
                self.links[rank].accept(stream)
                moved = True
        for link in list(self.links.values()):
            if link.state in (LinkState.EXPECTED, LinkState.GREETED):
                moved |= self._advance_link(link)
            if link.state is LinkState.OPEN and link.rank not in self.connections:
                self._opened(link)
        return moved

    def _opened(self, link: PeerLink) -> None:
        assert link.connection is not None
        self.connections[link.rank] = link.connection
        if link.connection is link.proven:
            socket = self._dealers[link][0] if link in self._dealers else self._router
            assert socket is not None
            socket.linger = GOODBYE_MS

    def _advance_link(self, link: PeerLink) -> bool:
        try:
            return link.advance()
        except ProtocolError as error:
            fault = self._failures.fault(link.rank, f"began with {error.message}")
            self._failures.add_error(link.rank, fault)
        except ConnectionEnded as error:
            self._failures.add(link.rank, str(error))
        self._end(link)
        return True

    def _pump(self) -> None:
        """Give the messages that have come over the ROUTER to the connections they came over."""
        assert self._router is not None
        for _ in range(self._own.limits.link_messages_per_turn):
            try:
                routing_id = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frames = [self._router.recv(copy=False)]
            while frames[-1].more:
                frames.append(self._router.recv(copy=False))
            self._dispatch(routing_id, frames)

    def _dispatch(self, routing_id: bytes, frames: list[zmq.Frame]) -> None:
        """A peer is known by the key that it proved: any peer can choose its routing id."""
        link = self._by_key.get(curve.sender_of(frames[0]))
        if link is None or link.state is LinkState.ENDED:
            return
        if (link.key, routing_id) in self._past:
            return
        proven = link.proven
        if proven is None:
            assert self._router is not None
            most = self._most_early
            proven = RouterConnection(self._router, routing_id, self._pump, most)
            tickets = self._tickets
            link.listens(proven, partial(tickets.ticket, link.rank) if tickets else None)
            assert self._router_monitor is not None
            self._router_monitor.bind(int(frames[0].get(zmq.SRCFD)), self._number(link))
        if not isinstance(proven, RouterConnection) or proven.routing_id != routing_id:
            fault = self._failures.fault(link.rank, "connected twice")
            self._failures.add_error(link.rank, fault)
            return self._end(link)
        if link.connection in (None, proven):
            proven.put(frames)

    # -- the end -------------------------------------------------------------------------------

    def _lost(self, serial: int, why: str) -> None:
        """A monitor reports that the connection of a link has ended."""
        link = self._by_serial.pop(serial, None)
        if link is not None and self.links.get(link.rank) is link:
            self._failures.add(link.rank, why)  # messages that came before may still be taken

    def end(self, rank: int) -> None:
        """Close the connection of a link that has failed."""
        if (link := self.links.get(rank)) is not None:
            self._end(link)

    def _end(self, link: PeerLink) -> None:
        self.connections.pop(link.rank, None)
        if self._tickets is not None:
            self._tickets.revoke(link.rank)
        if isinstance(link.proven, RouterConnection) and link.state is not LinkState.ENDED:
            self._past.append((link.key, link.proven.routing_id))
            number = next((n for n, each in self._by_serial.items() if each is link), 0)
            self._ending.append((time.monotonic() + GOODBYE_MS / 1000, number))
            self._waiter.add_source(self)
        if link in self._dealers:
            monitor = self._dealers.pop(link)[1]
            self._waiter.unwatch(monitor.socket)
            monitor.close()
        link.end()

    def close_listener(self) -> None:
        """Refuse new connections. (To unbind the ROUTER would end those that it has.)"""
        if self._authenticator is not None:
            self._waiter.unwatch(self._authenticator.socket)
            self._authenticator.close()
            self._authenticator = None
        if self._tickets is not None:
            self._tickets.close()
            self._tickets = None
        if not self._ending and all(link.state is LinkState.OPEN for link in self.links.values()):
            self._waiter.remove_source(self)

    def close(self) -> None:
        """End all connections, which the other ends notice. Idempotent."""
        for link in self.links.values():
            self._end(link)
        self._ending.clear()
        self.close_listener()
        if self._router is not None and self._router_monitor is not None:
            self._router_monitor.close()
            self._router.close()
