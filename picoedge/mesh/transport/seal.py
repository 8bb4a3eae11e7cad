"""Authenticated encryption of the messages of one connection, in order, each once.

AES-256-GCM (NIST SP 800-38D) where both boards have instructions that make it quick, otherwise
ChaCha20-Poly1305 (RFC 8439). A key serves one direction of one connection and the nonce is the
message's number, so no nonce repeats and only the next message opens.
"""

from __future__ import annotations

import os
import time
from enum import IntFlag

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from picoedge.errors import ProtocolError

CIPHER_KEY_BYTES = 32
TAG_BYTES = 16
NONCE_BYTES = 12
SAMPLE_BYTES, SAMPLES = 16 << 10, 3  # sealed to measure a cipher: some 10 us each

Bytes = bytes | bytearray | memoryview


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
    seal, message, times = Seal(cipher, new_key()), bytes(SAMPLE_BYTES), []
    into = memoryview(bytearray(SAMPLE_BYTES + TAG_BYTES))
    for _ in range(SAMPLES):
        began = time.perf_counter()
        seal.close(message, into)
        times.append(time.perf_counter() - began)
    return min(times)


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
        aead = AESGCM if cipher is Cipher.AES_256_GCM else ChaCha20Poly1305
        self._aead, self._number = aead(key), 0

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
        except InvalidTag:
            raise ProtocolError("a message that was not sealed for this connection") from None
        self._number += 1
        return message

    def _nonce(self) -> bytes:
        return self._number.to_bytes(NONCE_BYTES, "little")
