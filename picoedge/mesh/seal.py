"""Messages sealed for one connection: encrypted, authenticated, in their order, each once.

AES-256-GCM where both processors have instructions for it, else ChaCha20-Poly1305 (RFC 8439). A key
serves one direction of one connection, so a nonce is the number of a message, and nothing but the
next message opens.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from enum import IntFlag

from nacl import bindings, exceptions

from picoedge.errors import ProtocolError

KEY_BYTES = 32
TAG_BYTES = 16
_NONCE = struct.Struct("<4xQ")

Aead = Callable[[bytes, bytes | None, bytes, bytes], bytes]  # message, nothing, nonce, key


class Cipher(IntFlag):
    """One, or of a set of them those a board has."""

    CHACHA20_POLY1305 = 1
    AES_256_GCM = 2


def _functions(cipher: Cipher) -> tuple[Aead, Aead]:
    """(encrypt, decrypt) of one cipher. PyNaCl older than 1.6 knows no AES."""
    name = "chacha20poly1305_ietf" if cipher is Cipher.CHACHA20_POLY1305 else "aes256gcm"
    encrypt, decrypt = (f"crypto_aead_{name}_{verb}" for verb in ("encrypt", "decrypt"))
    return getattr(bindings, encrypt), getattr(bindings, decrypt)


def ciphers() -> Cipher:
    """Those that this processor and these libraries have."""
    try:
        Seal(Cipher.AES_256_GCM, new_key()).close(b"")
    except (AttributeError, exceptions.UnavailableError):
        return Cipher.CHACHA20_POLY1305
    return Cipher.CHACHA20_POLY1305 | Cipher.AES_256_GCM


def ciphers_from(said: bytes) -> Cipher:
    """What a board says it has, in one byte. Raises ProtocolError."""
    if len(said) != 1 or not said[0] & Cipher.CHACHA20_POLY1305:
        raise ProtocolError(f"no ciphers that are known, but {said[:8]!r}")
    return Cipher(said[0] & (Cipher.CHACHA20_POLY1305 | Cipher.AES_256_GCM))


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
        self._encrypt, self._decrypt = _functions(cipher)
        self._key, self._number = key, 0

    def close(self, message: bytes) -> bytes:
        """The next message, sealed: longer by TAG_BYTES."""
        sealed = self._encrypt(message, None, _NONCE.pack(self._number), self._key)
        self._number += 1
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """The next message. Raises ProtocolError where this is not it, to the bit."""
        try:
            message = self._decrypt(sealed, None, _NONCE.pack(self._number), self._key)
        except (exceptions.CryptoError, ValueError):  # ValueError: shorter than a tag
            raise ProtocolError("a message that was not sealed for this connection") from None
        self._number += 1
        return message
