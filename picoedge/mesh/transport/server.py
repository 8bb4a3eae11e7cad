"""The daemon's server socket: who is connected over which connection, and how one is ended.

libzmq tells the monitor of each connection's file descriptor, and each frame says over which one
it came. Both together tell when an sender is gone, and let a single connection be cut, for which
a ROUTER has no call of its own.
"""

from __future__ import annotations

import contextlib
import socket as sockets
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import MeshError
from picoedge.mesh.addresses import Address
from picoedge.mesh.transport.curve import Authenticator, SocketBounds, configure_server, sender_of
from picoedge.mesh.transport.monitor import read_event

if TYPE_CHECKING:
    from picoedge.mesh.identity.keys import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket

CONTROL = SocketBounds(frame_bytes=1 << 20, messages=64)
PENDING = 64  # connections that have not said anything yet
PENDING_S = 10.0
PENDING_BYTES = 64 << 10
BYTES_PER_SWEEP = 4 << 20
CONNECTIONS_PER_KEY = 32
CLOSED_ROUTES = 512  # libzmq numbers routes: none comes again soon
_WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_RECEIVED = struct.Struct("=128xQ")  # tcpi_bytes_received in Linux' tcp_info

Frames = list[Any]  # bytes, or what offers the buffer protocol


class Sender(str):
    """A public key, and the connection (`route`) over which its board asks.

    A board may have several at once: its daemon, and the sessions typed there.
    """

    route: bytes
    host: str  # the address it was seen to come from

    def __new__(cls, key: str, route: bytes, host: str) -> Sender:
        sender = super().__new__(cls, key)
        sender.route = route
        sender.host = host
        return sender


@dataclass(frozen=True)
class Request:
    """One message and who sent it; `key` was proven, `route` names the connection."""

    sender: Sender
    frames: list[bytes]


@dataclass
class _Connection:
    """An accepted connection; `sender` is who speaks over it, once it has spoken."""

    since_s: float
    sender: Sender | None = None
    received_bytes: int = 0


class Server:
    """A ROUTER bound to `address`, with its Authenticator. Raises MeshError if it cannot bind."""

    def __init__(
        self, context: Context, keys: KeyPair, address: Address, allowed: Callable[[str], bool]
    ) -> None:
        self._connections: dict[int, _Connection] = {}
        self._files: dict[bytes, int] = {}
        self._gone: list[Sender] = []
        self._closed: deque[bytes] = deque(maxlen=CLOSED_ROUTES)
        self._refused: dict[str, float] = {}
        self._allowed = allowed
        self._now_s = 0.0
        self.gate = Authenticator(context, self._admits)
        self.socket: Socket = context.socket(zmq.ROUTER)
        self.socket.router_mandatory = True
        configure_server(self.socket, keys, CONTROL)
        self.monitor = self.socket.get_monitor_socket(_WATCHED)
        try:
            self.socket.bind(address.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise _unbound(address, error) from None
        self.address = Address(address.host, self._port())

    @property
    def senders(self) -> list[Sender]:
        """Everyone who is connected and has spoken."""
        return [each.sender for each in self._connections.values() if each.sender is not None]

    def receive(self) -> Request | None:
        """The next message of whoever is still connected; None when there is none."""
        while True:
            try:
                route, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            self._watch()
            host = str(route.get("Peer-Address")).removeprefix("::ffff:")
            sender = Sender(sender_of(route), route.bytes, host)
            if self._knows(sender, int(str(route.get("__fd")))):
                return Request(sender, [frame.bytes for frame in frames])

    def send(self, sender: Sender, frames: Frames) -> bool:
        """Send without waiting. False: the sender is gone, or was cut because it reads nothing."""
        try:
            self.socket.send_multipart([sender.route, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self.cut(sender)
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def cut(self, sender: Sender, refuse_s: float = 0.0) -> None:
        """End the connection of an sender, and let its key in again only after `refuse_s`."""
        if refuse_s:
            self._refused[str(sender)] = self._now_s + refuse_s
        file = self._files.get(sender.route)
        if file is not None:
            self._shut(file)

    def cut_all(self, key: str) -> None:
        """End every connection of a key."""
        for sender in self.senders:
            if sender == key:
                self.cut(sender)

    def gone(self, now_s: float) -> list[Sender]:
        """Take note of who came and went; the senders who went since the last call."""
        self._now_s = now_s
        self._watch()
        gone, self._gone = self._gone, []
        return gone

    def enforce_limits(self) -> list[Sender]:
        """Cut who only connects, and who sends more than is believed; the latter are named."""
        flooding: list[Sender] = []
        excess = self._excess()
        for file, connection in list(self._connections.items()):
            received = _bytes_received(file)
            more = received - connection.received_bytes
            connection.received_bytes = received
            if connection.sender is not None and more > BYTES_PER_SWEEP:
                flooding.append(connection.sender)
            if file in excess or (connection.sender is None and self._is_idle(connection)):
                self._shut(file)
        return flooding

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close()
        self.socket.close()
        self.gate.close()

    def _admits(self, key: str) -> bool:
        return self._refused.get(key, 0.0) <= self._now_s and self._allowed(key)

    def _watch(self) -> None:
        """Read what the monitor has: before any message that came over a connection it tells of."""
        while (happened := read_event(self.monitor)) is not None:
            event, file = happened
            self._forget(file)
            if event == zmq.EVENT_ACCEPTED:
                self._connections[file] = _Connection(self._now_s)

    def _forget(self, file: int) -> None:
        connection = self._connections.pop(file, None)
        if connection is not None and connection.sender is not None:
            del self._files[connection.sender.route]
            self._closed.append(connection.sender.route)
            self._gone.append(connection.sender)

    def _knows(self, sender: Sender, file: int) -> bool:
        """Whether the connection still stands; what it left in the queue is not believed."""
        if self._files.get(sender.route) == file:
            return True
        connection = self._connections.get(file)
        if connection is None or connection.sender is not None or sender.route in self._closed:
            return False
        connection.sender = sender
        self._files[sender.route] = file
        return True

    def _excess(self) -> set[int]:
        """The oldest of too many missing, and the newest of too many of one key."""
        files = list(self._connections.items())
        silent = [file for file, each in files if each.sender is None]
        excess = set(silent[: max(0, len(silent) - PENDING)])
        seen: Counter[str] = Counter()
        for file, each in files:
            seen[str(each.sender)] += each.sender is not None
            if seen[str(each.sender)] > CONNECTIONS_PER_KEY:
                excess.add(file)
        return excess

    def _is_idle(self, connection: _Connection) -> bool:
        """A stranger that has had its time, or sends much and says nothing."""
        late = self._now_s - connection.since_s > PENDING_S
        return late or connection.received_bytes > PENDING_BYTES

    def _shut(self, file: int) -> None:
        """Shut a connection of ours down; libzmq then finds it closed."""
        with contextlib.suppress(OSError), _borrowed(file) as connection:
            # The number may by now be another file's: only what came in through this server.
            if connection.getsockname()[1] == self.address.port and connection.getpeername():
                connection.shutdown(sockets.SHUT_RDWR)

    def _port(self) -> int:
        return int(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])


@contextlib.contextmanager
def _borrowed(file: int) -> Iterator[sockets.socket]:
    """libzmq's connection as a socket; without a descriptor more, of which there may be none."""
    connection = sockets.socket(fileno=file)
    try:
        yield connection
    finally:
        connection.detach()


def _bytes_received(file: int) -> int:
    """What a connection has received so far; 0 where the system does not say."""
    try:
        with _borrowed(file) as connection:
            info = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _RECEIVED.size)
        return int(_RECEIVED.unpack(info)[0])
    except (OSError, struct.error):
        return 0


def _unbound(address: Address, error: zmq.ZMQError) -> MeshError:
    if error.errno == zmq.EADDRINUSE:
        hint = "is `picoedge run` running already? Or choose another with --listen HOST:PORT"
        return MeshError(f"{address} is in use by another program", hint)
    return MeshError(f"cannot listen on {address}: {error.strerror}", "see --listen HOST:PORT")
