"""A TCP connection of sealed messages that is read and written by the thread that computes.

    length u32, little-endian; then so many bytes: a message and its tag

libzmq's own thread would cost two wake-ups and another turn on a board's core for each sum: here a
message is sealed, sent, received and opened where it is made and used. Nothing blocks.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from picoedge.errors import ProtocolError
from picoedge.mesh.transport.seal import TAG_BYTES, Bytes, Seal

_LENGTH = struct.Struct("<I")
IDLE_S = 60  # after which the kernel asks whether the other end, and what is between, is there


class ConnectionEnded(Exception):
    """The other end is gone, and all it sent has been taken; the text says how."""


class SealedStream:
    """One connection; `most_bytes` is what a message may be.

    Methods raise ConnectionEnded, and ProtocolError for what is not a message sealed for us.
    """

    def __init__(self, connection: socket.socket, out: Seal, into: Seal, most_bytes: int) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        self._socket, self._seal, self._into = connection, out, into
        self._most = most_bytes + TAG_BYTES
        self._buffer = bytearray(_LENGTH.size + self._most)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0  # of what was received and not taken
        self._opened = memoryview(bytearray(self._most))
        self._out = memoryview(bytearray(_LENGTH.size + self._most))
        self._unsent = self._out[:0]

    def fileno(self) -> int:
        """For a poll; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, message: Bytes) -> bool:
        """Send a message; where that is False `flush` has to be called until it is not."""
        assert not self._unsent
        end = _LENGTH.size + len(message) + TAG_BYTES
        _LENGTH.pack_into(self._out, 0, end - _LENGTH.size)
        self._seal.close(message, self._out[_LENGTH.size : end])
        self._unsent = self._out[:end]
        return self.flush()

    def flush(self) -> bool:
        """Send what is left of a message; whether all of it is on its way."""
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
        """The next message, there until the one after it is taken; None where it is not all here.

        The memory is the stream's own: to have some from the system for each long message, and
        give it back, costs hundreds of page faults.
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
        """Take in what has come; False where that is nothing."""
        if self._begin:  # what there is of a message goes to the front: there is room for one
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
        """End the connection; what was sent still goes out. Idempotent."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()


def _ended(error: OSError) -> ConnectionEnded:
    return ConnectionEnded(f"its connection ended: {(error.strerror or str(error)).lower()}")
