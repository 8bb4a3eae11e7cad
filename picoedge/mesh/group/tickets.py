"""Where the streams of a session come in: by a ticket, given to one board over its CURVE link.

Whoever connects says 16 bytes, and then, sealed, the message that is due: only who read the ticket
on the encrypted link can say either. Everybody else is let go, and costs nothing but that.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from picoedge.errors import ProtocolError
from picoedge.mesh.transport.seal import KEY_BYTES, Cipher, Seal, new_key
from picoedge.mesh.transport.sealed_stream import ConnectionEnded, SealedStream

NAME_BYTES = 16
PENDING_CONNECTIONS = 64  # connections that have not shown a ticket: the oldest makes room
BACKLOG = 64
_TICKET = struct.Struct(f"<HB{NAME_BYTES}s{KEY_BYTES}s{KEY_BYTES}s")


@dataclass(frozen=True)
class Ticket:
    """What a board needs to connect: never to be written down, as it holds keys."""

    port: int
    cipher: Cipher
    name: bytes
    to_listener: bytes
    from_listener: bytes

    @classmethod
    def new(cls, port: int, cipher: Cipher) -> Ticket:
        """One that nobody has had before."""
        return cls(port, cipher, os.urandom(NAME_BYTES), new_key(), new_key())

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        return _TICKET.pack(self.port, self.cipher, self.name, self.to_listener, self.from_listener)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Ticket:
        """Raises ProtocolError."""
        if len(data) != _TICKET.size:
            raise ProtocolError(f"a ticket of {len(data)} bytes instead of {_TICKET.size}")
        port, cipher, name, to_listener, from_listener = _TICKET.unpack(data)
        if not port or cipher not in (Cipher.CHACHA20_POLY1305, Cipher.AES_256_GCM):
            raise ProtocolError("a ticket of no port, or of an unknown cipher")
        return cls(port, Cipher(cipher), name, to_listener, from_listener)

    def connect(self, host: str, most_bytes: int, timeout_s: float) -> SealedStream:
        """Connect to who gave it. Raises OSError."""
        connection = socket.create_connection((host, self.port), timeout_s)
        try:
            connection.sendall(self.name)
        except OSError:
            connection.close()
            raise
        out, into = Seal(self.cipher, self.to_listener), Seal(self.cipher, self.from_listener)
        return SealedStream(connection, out, into, most_bytes)

    def accept(self, connection: socket.socket, most_bytes: int) -> SealedStream:
        """The other end."""
        out, into = Seal(self.cipher, self.from_listener), Seal(self.cipher, self.to_listener)
        return SealedStream(connection, out, into, most_bytes)


@dataclass(eq=False)
class _Claimant:
    """A connection, and how far it has come."""

    connection: socket.socket
    said: bytes = b""
    rank: int = -1
    stream: SealedStream | None = None

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.connection.close()


class TicketListener:
    """Listens at `host`; `first` is the message that a board must begin its stream with.

    Poll `files`, and call `entered` where one is readable.
    """

    def __init__(self, host: str, first: dict[int, bytes], most_bytes: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server(
            (host, 0), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::"
        )
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._first, self._most_bytes = first, most_bytes
        self._tickets: dict[bytes, tuple[int, Ticket]] = {}
        self._claimants: list[_Claimant] = []

    def ticket(self, rank: int, cipher: Cipher) -> Ticket:
        """A new one for the board of that rank."""
        ticket = Ticket.new(self.port, cipher)
        self._tickets[ticket.name] = rank, ticket
        return ticket

    @property
    def files(self) -> list[int]:
        """What to poll for reading."""
        return [self._listener.fileno(), *(each.connection.fileno() for each in self._claimants)]

    def accepted(self) -> Iterator[tuple[int, SealedStream]]:
        """Ranks and streams of the boards that have shown their tickets."""
        self._accept()
        for each in list(self._claimants):
            if self._looked_at(each):
                self._claimants.remove(each)
                if each.stream is not None:
                    yield each.rank, each.stream

    def _accept(self) -> None:
        with suppress(OSError):  # nobody else, or one that is gone again
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._claimants.append(_Claimant(connection))
                if len(self._claimants) > PENDING_CONNECTIONS:
                    self._claimants.pop(0).close()

    def _looked_at(self, each: _Claimant) -> bool:
        """Whether nothing more is awaited of it: it is in, or it is let go."""
        try:
            if each.stream is None and not self._has_shown(each):
                return False
            assert each.stream is not None
            first = each.stream.take()
            if first is None:
                return False
            if first == self._first[each.rank] and each.said in self._tickets:
                del self._tickets[each.said]
                return True
        except (OSError, ProtocolError, ConnectionEnded):
            pass
        each.close()
        each.stream = None
        return True

    def _has_shown(self, each: _Claimant) -> bool:
        """Read on; whether it is a ticket's name. Raises OSError, ProtocolError."""
        try:
            more = each.connection.recv(NAME_BYTES - len(each.said))
        except BlockingIOError:
            return False
        each.said += more
        if not more:
            raise ProtocolError("it left")
        if len(each.said) < NAME_BYTES:
            return False
        if each.said not in self._tickets:
            raise ProtocolError("no ticket")
        each.rank, ticket = self._tickets[each.said]
        each.stream = ticket.accept(each.connection, self._most_bytes)
        return True

    def close(self) -> None:
        """Let nobody in any more. Idempotent."""
        self._listener.close()
        while self._claimants:
            self._claimants.pop().close()
