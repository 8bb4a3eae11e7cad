"""Messages sealed for one connection: encrypted, authenticated, in their order, each once.

AEGIS-256 (draft-irtf-cfrg-aegis-aead) where the processors of both boards have instructions that
make it quick, else ChaCha20-Poly1305 (RFC 8439). A key serves one direction of one connection, so a
nonce is the number of a message, and nothing but the next message opens.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from nacl import bindings, exceptions

from picoedge.errors import ProtocolError

KEY_BYTES = 32
TAG_BYTES = 32  # at most
LOOK_BYTES, LOOKS = 16 << 10, 3  # what is sealed to see which cipher is quick

Aead = Callable[[bytes, bytes | None, bytes, bytes], bytes]  # message, nothing, nonce, key


class Cipher(IntFlag):
    """One, or of a set of them those a board has."""

    CHACHA20_POLY1305 = 1
    AEGIS_256 = 2


@dataclass(frozen=True)
class _Functions:
    """Of one cipher: PyNaCl's, with the size of its nonce."""

    encrypt: Aead
    decrypt: Aead
    nonce_bytes: int


def _functions(cipher: Cipher) -> _Functions | None:
    """None where these libraries lack it: PyNaCl has AEGIS from 1.6 on."""
    name = "chacha20poly1305_ietf" if cipher is Cipher.CHACHA20_POLY1305 else "aegis256"
    if not hasattr(bindings, f"crypto_aead_{name}_encrypt"):
        return None
    words = ("encrypt", "decrypt", "NPUBBYTES")
    return _Functions(*(getattr(bindings, f"crypto_aead_{name}_{word}") for word in words))


def ciphers() -> Cipher:
    """Those that are quick on this board: without AES instructions AEGIS is a hundred times slower.

    Measured, as processors have some of the instructions that it takes without the others.
    """
    chacha = _seconds(Cipher.CHACHA20_POLY1305)
    if _functions(Cipher.AEGIS_256) is None or _seconds(Cipher.AEGIS_256) > chacha:
        return Cipher.CHACHA20_POLY1305
    return Cipher.CHACHA20_POLY1305 | Cipher.AEGIS_256


def _seconds(cipher: Cipher) -> float:
    seal, message, times = Seal(cipher, new_key()), bytes(LOOK_BYTES), []
    for _ in range(LOOKS):
        began = time.perf_counter()
        seal.close(message)
        times.append(time.perf_counter() - began)
    return min(times)


def ciphers_from(said: bytes) -> Cipher:
    """What a board says it has, in one byte. Raises ProtocolError."""
    if len(said) != 1 or not said[0] & Cipher.CHACHA20_POLY1305:
        raise ProtocolError(f"no ciphers that are known, but {said[:8]!r}")
    return Cipher(said[0] & (Cipher.CHACHA20_POLY1305 | Cipher.AEGIS_256))


def common(mine: Cipher, theirs: Cipher) -> Cipher:
    """The quicker of what both have; every board has ChaCha20."""
    both = mine & theirs & Cipher.AEGIS_256
    return Cipher.AEGIS_256 if both else Cipher.CHACHA20_POLY1305


def new_key() -> bytes:
    """A key nobody has had before."""
    return os.urandom(KEY_BYTES)


class Seal:
    """One end of one direction: it closes messages, or opens them, one after the other."""

    def __init__(self, cipher: Cipher, key: bytes) -> None:
        functions = _functions(cipher)
        assert functions is not None, "a cipher that is not among `ciphers`"
        self._use, self._key, self._number = functions, key, 0

    def close(self, message: bytes) -> bytes:
        """The next message, sealed: longer by at most TAG_BYTES."""
        sealed = self._use.encrypt(message, None, self._nonce(), self._key)
        self._number += 1
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """The next message. Raises ProtocolError where this is not it, to the bit."""
        try:
            message = self._use.decrypt(sealed, None, self._nonce(), self._key)
        except (exceptions.CryptoError, ValueError):  # ValueError: shorter than a tag
            raise ProtocolError("a message that was not sealed for this connection") from None
        self._number += 1
        return message

    def _nonce(self) -> bytes:
        return self._number.to_bytes(self._use.nonce_bytes, "little")
