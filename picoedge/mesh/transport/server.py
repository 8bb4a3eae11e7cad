"""The daemon's ROUTER socket: its connections, their limits, and how a single one is closed.

libzmq's monitor reports the file descriptor of each connection, and each frame says over which
descriptor it came. Together they show when a sender has gone, and let one connection be shut
down, for which a ROUTER has no call.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket as sockets
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import MeshError
from picoedge.mesh.addresses import Address
from picoedge.mesh.transport.curve import (
    LISTEN_BACKLOG,
    Authenticator,
    SocketBounds,
    borrowed,
    close_monitored,
    configure_server,
    events,
    received,
    sender_of,
)
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.listening import bind_to, listen_twice
from picoedge.mesh.transport.strikes import Ration

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair
    from picoedge.mesh.transport.curve import Context, Socket

_WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_PAUSE_S = 0.6  # between two calls of `enforce_limits`: this process has stood still

Frames = list[Any]  # bytes, or objects with the buffer protocol


class Sender(str):
    """The public key of a client, with the connection (`route`) it uses and its IP (`host`).

    One board may have several connections: one each for its daemon, sessions and commands.
    """

    route: bytes
    host: str

    def __new__(cls, key: str, route: bytes, host: str) -> Sender:
        sender = super().__new__(cls, key)
        sender.route = route
        sender.host = host
        return sender


@dataclass
class _Accepted:
    """A connection; `sender` is set by its first message."""

    since_s: float
    sender: Sender | None = None
    received_bytes: int = 0
    is_bulk: bool = False


class Server:
    """A ROUTER bound to `address`, with its Authenticator. Raises MeshError if it cannot bind.

    `allowed(key)` says whether a key may connect.
    """

    def __init__(
        self,
        context: Context,
        keys: KeyPair,
        address: Address,
        allowed: Callable[[str], bool],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._limits = limits
        self._accepted: dict[int, _Accepted] = {}  # by file descriptor
        self._files: dict[bytes, int] = {}  # route to descriptor
        self._gone: list[Sender] = []
        self._closed: deque[bytes] = deque(maxlen=limits.closed_routes)
        self._refused: dict[str, float] = {}  # key to the end of its refusal
        # Of each key and kind of connection.
        self._ration: Ration[tuple[str, bool]] = Ration(limits.burst_bytes)
        self._allowed = allowed
        self._now_s = self._enforced_s = 0.0
        self.marked: sockets.socket | None = None  # of this port, for connections that are marked
        self.authenticator = Authenticator(context, self._admits)
        self.socket: Socket = context.socket(zmq.ROUTER)
        self.socket.router_mandatory = True
        bounds = SocketBounds(
            limits.frame_bytes, limits.queued_messages, bounds_received=False, heartbeats=False
        )
        configure_server(self.socket, keys, bounds)
        self.monitor = self.socket.get_monitor_socket(_WATCHED)
        try:
            listener, self.marked = listen_twice(address.host, address.port, LISTEN_BACKLOG)
            self.address = Address(address.host, bind_to(self.socket, listener))
        except (OSError, zmq.ZMQError) as error:
            self.close()
            raise _bind_error(address, error) from None

    def receive(self) -> tuple[Sender, list[bytes]] | None:
        """The next message of a connection that still stands; None if there is none."""
        while True:
            try:
                route, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            self._read_monitor()
            host = str(route.get("Peer-Address")).removeprefix("::ffff:")
            sender = Sender(sender_of(route), route.bytes, host)
            if self._is_connected(sender, int(str(route.get("__fd")))):
                return sender, [frame.bytes for frame in frames]

    def send(self, sender: Sender, frames: Frames, is_droppable: bool = False) -> bool:
        """Send without waiting. False: the connection has ended, or reads nothing.

        A connection that reads nothing is ended, but for a message that `is_droppable`.
        """
        try:
            self.socket.send_multipart([sender.route, *frames], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            if not is_droppable:
                self.disconnect(sender)
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def disconnect(self, sender: Sender, refuse_s: float = 0.0) -> None:
        """Close a sender's connection, and refuse its key for `refuse_s` seconds."""
        if refuse_s:
            self._refused[str(sender)] = self._now_s + refuse_s
        file = self._files.get(sender.route)
        if file is not None:
            self._shut_down(file)

    def disconnect_key(self, key: str) -> None:
        """Close every connection of a key."""
        for file, each in self._accepted.items():
            if each.sender == key:
                self._shut_down(file)

    def take_gone(self, now_s: float) -> list[Sender]:
        """Senders whose connections ended since the last call; `now_s` is the time from now on."""
        self._now_s = now_s
        self._read_monitor()
        gone, self._gone = self._gone, []
        return gone

    def allow_bulk(self, sender: Sender) -> None:
        """Expect `bulk_bytes_per_s` over the connection of a sender, whose pace is its relay's."""
        file = self._files.get(sender.route)
        if file is not None:
            self._accepted[file].is_bulk = True

    def enforce_limits(self, now_s: float, is_daemon: Callable[[Sender], bool]) -> None:
        """Close connections that never spoke, are too many, or whose heartbeats ended.

        `is_daemon`: whether a connection is that of a board's daemon, whose heartbeats are judged
        elsewhere. To be called once per heartbeat, at the time `now_s`; late calls allow for the
        delay.
        """
        passed_s, self._enforced_s = now_s - self._enforced_s, now_s
        self._refused = {key: end_s for key, end_s in self._refused.items() if end_s > now_s}
        # After a pause of this process or board, its clients have not been silent.
        longest_s = math.inf if passed_s > _PAUSE_S else self._limits.client_silence_s
        closed = self._excess()
        for file, each in self._accepted.items():
            nbytes, silent_s = received(file)
            if each.sender is None:
                closed |= {file} if self._is_idle(each, nbytes) else set()
            elif silent_s > longest_s and not is_daemon(each.sender):
                closed.add(file)
        for file in closed:
            self._shut_down(file)

    def end_floods(self, now_s: float) -> list[Sender]:
        """Close connections of keys that send more than is believed, refuse these for a while, and
        return their senders; to be called often while messages come.

        Bytes are counted as they arrive: nothing else bounds the queue.
        """
        limits = self._limits
        counted: dict[tuple[str, bool], tuple[int, int]] = {}
        for file, each in self._accepted.items():
            if each.sender is not None:
                nbytes, _ = received(file)
                more, each.received_bytes = nbytes - each.received_bytes, nbytes
                kind = str(each.sender), each.is_bulk
                rate = limits.bulk_bytes_per_s if each.is_bulk else limits.bytes_per_s
                counted[kind] = counted.get(kind, (0, 0))[0] + more, rate
        over = {key for key, _ in self._ration.over(counted, now_s)}
        found = [each.sender for each in self._accepted.values() if each.sender in over]
        senders = [sender for sender in found if sender is not None]
        for sender in senders:
            self.disconnect(sender, limits.flood_s)
        return senders

    def close(self) -> None:
        """Close all sockets. Idempotent."""
        close_monitored(self.socket, self.monitor)
        self.authenticator.close()
        if self.marked is not None:
            self.marked.close()

    def _admits(self, key: str) -> bool:
        return self._refused.get(key, 0.0) <= self._now_s and self._allowed(key)

    def _read_monitor(self) -> None:
        """Read all events; to be done before a message of a connection they report is judged."""
        for event, file in events(self.monitor):
            self._forget(file)
            if event == zmq.EVENT_ACCEPTED:
                self._accepted[file] = _Accepted(self._now_s)

    def _forget(self, file: int) -> None:
        connection = self._accepted.pop(file, None)
        if connection is not None and connection.sender is not None:
            del self._files[connection.sender.route]
            self._closed.append(connection.sender.route)
            self._gone.append(connection.sender)

    def _is_connected(self, sender: Sender, file: int) -> bool:
        """Whether the connection still stands; messages left in the queue of one are ignored."""
        if self._files.get(sender.route) == file:
            return True
        connection = self._accepted.get(file)
        if connection is None or connection.sender is not None or sender.route in self._closed:
            return False
        connection.sender = sender
        self._files[sender.route] = file
        return True

    def _excess(self) -> set[int]:
        """Descriptors above the limits: the oldest silent ones, and the newest of each key."""
        files = list(self._accepted.items())
        silent = [file for file, each in files if each.sender is None]
        excess = set(silent[: max(0, len(silent) - self._limits.silent_connections)])
        seen: Counter[str] = Counter()
        for file, each in files:
            seen[str(each.sender)] += each.sender is not None
            if seen[str(each.sender)] > self._limits.connections_per_key:
                excess.add(file)
        return excess

    def _is_idle(self, connection: _Accepted, nbytes: int) -> bool:
        """Whether a silent connection is over its time, or over the bytes of a handshake."""
        late = self._now_s - connection.since_s > self._limits.silent_s
        return late or nbytes > self._limits.silent_bytes

    def _shut_down(self, file: int) -> None:
        """Shut down a connection of this server."""
        with contextlib.suppress(OSError), borrowed(file) as connection:
            # By now the descriptor may be another file's: it must be one of this server's port.
            if connection.getsockname()[1] == self.address.port and connection.getpeername():
                connection.shutdown(sockets.SHUT_RDWR)


def _bind_error(address: Address, error: OSError | zmq.ZMQError) -> MeshError:
    if error.errno == errno.EADDRINUSE:
        hint = "is `picoedge run` running already? Or choose another with --listen HOST:PORT"
        return MeshError(f"{address} is in use by another program", hint)
    return MeshError(f"cannot listen on {address}: {error.strerror}", "see --listen HOST:PORT")
