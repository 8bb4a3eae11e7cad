"""A way to a worker where only its daemon's port can be reached: the daemon passes the bytes on.

    hub's socket  <->  Relay, a thread here  <->  daemon  <->  worker's socket

The bytes are those of the CURVE connection between hub and worker, encrypted and authenticated end
to end: the daemon cannot read them, and the worker still checks the hub's key. They travel in
base64, in requests that are answered once the worker has taken them: a fallback, not a fast path.
"""

from __future__ import annotations

import base64
import os
import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import zmq

from picoedge.errors import MeshError
from picoedge.mesh.addresses import Address
from picoedge.mesh.transport.client import Client

if TYPE_CHECKING:
    from picoedge.mesh.identity.identity import KeyPair

RELAY_CHUNK_BYTES = 128 << 10  # a control message has at most 1 MB
RELAY_WINDOW = 8  # chunks a daemon sends before one is acknowledged: 1 MB of its memory
SEND_S = 60.0  # for the worker to take a chunk, which its kernel and libzmq do while it computes


def new_endpoint() -> str:
    """A free name for a Unix socket, in the abstract namespace: no file is left behind."""
    return f"picoedge-{os.getpid()}-{os.urandom(8).hex()}"


class Relay:
    """A local `endpoint` for ZeroMQ, whose bytes the daemon at `address` passes to its worker.

    Raises MeshError where the daemon does not.
    """

    def __init__(self, keys: KeyPair, address: Address, key: str, name: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._client = Client(self._context, keys, address, key, name)
        try:
            self._client.ask("relay-open")
        except MeshError:
            self._release()
            raise
        path = new_endpoint()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"\0{path}")
        self._listener.listen(1)
        self.endpoint = f"ipc://@{path}"
        self._stop, self._stopped = socket.socketpair()
        self._connection: socket.socket | None = None
        self._taken = self._acknowledged = 0  # chunks of the worker's
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(MeshError, OSError, zmq.ZMQError):
            if self._listener not in select.select([self._listener, self._stopped], [], [])[0]:
                return
            self._connection, _ = self._listener.accept()
            while self._pass():
                pass
        if self._connection is not None:
            self._connection.close()  # the hub's socket sees that the link has ended

    def _pass(self) -> bool:
        """Pass on what has come from either side; False at the end."""
        assert self._connection is not None
        for kind, body in self._client.notifications():
            self._on_push(kind, body)
        if self._taken - self._acknowledged >= RELAY_WINDOW // 2:
            self._send(b"")
        items = [(self._client.socket, zmq.POLLIN), (self._client.monitor, zmq.POLLIN)]
        files = [(file.fileno(), zmq.POLLIN) for file in (self._connection, self._stopped)]
        ready = {item for item, _ in zmq.zmq_poll([*items, *files], -1)}
        if self._connection.fileno() in ready:
            data = self._connection.recv(RELAY_CHUNK_BYTES)
            if not data:
                return False
            self._send(data)
        return self._stopped.fileno() not in ready

    def _send(self, data: bytes) -> None:
        self._acknowledged = self._taken
        body = {"data": base64.b64encode(data).decode(), "taken": self._taken}
        self._client.ask("relay-send", body, SEND_S, self._on_push)

    def _on_push(self, kind: str, body: dict[str, Any]) -> None:
        if kind != "relay-data":
            return
        data = base64.b64decode(str(body.get("data", "")))
        if not data:
            raise OSError("the worker has closed its end")
        assert self._connection is not None
        self._connection.sendall(data)
        self._taken += 1

    def _release(self) -> None:
        self._client.close()
        self._context.destroy(linger=0)

    def close(self) -> None:
        """End the relay. Idempotent."""
        with suppress(OSError):
            self._stop.send(b"\0")
        self._thread.join()
        for each in (self._listener, self._stop, self._stopped):
            each.close()
        self._release()
