"""CURVE sockets: how they are configured, which keys may connect, and how a connection ended.

Every ZeroMQ socket of the mesh is configured here. A server admits a connection after its
`Authenticator` has looked up the client's key; each frame it receives then carries that key as
`User-Id` (RFC 26/CurveZMQ, RFC 27/ZAP). Events come from libzmq's socket monitor; they are read
here because pyzmq's own reader (`zmq.utils.monitor`) imports asyncio: 8 MB of every daemon and
worker.
"""

from __future__ import annotations

import socket as sockets
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import zmq
from zmq.utils import z85

from picoedge.mesh.identity.identity import KEY_BYTES

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair

    Context = zmq.Context[zmq.Socket[bytes]]
    Socket = zmq.Socket[bytes]

_T = TypeVar("_T")

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
DOMAIN = b"picoedge"
# Sent by libzmq's own thread, which neither a page fault nor a long kernel call blocks.
HEARTBEAT_MS = 250
SILENCE_MS = 1000  # without an answer for so long, the connection has ended
# Of connections without heartbeats of our own: the system notices a board that is gone.
KEEPALIVE_S, KEEPALIVES = 1, 3
HANDSHAKE_MS = 5000  # for the CURVE handshake: several round trips on the worst Wi-Fi
LISTEN_BACKLOG = 64  # connections the system accepts ahead of us: a cluster that starts at once

UP = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
DOWN: dict[int, str] = {
    zmq.EVENT_DISCONNECTED: "its connection ended",
    zmq.EVENT_CLOSED: "nothing listens at its address",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not let this board's key in",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "its key is not the one expected, or it is no board",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "its connection ended during the handshake",
}
_EVENT = struct.Struct("=Hi")
# tcpi_last_data_recv (ms ago) and tcpi_bytes_received in Linux' tcp_info
_RECEIVED = struct.Struct("=52xI72xQ")


@dataclass(frozen=True)
class SocketBounds:
    """Bounds of a socket's buffers: bytes of one frame, and messages queued in each direction.

    Where messages fill the queue of a program that does not read, libzmq reads no heartbeats
    either, and the connection ends: a sender must know how many may be on their way.
    """

    frame_bytes: int = 1 << 20
    messages: int = 256
    # libzmq 4.3.5 stops reading a connection whose messages fill the queue. If its peer then ends
    # it, libzmq drops it from its poll, and aborts the process (`!_io_error`, stream_engine_base)
    # with the next heartbeat it would send: one of its own, or an answer to one of the peer's among
    # the bytes it has read already. A socket of which any board could fill the queue bounds it not:
    # its program counts what comes over each connection (`Ration`, `InboxGuard`), and ends it.
    bounds_received: bool = True
    # A daemon sends no heartbeats, and cuts clients whose own do not come.
    heartbeats: bool = True


def configure_server(socket: Socket, keys: KeyPair, bounds: SocketBounds) -> None:
    """Make a socket the CURVE server of its connections; to be called before `bind`."""
    _configure(socket, bounds)
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    # Without an authenticator in the context every client is refused, where all would be admitted.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.BACKLOG, LISTEN_BACKLOG)


def configure_client(socket: Socket, keys: KeyPair, server: str, bounds: SocketBounds) -> None:
    """Make a socket the CURVE client of the board with public key `server`, before `connect`."""
    _configure(socket, bounds)
    socket.curve_serverkey = server.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()


def _configure(socket: Socket, bounds: SocketBounds) -> None:
    socket.linger = 0
    socket.sndhwm = bounds.messages
    socket.rcvhwm = bounds.messages if bounds.bounds_received else 0
    socket.setsockopt(zmq.MAXMSGSIZE, bounds.frame_bytes)
    if bounds.heartbeats:
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVES)
    socket.setsockopt(zmq.TCP_MAXRT, KEEPALIVE_S * (KEEPALIVES + 1) * 1000)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.IPV6, 1)


def connect_again(socket: Socket, endpoint: str) -> None:
    """Connect a socket whose connection failed, and that does not connect again by itself.

    libzmq 4.3.5 ignores a second `connect` to an endpoint that refused the first.
    """
    with suppress(zmq.ZMQError):
        socket.disconnect(endpoint)
    socket.connect(endpoint)


def receive_frames(socket: Socket) -> list[bytes] | None:
    """The next message of a client's socket; None if there is none.

    An `immediate` socket drops its unread messages when the connection ends. libzmq 4.3.5 looks for
    that every hundredth frame, and aborts the process if it is between two frames of a message; to
    ask for EVENTS has it look before the first. A connection that ends after that look takes its
    messages along, and the read finds none.
    """
    if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
        return None
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def sender_of(frame: zmq.Frame) -> str:
    """The public key (Z85) that was proven on the connection a frame came over."""
    return str(frame.get("User-Id"))


def received(descriptor: int) -> tuple[int, float]:
    """Bytes that a connection has received so far, and seconds since the last of them.

    Zeros if the system does not say.
    """
    try:
        with borrowed(descriptor) as connection:
            info = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _RECEIVED.size)
        silent_ms, nbytes = _RECEIVED.unpack(info)
        return nbytes, silent_ms / 1000
    except (OSError, struct.error):
        return 0, 0.0


class Authenticator:
    """Decides which keys may connect, for all servers of a context (which can have only one).

    `allowed` is called with a public key in Z85. Poll `socket`, and call `answer` when it is
    readable.
    """

    def __init__(self, context: Context, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ZAP_ENDPOINT)

    def answer(self) -> None:
        """Answer one ZAP request; libzmq makes one at each handshake."""
        version, sequence, domain, _, _, mechanism, *credentials = self.socket.recv_multipart()
        status = b"400", b"unknown key", b""
        is_curve = (version, domain, mechanism) == (ZAP_VERSION, DOMAIN, b"CURVE")
        if is_curve and list(map(len, credentials)) == [KEY_BYTES]:
            key = z85.encode(credentials[0])
            if self._allowed(key.decode()):
                status = b"200", b"OK", key
        self.socket.send_multipart([ZAP_VERSION, sequence, *status, b""])

    def close(self) -> None:
        """Stop answering: no further connection is admitted. Idempotent."""
        if not self.socket.closed:
            self.socket.unbind(ZAP_ENDPOINT)  # frees the name at once; `close` does so later
        self.socket.close()


@contextmanager
def borrowed(descriptor: int) -> Iterator[sockets.socket]:
    """libzmq's descriptor as a socket. (`dup` would need a free one, and there may be none.)"""
    connection = sockets.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def shut_down(descriptor: int) -> None:
    """Shut down a connection, for which a ROUTER has no call; libzmq then finds it closed."""
    with suppress(OSError), borrowed(descriptor) as connection:
        connection.shutdown(sockets.SHUT_RDWR)


def events(monitor: Socket) -> Iterator[tuple[int, int]]:
    """The events that are there, each with its value: a file descriptor or an error number."""
    while not monitor.closed:
        try:
            frames = monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        event, value = _EVENT.unpack(frames[0])
        yield event, value


def close_monitored(socket: Socket, monitor: Socket) -> None:
    """Close a socket and its monitor. Idempotent."""
    if not socket.closed:
        socket.disable_monitor()
        monitor.close()
        socket.close()


class LinkMonitor(Generic[_T]):
    """Watches a socket's connections and calls `lost(link, why)` for each that ends.

    A socket that connects has one connection, that of `link`. A socket that listens has several,
    told apart by their file descriptors (`bind`). The kernel reuses descriptors, so events are
    followed in order. At most `most_silent` of these may belong to no link yet; the oldest makes
    room. `up(descriptor)` is called for each that begins. Poll `socket`, and call `look` when it is
    readable.
    """

    def __init__(
        self,
        watched: Socket,
        lost: Callable[[_T, str], None],
        link: _T | None = None,
        most_silent: int = 0,
        up: Callable[[int], None] = lambda descriptor: None,
    ) -> None:
        self._watched, self._lost, self._link, self._up = watched, lost, link, up
        self._most_silent = most_silent
        self._links: dict[int, _T] = {}  # by descriptor
        self._silent: dict[int, None] = {}  # descriptors of no link, oldest first
        self.socket: Socket = watched.get_monitor_socket(UP | sum(DOWN))

    def bind(self, descriptor: int, link: _T) -> None:
        """Say that the connection with this file descriptor is that of `link`."""
        self.look()
        if descriptor in self._silent:
            del self._silent[descriptor]
            self._links[descriptor] = link
        else:
            self._lost(link, DOWN[zmq.EVENT_DISCONNECTED])

    def look(self) -> None:
        """Read the events that are there; passes on what `lost` raises."""
        for event, descriptor in events(self.socket):
            if event & UP:
                self._up(descriptor)
            if self._link is not None:
                if event in DOWN:
                    self._lost(self._link, DOWN[event])
            elif event & UP:
                self._silent[descriptor] = None
                if len(self._silent) > self._most_silent:
                    shut_down(next(iter(self._silent)))
            elif event == zmq.EVENT_DISCONNECTED:  # others carry an error, not a descriptor
                self._silent.pop(descriptor, None)
                if (link := self._links.pop(descriptor, None)) is not None:
                    self._lost(link, DOWN[event])

    def disconnect(self, link: _T) -> None:
        """Shut down the connection of a link, if it still stands."""
        self.look()
        for descriptor, each in self._links.items():
            if each is link:
                shut_down(descriptor)

    def close(self) -> None:
        """Stop watching. To be called before the watched socket is closed. Idempotent."""
        if not self.socket.closed:
            self._watched.disable_monitor()
            self.socket.close(0)
