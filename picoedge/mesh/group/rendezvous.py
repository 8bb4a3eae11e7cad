"""Boards of a group connect, prove their keys over CURVE, and open the links between them.

Each pair has one CURVE connection; what happens over it is in peer_link.py. It stays open, and its
heartbeats tell within a second that a board is gone, whatever that board's threads do.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import BoardLostError, MeshError, ProtocolError
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.group.handed import handed_name
from picoedge.mesh.group.peer_link import (
    HELLO,
    BoardFaultError,
    FailureRule,
    LinkSettings,
    LinkState,
    PeerLink,
)
from picoedge.mesh.group.ticket_listener import TicketListener
from picoedge.mesh.transport import curve
from picoedge.mesh.transport.connection import (
    GOODBYE_MS,
    QUEUED_MESSAGES,
    Connection,
    ConnectionEnded,
    DealerConnection,
    Inbox,
    InboxGuard,
    RouterConnection,
    Transport,
)
from picoedge.mesh.transport.curve import LinkMonitor
from picoedge.mesh.transport.listening import ANY_PORT, bind_to, listen

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket

# Where the stream alone carries messages, a CURVE connection has the handshake to carry.
HANDSHAKE = curve.SocketBounds(1024, QUEUED_MESSAGES, bounds_received=False)
CURVE_BYTES = 33  # of a message: command name, flags, nonce and tag (RFC 26)


class Rendezvous:
    """The links of the board `own.rank`, by rank, and the connections of those that are open.

    `most_early` messages of a board are kept before they are taken. `rule` says whom a failure
    concerns; the first failure of a rank counts. To be polled: sockets that are `_watched`, each
    with a callback that empties it, and what `_joining` returns.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        own: LinkSettings,
        most_early: int,
        rule: FailureRule,
    ) -> None:
        self._context, self._keys, self._own, self._most_early = context, keys, own, most_early
        self._rule = rule
        self._links: dict[int, PeerLink] = {}
        self._by_key: dict[str, PeerLink] = {}
        self._connections: dict[int, Connection] = {}
        self._failures: dict[int, BoardLostError] = {}
        self._watched: dict[Socket, Callable[[], None]] = {}
        # Keys and routing ids of links that have ended, whose messages may still come.
        self._past: deque[tuple[str, bytes]] = deque(maxlen=own.limits.closed_routes)
        self._ending: list[tuple[float, PeerLink]] = []  # when (monotonic) to disconnect which
        self._bounds = HANDSHAKE
        if own.wish != "stream":
            self._bounds = dataclasses.replace(HANDSHAKE, frame_bytes=own.most_bytes + CURVE_BYTES)
        self._router: Socket | None = None
        self._router_monitor: LinkMonitor[PeerLink] | None = None
        self._authenticator: curve.Authenticator | None = None
        self._tickets: TicketListener | None = None
        self._dealers: dict[PeerLink, tuple[Socket, LinkMonitor[PeerLink]]] = {}
        self._guard = InboxGuard()
        self._inboxes: dict[int, Inbox] = {}  # of the ROUTER's connections, by descriptor

    # -- links ---------------------------------------------------------------------------------

    def add(self, rank: int, key: str, name: str) -> None:
        """Expect the board with this public key as `rank`; `name` is for people."""
        assert rank not in (self._own.rank, *self._links)
        assert key not in self._by_key
        self._links[rank] = self._by_key[key] = PeerLink(self._own, rank, key, name)

    def remove(self, rank: int) -> None:
        """End the link to a rank, and forget it. The other links stay."""
        link = self._links.pop(rank)
        del self._by_key[link.key]
        self._end(link)
        self._failures.pop(rank, None)

    def name(self, rank: int) -> str:
        """The name, for people, of the board of that rank."""
        return self._links[rank].name

    def key(self, rank: int) -> str:
        """The public key of the board of that rank."""
        return self._links[rank].key

    def state(self, rank: int) -> LinkState:
        """Progress of the link to that rank."""
        return self._links[rank].state

    def transports(self) -> dict[int, Transport]:
        """The transport of each open link, by rank."""
        return {rank: each.transport for rank, each in sorted(self._connections.items())}

    def unreachable(self) -> dict[int, str]:
        """Reasons why a stream could not be opened, by rank, where ZeroMQ is used in its place."""
        links = self._links.items()
        return {rank: link.unreachable for rank, link in links if link.unreachable}

    # -- beginning -----------------------------------------------------------------------------

    def listen(self, host: str, relay: str = "", ports: Sequence[int] = ANY_PORT) -> int:
        """Accept connections of expected boards; returns the port. Raises MeshError.

        Two of `ports` are taken: one for each transport.
        `relay` is the name of a Unix socket (abstract) at which a relay may connect for a board;
        beside it, streams may be handed on.
        """
        handed = handed_name(relay) if relay else ""
        assert self._router is None
        self._authenticator = curve.Authenticator(self._context, self._is_expected)
        self._watched[self._authenticator.socket] = self._admit
        self._router = socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        curve.configure_server(socket, self._keys, self._bounds)
        self._router_monitor = LinkMonitor(
            socket,
            self._lost,
            most_silent=self._own.limits.silent_connections,
            up=self._accepted,
        )
        self._watched[self._router_monitor.socket] = self._router_monitor.look
        try:
            port = bind_to(socket, listen(host, ports, curve.LISTEN_BACKLOG))
            if self._own.wish != "zeromq":
                self._tickets = TicketListener(
                    host, self._own.most_bytes, self._own.limits, ports, handed
                )
        except (OSError, zmq.ZMQError) as error:
            at = host if ports == ANY_PORT else f"ports {ports[0]} to {ports[-1]} of {host}"
            raise MeshError(f"cannot listen on {at}: {error.strerror}") from None
        if relay:
            with suppress(zmq.ZMQError):  # without it boards still come by the port
                socket.bind(f"ipc://@{relay}")
        return port

    def _admit(self) -> None:
        """Let a key in once its connection is guarded."""
        assert self._authenticator is not None
        assert self._router_monitor is not None
        self._router_monitor.look()
        self._authenticator.answer()

    def _accepted(self, file: int) -> None:
        self._inboxes[file] = self._inbox()
        self._guard.watch(self._inboxes[file], file)

    def _inbox(self) -> Inbox:
        return Inbox(self._bounds.messages * self._bounds.frame_bytes)

    def _is_expected(self, key: str) -> bool:
        link = self._by_key.get(key)
        return link is not None and link.proven is None

    def connect(self, rank: int, address: str, relay: str = "", daemon: str = "") -> None:
        """Connect to the listening board of that rank, added before; address is HOST:PORT.

        `relay` is the endpoint of a relay to that board through its daemon at `daemon`, to whose
        port a stream connects, too.
        """
        link, to = self._links[rank], parse_address(daemon if relay else address)
        socket = self._context.socket(zmq.DEALER)
        curve.configure_client(socket, self._keys, link.key, self._bounds)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        inbox = self._inbox()
        monitor = LinkMonitor(socket, self._lost, link, up=partial(self._guard.watch, inbox))
        self._dealers[link] = socket, monitor
        self._watched[monitor.socket] = monitor.look
        try:
            socket.connect(relay or to.endpoint)
        except zmq.ZMQError as error:
            raise MeshError(f"cannot connect to {address}: {error.strerror}") from None
        link.connects(DealerConnection(socket, inbox), to.host, to.port if relay else 0)

    # -- opening -------------------------------------------------------------------------------

    def _joining(self) -> tuple[list[tuple[Any, int]], float | None]:
        """Sockets to poll now, and when (time.monotonic) `_advance` is due at the latest."""
        files: list[Any] = self._tickets.files if self._tickets is not None else []
        if self._router is not None and self._authenticator is not None:
            files = [*files, self._router]
        joining = [link for link in self._links.values() if link.is_joining]
        items: list[tuple[Any, int]] = [(file, zmq.POLLIN) for file in files]
        items += [item for link in joining for item in link.items()]
        times = [at for at, _ in self._ending]
        return items, min(times + [at for link in joining if (at := link.due())], default=None)

    def _advance(self) -> None:
        """Take in what has come for links that are not open; disconnect those that have ended."""
        now = time.monotonic()
        for each in [each for each in self._ending if each[0] <= now]:
            self._ending.remove(each)
            if self._router_monitor is not None:
                self._router_monitor.disconnect(each[1])
        if self._authenticator is not None:
            self._pump()
        for rank, stream in self._tickets.accepted() if self._tickets is not None else ():
            self._links[rank].accept(stream)
        for link in list(self._links.values()):
            if link.is_joining:
                self._advance_link(link)
            if link.state is LinkState.OPEN and link.rank not in self._connections:
                self._opened(link)

    def _opened(self, link: PeerLink) -> None:
        assert link.connection is not None
        self._connections[link.rank] = link.connection
        if link in self._dealers:
            # Its messages may have come before the news of the connection was read, and from now on
            # a program may read nothing for hours: see that it is guarded.
            self._dealers[link][1].look()
        if link.connection is link.proven:
            socket = self._dealers[link][0] if link in self._dealers else self._router
            assert socket is not None
            socket.linger = GOODBYE_MS

    def _advance_link(self, link: PeerLink) -> None:
        try:
            return link.advance()
        except ProtocolError as error:
            self._fail(link.rank, self.fault(link.rank, f"began with {error.message}"))
        except ConnectionEnded as error:
            self._fail(link.rank, str(error))
        self._end(link)

    def _pump(self) -> None:
        """Give the messages that have come over the ROUTER to the connections they came over."""
        assert self._router is not None
        for _ in range(self._own.limits.link_messages_per_turn):
            try:
                routing_id = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                for inbox in self._inboxes.values():
                    inbox.emptied()
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
            assert self._router_monitor is not None
            self._router_monitor.look()
            file, most = int(frames[0].get(zmq.SRCFD)), self._most_early
            inbox = self._inboxes.get(file) or self._inbox()  # of one that has ended
            proven = RouterConnection(self._router, routing_id, self._pump, most, inbox)
            tickets = self._tickets
            hello = dataclasses.replace(self._own, rank=link.rank).message(HELLO)
            link.listens(proven, partial(tickets.ticket, link.rank, hello) if tickets else None)
            self._router_monitor.bind(file, link)
        if not isinstance(proven, RouterConnection) or proven.routing_id != routing_id:
            self._fail(link.rank, self.fault(link.rank, "connected twice"))
            return self._end(link)
        if link.connection in (None, proven):
            proven.put(frames)

    # -- trouble, and the end ------------------------------------------------------------------

    def fault(self, rank: int, what: str) -> BoardFaultError:
        """The error to raise where a board breaks the protocol."""
        name, key = self.name(rank), self.key(rank)
        hint = "update picoedge there; if that is not it, revoke its key"
        return BoardFaultError(f"{name} {what}", hint, board=name, key=key)

    def _fail(self, rank: int, why: str | BoardLostError) -> None:
        """Record that a board has failed."""
        if isinstance(why, str):
            name, key = self.name(rank), self.key(rank)
            why = BoardLostError(f"{name} is lost: {why}", board=name, key=key)
        self._failures.setdefault(rank, why)

    def _concerning(self, ranks: Collection[int]) -> BoardLostError | None:
        """The first failure that concerns a board waiting for `ranks`, by the rule."""
        failures = self._failures.items()
        return next((error for rank, error in failures if self._rule(rank, ranks)), None)

    def _lost(self, link: PeerLink, why: str) -> None:
        """A monitor reports that the connection of a link has ended."""
        if self._links.get(link.rank) is link:
            self._fail(link.rank, why)  # messages that came before may still be taken

    def _end(self, link: PeerLink) -> None:
        self._connections.pop(link.rank, None)
        if self._tickets is not None:
            self._tickets.revoke(link.rank)
        if isinstance(link.proven, RouterConnection) and link.state is not LinkState.ENDED:
            self._past.append((link.key, link.proven.routing_id))
            self._ending.append((time.monotonic() + GOODBYE_MS / 1000, link))
        if link in self._dealers:
            monitor = self._dealers.pop(link)[1]
            del self._watched[monitor.socket]
            monitor.close()
        link.end()

    def close_listener(self) -> None:
        """Refuse new connections. (To unbind the ROUTER would end those that it has.)"""
        if self._authenticator is not None:
            del self._watched[self._authenticator.socket]
            self._authenticator.close()
            self._authenticator = None
        if self._tickets is not None:
            self._tickets.close()
            self._tickets = None

    def close(self) -> None:
        """End all connections, which the other ends notice. Idempotent."""
        self._guard.close()
        for link in self._links.values():
            self._end(link)
        self._ending.clear()
        self.close_listener()
        if self._router is not None and self._router_monitor is not None:
            self._router_monitor.close()
            self._router.close()
