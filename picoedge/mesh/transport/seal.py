"""Messages sealed for one connection: encrypted, authenticated, in their order, each once.

AES-256-GCM (NIST SP 800-38D) where the processors of both boards have instructions that make it
quick, else ChaCha20-Poly1305 (RFC 8439). A key serves one direction of one connection, so a nonce
is the number of a message, and nothing but the next message opens.
"""

from __future__ import annotations

import os
import time
from enum import IntFlag

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from picoedge.errors import ProtocolError

KEY_BYTES = 32
TAG_BYTES = 16
NONCE_BYTES = 12
LOOK_BYTES, LOOKS = 16 << 10, 3  # what is sealed to see which cipher is quick

Bytes = bytes | bytearray | memoryview


class Cipher(IntFlag):
    """One, or of a set of them those a board has."""

    CHACHA20_POLY1305 = 1
    AES_256_GCM = 2


ALL = Cipher.CHACHA20_POLY1305 | Cipher.AES_256_GCM


def ciphers() -> Cipher:
    """Those that are quick on this board: without AES instructions GCM is many times slower.

    Measured, as a processor may have some of the instructions that it takes without the others.
    """
    if _seconds(Cipher.AES_256_GCM) > _seconds(Cipher.CHACHA20_POLY1305):
        return Cipher.CHACHA20_POLY1305
    return ALL


def _seconds(cipher: Cipher) -> float:
    seal, message, times = Seal(cipher, new_key()), bytes(LOOK_BYTES), []
    into = memoryview(bytearray(LOOK_BYTES + TAG_BYTES))
    for _ in range(LOOKS):
        began = time.perf_counter()
        seal.close(message, into)
        times.append(time.perf_counter() - began)
    return min(times)


def ciphers_from(said: bytes) -> Cipher:
    """What a board says it has, in one byte. Raises ProtocolError."""
    if len(said) != 1 or not said[0] & Cipher.CHACHA20_POLY1305:
        raise ProtocolError(f"no ciphers that are known, but {said[:8]!r}")
    return Cipher(said[0] & ALL)


def common(mine: Cipher, theirs: Cipher) -> Cipher:
    """The quicker of what both have; every board has ChaCha20."""
    both = mine & theirs & Cipher.AES_256_GCM
    return Cipher.AES_256_GCM if both else Cipher.CHACHA20_POLY1305


def new_key() -> bytes:
    """A key nobody has had before."""
    return os.urandom(KEY_BYTES)


class Seal:
    """One end of one direction: it closes messages, or opens them, one after the other."""

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        aead = AESGCM if cipher is Cipher.AES_256_GCM else ChaCha20Poly1305
        self._aead, self._number = aead(key), 0

    def close(self, message: Bytes, into: memoryview) -> None:
        """Put the next message there, sealed: longer by TAG_BYTES."""
        self._aead.encrypt_into(self._nonce(), message, None, into)
        self._number += 1

    def open(self, sealed: Bytes, into: memoryview) -> memoryview:
        """Put the next message there, where there is room for `sealed`; gives the part it takes.

        Raises ProtocolError where this is not it, to the bit.
        """
        message = into[: max(0, len(sealed) - TAG_BYTES)]
        try:
            self._aead.decrypt_into(self._nonce(), sealed, None, message)
        except InvalidTag:
            raise ProtocolError("a message that was not sealed for this connection") from None
        self._number += 1
        return message

    def _nonce(self) -> bytes:
        return self._number.to_bytes(NONCE_BYTES, "little")
