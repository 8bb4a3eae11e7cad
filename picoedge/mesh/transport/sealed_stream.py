"""A TCP connection of sealed messages that is read and written by the thread that computes.

    length u32, little-endian; then so many bytes: a message and its tag

libzmq's own thread costs two wake-ups and a turn on a board's core for each sum. Here the thread
that makes and uses a message also seals, sends, receives and opens it. Nothing blocks.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import zmq

from picoedge.errors import ProtocolError
from picoedge.mesh.transport.connection import ConnectionEnded, Transport
from picoedge.mesh.transport.seal import TAG_BYTES, Bytes, Seal

if TYPE_CHECKING:
    from picoedge.mesh.transport.waiter import Items

_LENGTH = struct.Struct("<I")
# TCP keep-alive, for what heartbeats do not tell: a router between the boards that forgot this
# connection. Most keep an idle one for minutes.
IDLE_S = 60


class SealedStream:
    """See Connection. A message has at most `most_bytes`; `preface` is sent first, unsealed.

    The socket may still be connecting: until it has, `flush` returns False.
    """

    transport: Transport = "stream"
    retry_s: float | None = None

    def __init__(
        self,
        connection: socket.socket,
        out: Seal,
        into: Seal,
        most_bytes: int,
        preface: bytes = b"",
    ) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        self._socket, self._seal, self._into = connection, out, into
        self._most = most_bytes + TAG_BYTES
        self._buffer = bytearray(_LENGTH.size + self._most)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0  # of the bytes received and not taken
        self._opened = memoryview(bytearray(self._most))
        self._out = memoryview(bytearray(_LENGTH.size + self._most))
        self._unsent = memoryview(preface)

    def fileno(self) -> int:
        """For a poll; -1 once it is closed."""
        return self._socket.fileno()

    def items(self, sending: bool = False) -> Items:
        """See Connection."""
        return [(self._socket.fileno(), zmq.POLLIN | zmq.POLLOUT if sending else zmq.POLLIN)]

    def send(self, message: Bytes) -> bool:
        """See Connection."""
        assert not self._unsent
        end = _LENGTH.size + len(message) + TAG_BYTES
        _LENGTH.pack_into(self._out, 0, end - _LENGTH.size)
        self._seal.close(message, self._out[_LENGTH.size : end])
        self._unsent = self._out[:end]
        return self.flush()

    def flush(self) -> bool:
        """See Connection."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                return False
            except OSError as error:
                raise _ended(error) from None
            self._unsent = self._unsent[sent:]
        return True

    def take(self) -> memoryview | None:
        """See Connection.

        The memory is the stream's own: to allocate some for each long message, and to free it,
        costs hundreds of page faults.
        """
        while True:
            held = self._end - self._begin
            if held >= _LENGTH.size:
                (nbytes,) = _LENGTH.unpack_from(self._buffer, self._begin)
                if nbytes > self._most:
                    raise ProtocolError(f"a message of {nbytes} bytes: the limit is {self._most}")
                if held >= _LENGTH.size + nbytes:
                    return self._open(nbytes)
            if not self._receive():
                return None

    def _open(self, nbytes: int) -> memoryview:
        first = self._begin + _LENGTH.size
        self._begin = first + nbytes
        return self._into.open(self._view[first : self._begin], self._opened)

    def _receive(self) -> bool:
        """Read from the socket; False where nothing has come."""
        if self._begin:  # the part of a message goes to the front: the buffer has room for one
            held = self._end - self._begin
            self._view[:held] = self._view[self._begin : self._end]
            self._begin, self._end = 0, held
        try:
            got = self._socket.recv_into(self._view[self._end :])
        except BlockingIOError:
            return False
        except OSError as error:
            raise _ended(error) from None
        if not got:
            raise ConnectionEnded("its connection ended")
        self._end += got
        return True

    def close(self) -> None:
        """See Connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()


def _ended(error: OSError) -> ConnectionEnded:
    return ConnectionEnded(f"its connection ended: {(error.strerror or str(error)).lower()}")
