"""Listener of sealed streams: accepts a connection that shows a one-time ticket.

A client sends the ticket's 16-byte name, then its first sealed message. Both are known only to the
board that received the ticket over CURVE; any other connection is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress

from picoedge.errors import ProtocolError
from picoedge.mesh.group.handed import HandedConnections
from picoedge.mesh.transport.connection import ConnectionEnded
from picoedge.mesh.transport.limits import DEFAULT_LIMITS, Limits
from picoedge.mesh.transport.listening import ANY_PORT, listen
from picoedge.mesh.transport.sealed_stream import TICKET_NAME_BYTES, Cipher, SealedStream, Ticket

_Reading = Generator[None, None, tuple[int, SealedStream]]


class TicketListener:
    """Listens at `host`, at a free one of `ports`; `handed` names a HandedConnections.

    Poll `files` for reading, and call `accepted` where one is readable.
    """

    def __init__(
        self,
        host: str,
        most_bytes: int,
        limits: Limits = DEFAULT_LIMITS,
        ports: Sequence[int] = ANY_PORT,
        handed: str = "",
    ) -> None:
        self._most_pending = limits.ticketless_connections
        self._listener = listen(host, ports, self._most_pending)
        self._handed = HandedConnections(handed) if handed else None
        self.port: int = self._listener.getsockname()[1]
        self._most_bytes = most_bytes
        self._tickets: dict[bytes, tuple[int, bytes, Ticket]] = {}  # by name: rank, first message
        self._pending: dict[socket.socket, _Reading] = {}  # oldest first

    def ticket(self, rank: int, first: bytes, cipher: Cipher) -> Ticket:
        """A new ticket for the board of that rank; `first` must come first on its stream."""
        ticket = Ticket.new(self.port, cipher)
        self._tickets[ticket.name] = rank, first, ticket
        return ticket

    def revoke(self, rank: int) -> None:
        """The tickets of that rank are void."""
        self._tickets = {name: each for name, each in self._tickets.items() if each[0] != rank}

    @property
    def files(self) -> list[int]:
        """File descriptors to poll for reading."""
        handed = () if self._handed is None else (self._handed,)
        return [each.fileno() for each in (self._listener, *handed, *self._pending)]

    def accepted(self) -> Iterator[tuple[int, SealedStream]]:
        """Ranks and streams of the boards that have shown their tickets."""
        self._accept()
        for connection, reading in list(self._pending.items()):
            try:
                next(reading)
            except StopIteration as accepted:
                del self._pending[connection]
                yield accepted.value
            except (OSError, ProtocolError, ConnectionEnded):
                self._close(connection)

    def _accept(self) -> None:
        for connection in self._handed or ():
            self._add(connection)
        with suppress(OSError):  # no further connection, or a connection that has ended again
            while True:
                self._add(self._listener.accept()[0])

    def _add(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._pending[connection] = self._read(connection)
        if len(self._pending) > self._most_pending:
            self._close(next(iter(self._pending)))

    def _read(self, connection: socket.socket) -> _Reading:
        """The rank and the stream of a connection; yields until more has come.

        Raises OSError, ProtocolError, ConnectionEnded for a connection to be closed.
        """
        name = b""
        while len(name) < TICKET_NAME_BYTES:
            try:
                more = connection.recv(TICKET_NAME_BYTES - len(name))
            except BlockingIOError:
                yield
                continue
            if not more:
                raise ConnectionEnded("before it has shown a ticket")
            name += more
        if name not in self._tickets:
            raise ProtocolError("no ticket")
        rank, first, ticket = self._tickets[name]
        stream = ticket.accept(connection, self._most_bytes)
        while (message := stream.take()) is None:
            yield
        if message != first or self._tickets.pop(name, None) is None:
            raise ProtocolError("another message first, or a ticket that was used or revoked")
        return rank, stream

    def _close(self, connection: socket.socket) -> None:
        del self._pending[connection]
        connection.close()

    def close(self) -> None:
        """Accept no more connections. Idempotent."""
        self._listener.close()
        if self._handed is not None:
            self._handed.close()
        for connection in list(self._pending):
            self._close(connection)
