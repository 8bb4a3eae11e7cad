"""A way to a worker where only its daemon's port can be reached: the daemon passes the bytes on.

    hub's socket  <->  Relay, a thread here  <->  daemon  <->  worker's socket

The bytes belong to the CURVE connection between hub and worker, encrypted and authenticated end
to end: the daemon cannot read them, and the worker still checks the hub's key. They travel in
base64, one message at a time, the next once the worker has taken it: a fallback, not a fast path.
"""

from __future__ import annotations

import base64
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import MeshError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.addresses import Address
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair


def new_endpoint() -> str:
    """A free name for a Unix socket, in the abstract namespace: no file is left behind."""
    return f"picoedge-{os.getpid()}-{os.urandom(8).hex()}"


def read_chunk(body: Mapping[str, Any], limits: Limits) -> bytes:
    """The bytes that a message passes on. Raises ProtocolError."""
    try:
        data = base64.b64decode(Fields(body, "the relay").get("data", str), validate=True)
    except ValueError:
        raise ProtocolError("a relayed chunk that is not base64") from None
    if len(data) > limits.relay_chunk_bytes:
        raise ProtocolError(f"a relayed chunk of {len(data)} bytes")
    return data


class Relay:
    """A local `endpoint` for ZeroMQ, whose bytes the daemon at `address` passes to its worker.

    Raises MeshError where the daemon refuses it, or this board has no sockets for it.
    """

    def __init__(
        self, keys: KeyPair, address: Address, key: str, name: str, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._limits = limits
        self._chunks: deque[memoryview] = deque()  # of the worker's, not yet written
        self._taken = self._acknowledged = 0  # of these: written, and acknowledged to the daemon
        self._is_sending = self._has_ended = False
        try:
            with ExitStack() as stack:
                context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
                stack.callback(context.destroy, linger=0)
                self._client = stack.enter_context(Client(context, keys, address, key, name))
                self._client.ask("relay-open")
                self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                path = new_endpoint()
                self._listener.bind(f"\0{path}")
                self._listener.listen(1)
                self.endpoint = f"ipc://@{path}"
                self._stop, self._stopped = map(stack.enter_context, socket.socketpair())
                thread = threading.Thread(target=self._run, name="relay", daemon=True)
                thread.start()
                stack.callback(thread.join)
                stack.callback(self._stop.send, b"\0")
                self._resources = stack.pop_all()
        except (OSError, zmq.ZMQError, RuntimeError) as error:  # the last: no thread
            raise MeshError(f"no socket for a relay through {name}: {error}") from None

    def _run(self) -> None:
        with suppress(MeshError, OSError, zmq.ZMQError):
            if self._listener not in select.select([self._listener, self._stopped], [], [])[0]:
                return
            connection, _ = self._listener.accept()
            with connection:  # once it is closed, the hub's socket sees that the link has ended
                connection.setblocking(False)
                while self._pass(connection):
                    pass

    def _pass(self, connection: socket.socket) -> bool:
        """Wait for any side, and pass on what has come; False at the end. Nothing else waits."""
        for kind, body in self._client.notifications():
            self._on_push(kind, body)
        self._write(connection)
        if self._has_ended and not self._chunks:
            return False
        if self._taken - self._acknowledged >= self._limits.relay_window // 2:
            self._send(b"")
        events = zmq.POLLOUT if self._chunks else 0
        if not self._is_sending and not self._has_ended:
            events |= zmq.POLLIN
        items: list[tuple[Any, int]] = [
            (each, zmq.POLLIN) for each in (self._client.socket, self._client.monitor)
        ]
        items.append((self._stopped.fileno(), zmq.POLLIN))
        if events:  # without any, poll returns at once for a connection that has ended
            items.append((connection.fileno(), events))
        ready = dict(zmq.zmq_poll(items, -1))
        if ready.get(connection.fileno(), 0) & ~zmq.POLLOUT and events & zmq.POLLIN:
            data = connection.recv(self._limits.relay_chunk_bytes)
            if not data:
                return False
            self._is_sending = True
            self._send(data)
        return self._stopped.fileno() not in ready

    def _send(self, data: bytes) -> None:
        self._acknowledged = self._taken
        body = {"data": base64.b64encode(data).decode(), "taken": self._taken}
        self._client.push("relay-send", body)

    def _write(self, connection: socket.socket) -> None:
        with suppress(BlockingIOError):
            while self._chunks:
                written = connection.send(self._chunks[0])
                self._chunks[0] = self._chunks[0][written:]
                if not self._chunks[0]:
                    self._chunks.popleft()
                    self._taken += 1

    def _on_push(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "relay-taken":
            self._is_sending = False
        elif kind == "relay-data":
            data = read_chunk(body, self._limits)
            self._has_ended |= not data
            if data:
                self._chunks.append(memoryview(data))
            if self._taken + len(self._chunks) - self._acknowledged > self._limits.relay_window:
                raise ProtocolError("more relayed chunks than the window has")

    def close(self) -> None:
        """End the relay, whatever its ends do. Idempotent."""
        self._resources.close()
