"""A TCP connection of sealed messages that is read and written by the thread that computes.

    length u32, little-endian; then so many bytes: a message and its tag

libzmq's own thread costs two wake-ups and a turn on a board's core for each sum. Here the thread
that makes and uses a message also seals, sends, receives and opens it. Nothing blocks.

Messages are encrypted and authenticated, in order, each once: by AES-256-GCM (NIST SP 800-38D)
where both boards have instructions that make it quick, otherwise by ChaCha20-Poly1305 (RFC 8439). A
key serves one direction of one connection and the nonce is the message's number, so no nonce
repeats and only the next message opens. A `Ticket` carries the keys, and opens one stream.
`cryptography`, 7 MB of a process, is imported by the first `Seal`.
"""

from __future__ import annotations

import os
import socket
import struct
import time
import timeit
from contextlib import suppress
from dataclasses import dataclass
from enum import IntFlag

import zmq

from picoedge.errors import ProtocolError
from picoedge.mesh.transport.connection import Bytes, ConnectionEnded, Items, Transport
from picoedge.mesh.transport.listening import mark

CIPHER_KEY_BYTES = 32  # of both ciphers, as the next two (RFC 8439, RFC 5116)
TAG_BYTES = 16  # added to each message
NONCE_BYTES = 12  # counted, never sent
SAMPLE_BYTES, SAMPLES = 16 << 10, 3  # sealed to measure a cipher: some 10 us each
TICKET_NAME_BYTES = 16  # random: as hard to guess as a key
_TICKET = struct.Struct(f"<HB{TICKET_NAME_BYTES}s{CIPHER_KEY_BYTES}s{CIPHER_KEY_BYTES}s")
TICKET_BYTES = _TICKET.size
_LENGTH = struct.Struct("<I")
# TCP keep-alive, for what heartbeats do not tell: a router between the boards that forgot this
# connection. Most keep an idle one for minutes.
IDLE_S = 60


class Cipher(IntFlag):
    """A cipher, or the set of those that a board offers."""

    CHACHA20_POLY1305 = 1
    AES_256_GCM = 2


ALL = Cipher.CHACHA20_POLY1305 | Cipher.AES_256_GCM


def ciphers() -> Cipher:
    """The ciphers that are quick on this board: without AES instructions GCM is many times slower.

    Measured, as a processor may have the instructions for AES and not those for GCM's hash.
    """
    if _seconds(Cipher.AES_256_GCM) > _seconds(Cipher.CHACHA20_POLY1305):
        return Cipher.CHACHA20_POLY1305
    return ALL


def _seconds(cipher: Cipher) -> float:
    seal, message = Seal(cipher, new_key()), bytes(SAMPLE_BYTES)
    into = memoryview(bytearray(SAMPLE_BYTES + TAG_BYTES))
    sealing = timeit.Timer(lambda: seal.close(message, into), timer=time.perf_counter)
    return min(sealing.repeat(SAMPLES, 1))


def ciphers_from(said: bytes) -> Cipher:
    """The ciphers in a hello's byte; unknown bits are ignored. Raises ProtocolError."""
    if len(said) != 1 or not said[0] & Cipher.CHACHA20_POLY1305:
        raise ProtocolError(f"no ciphers that are known, but {said[:8]!r}")
    return Cipher(said[0] & ALL)


def common(mine: Cipher, theirs: Cipher) -> Cipher:
    """The quicker cipher that both boards offer; every board has ChaCha20."""
    both = mine & theirs & Cipher.AES_256_GCM
    return Cipher.AES_256_GCM if both else Cipher.CHACHA20_POLY1305


def new_key() -> bytes:
    """A random key."""
    return os.urandom(CIPHER_KEY_BYTES)


class Seal:
    """Seals the messages of one direction, or opens them; one object does one of the two."""

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

        aead = AESGCM if cipher is Cipher.AES_256_GCM else ChaCha20Poly1305
        self._aead, self._number, self._invalid = aead(key), 0, InvalidTag

    def close(self, message: Bytes, into: memoryview) -> None:
        """Write the next message, sealed, to `into`: longer by TAG_BYTES."""
        self._aead.encrypt_into(self._nonce(), message, None, into)
        self._number += 1

    def open(self, sealed: Bytes, into: memoryview) -> memoryview:
        """Write the next message to `into`, as long as `sealed`; returns the part that it fills.

        Raises ProtocolError if these are not, to the bit, the bytes of the next message.
        """
        message = into[: max(0, len(sealed) - TAG_BYTES)]
        try:
            self._aead.decrypt_into(self._nonce(), sealed, None, message)
        except self._invalid:
            raise ProtocolError("a message that was not sealed for this connection") from None
        self._number += 1
        return message

    def _nonce(self) -> bytes:
        return self._number.to_bytes(NONCE_BYTES, "little")


class SealedStream:
    """See Connection. A message has at most `most_bytes`; `preface` is sent first, unsealed.

    The socket may still be connecting: until it has, `flush` returns False.
    """

    transport: Transport = "stream"

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

    def items(self) -> Items:
        return [(self._socket.fileno(), zmq.POLLIN | (zmq.POLLOUT if self._unsent else 0))]

    def send(self, message: Bytes) -> bool:
        assert not self._unsent
        end = _LENGTH.size + len(message) + TAG_BYTES
        _LENGTH.pack_into(self._out, 0, end - _LENGTH.size)
        self._seal.close(message, self._out[_LENGTH.size : end])
        self._unsent = self._out[:end]
        return self.flush()

    def flush(self) -> bool:
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

    def finish(self) -> bool:
        """End the sending half; closed with bytes unread, the system resets the connection: bytes
        still on their way to the other end are lost, and its next send fails."""
        self._unsent = memoryview(b"")
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        self.finish()
        self._socket.close()


def _ended(error: OSError) -> ConnectionEnded:
    return ConnectionEnded(f"its connection ended: {(error.strerror or str(error)).lower()}")


@dataclass(frozen=True)
class Ticket:
    """Name and keys that a client needs to connect: never written to disk or logs."""

    port: int
    cipher: Cipher
    name: bytes
    to_listener: bytes
    from_listener: bytes

    @classmethod
    def new(cls, port: int, cipher: Cipher) -> Ticket:
        """A ticket with a new name and new keys."""
        return cls(port, cipher, os.urandom(TICKET_NAME_BYTES), new_key(), new_key())

    def to_bytes(self) -> bytes:
        """The inverse of `from_bytes`."""
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

    def connect(self, host: str, most_bytes: int, marked_port: int = 0) -> SealedStream:
        """A stream to the listener, which begins to connect. Raises OSError.

        `marked_port`: a port where marked connections are passed on to the listener.
        """
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, marked_port or self.port, type=socket.SOCK_STREAM
        )[0]
        connection = socket.socket(family, kind, protocol)
        try:
            if marked_port:
                mark(connection)
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(address)
            out, into = Seal(self.cipher, self.to_listener), Seal(self.cipher, self.from_listener)
            return SealedStream(connection, out, into, most_bytes, self.name)
        except OSError:
            connection.close()
            raise

    def accept(self, connection: socket.socket, most_bytes: int) -> SealedStream:
        """The listener's end of a connection that has shown this ticket."""
        out, into = Seal(self.cipher, self.from_listener), Seal(self.cipher, self.to_listener)
        return SealedStream(connection, out, into, most_bytes)
