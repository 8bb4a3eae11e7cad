"""Sockets that only allowed keys reach: CURVE on both sides, and who knocks is asked for.

Every socket of the mesh is made here. A server admits a connection only after its `Gate` has
looked the key up; what a socket receives then carries that key as its `User-Id`
(RFC 27/ZAP, RFC 26/CurveZMQ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq
from zmq.utils import z85

if TYPE_CHECKING:
    from picoedge.mesh.identity.keys import KeyPair

    Context = zmq.Context[zmq.Socket[bytes]]
    Socket = zmq.Socket[bytes]

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
DOMAIN = b"picoedge"
KEY_BYTES = 32
# Sent by libzmq's own thread: neither a page fault nor a long kernel call silences it.
HEARTBEAT_MS = 250
SILENCE_MS = 1000  # without an answer the connection is over
HANDSHAKE_MS = 5000
BACKLOG = 64


@dataclass(frozen=True)
class Bounds:
    """What a socket takes: bytes of one frame, and messages waiting either way."""

    frame_bytes: int = 1 << 20
    messages: int = 256


def serve(socket: Socket, keys: KeyPair, bounds: Bounds) -> None:
    """Make a socket the server of its connections; to be called before it is bound."""
    _prepare(socket, bounds)
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a Gate nobody gets in, not everybody
    socket.setsockopt(zmq.BACKLOG, BACKLOG)


def dial(socket: Socket, keys: KeyPair, server: str, bounds: Bounds) -> None:
    """Make a socket the client of the board whose public key is `server`, before it connects."""
    _prepare(socket, bounds)
    socket.curve_serverkey = server.encode()
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()


def _prepare(socket: Socket, bounds: Bounds) -> None:
    socket.linger = 0
    socket.set_hwm(bounds.messages)
    socket.setsockopt(zmq.MAXMSGSIZE, bounds.frame_bytes)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.IPV6, 1)


def sender_of(frame: zmq.Frame) -> str:
    """The public key whose connection a frame came over, in Z85."""
    return str(frame.get("User-Id"))


class Gate:
    """Says who may connect, for all servers of one context (a context can have only one).

    `allowed` is given a public key in Z85. Poll `socket`, and call `answer` where it is readable.
    """

    def __init__(self, context: Context, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self.socket: Socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ZAP_ENDPOINT)

    def answer(self) -> None:
        """Answer one request of libzmq's: it asks at each handshake."""
        request = self.socket.recv_multipart()
        sequence, key = request[1], self._key(request)
        granted = key is not None and self._allowed(key)
        status = (b"200", b"OK", (key or "").encode()) if granted else (b"400", b"unknown key", b"")
        self.socket.send_multipart([ZAP_VERSION, sequence, *status, b""])

    @staticmethod
    def _key(request: list[bytes]) -> str | None:
        if len(request) != 7 or request[0] != ZAP_VERSION or request[2] != DOMAIN:
            return None
        mechanism, key = request[5], request[6]
        if mechanism != b"CURVE" or len(key) != KEY_BYTES:
            return None
        return z85.encode(key).decode()

    def close(self) -> None:
        """Let no one in any more. Idempotent."""
        if not self.socket.closed:
            self.socket.unbind(ZAP_ENDPOINT)  # at once: closing alone takes effect later
        self.socket.close()
