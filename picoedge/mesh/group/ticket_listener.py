"""Listener of sealed streams: accepts a connection that shows a one-time ticket.

A client sends the ticket's 16-byte name, then its first sealed message. Both are known only to the
board that received the ticket over CURVE; any other connection is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from picoedge.errors import ProtocolError
from picoedge.mesh.transport.connection import ConnectionEnded
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.sealed_stream import TICKET_NAME_BYTES, Cipher, SealedStream, Ticket


@dataclass(eq=False)
class _Connection:
    """A connection on its way in: the bytes of a name so far, then a stream of that rank."""

    connection: socket.socket
    name: bytes = b""
    rank: int = -1
    stream: SealedStream | None = None

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.connection.close()


class TicketListener:
    """Listens at `host`; `first`, by rank, is the message that must come first on its stream.

    Poll `files` for reading, and call `accepted` where one is readable.
    """

    def __init__(
        self,
        host: str,
        first: Mapping[int, bytes],
        most_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._most_pending = limits.ticketless_connections
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server(
            (host, 0), family=family, backlog=self._most_pending, dualstack_ipv6=host == "::"
        )
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._first, self._most_bytes = dict(first), most_bytes
        self._tickets: dict[bytes, tuple[int, Ticket]] = {}
        self._pending: list[_Connection] = []

    def expect(self, rank: int, first: bytes) -> None:
        """That rank may be given a ticket; `first` must come first on its stream."""
        self._first[rank] = first

    def ticket(self, rank: int, cipher: Cipher) -> Ticket:
        """A new ticket for the board of that rank."""
        ticket = Ticket.new(self.port, cipher)
        self._tickets[ticket.name] = rank, ticket
        return ticket

    def revoke(self, rank: int) -> None:
        """The tickets of that rank are void."""
        for name in [name for name, (owner, _) in self._tickets.items() if owner == rank]:
            del self._tickets[name]

    @property
    def files(self) -> list[int]:
        """File descriptors to poll for reading."""
        return [self._listener.fileno(), *(each.connection.fileno() for each in self._pending)]

    def accepted(self) -> Iterator[tuple[int, SealedStream]]:
        """Ranks and streams of the boards that have shown their tickets."""
        self._accept()
        for each in list(self._pending):
            if self._is_settled(each):
                self._pending.remove(each)
                if each.stream is not None:
                    yield each.rank, each.stream

    def _accept(self) -> None:
        with suppress(OSError):  # no further connection, or one that has ended again
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._pending.append(_Connection(connection))
                if len(self._pending) > self._most_pending:
                    self._pending.pop(0).close()

    def _is_settled(self, each: _Connection) -> bool:
        """Read on; True once it is accepted (it has a stream) or closed (it has none)."""
        try:
            if each.stream is None and not self._has_shown_ticket(each):
                return False
            assert each.stream is not None
            first = each.stream.take()
            if first is None:
                return False
            if first == self._first[each.rank] and each.name in self._tickets:
                del self._tickets[each.name]
                return True
        except (OSError, ProtocolError, ConnectionEnded):
            pass
        each.close()
        each.stream = None
        return True

    def _has_shown_ticket(self, each: _Connection) -> bool:
        """Read on; True once a ticket's name is there. Raises OSError, ProtocolError."""
        try:
            more = each.connection.recv(TICKET_NAME_BYTES - len(each.name))
        except BlockingIOError:
            return False
        each.name += more
        if not more:
            raise ProtocolError("the connection ended")
        if len(each.name) < TICKET_NAME_BYTES:
            return False
        if each.name not in self._tickets:
            raise ProtocolError("no ticket")
        each.rank, ticket = self._tickets[each.name]
        each.stream = ticket.accept(each.connection, self._most_bytes)
        return True

    def close(self) -> None:
        """Accept no more connections. Idempotent."""
        self._listener.close()
        while self._pending:
            self._pending.pop().close()
