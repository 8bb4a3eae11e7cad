"""Keys: a Curve25519 pair identifies a board, an Ed25519 key signs for the cluster.

All are written in Z85 (ZeroMQ RFC 32): 40 characters for a key, 80 for a signature.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from typing import TypeGuard

import zmq
from zmq.utils import z85

KEY_BYTES = 32
SIGNATURE_BYTES = 64
FINGERPRINT_BYTES = 8
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]*", re.ASCII)


def decode_z85(text: object, n_bytes: int) -> bytes | None:
    """The `n_bytes` that `text` encodes; None if it is not Z85 of that length."""
    if not isinstance(text, str) or len(text) * 4 != n_bytes * 5 or not _Z85.fullmatch(text):
        return None
    try:
        return bytes(z85.decode(text))
    except struct.error:  # five digits above 32 bits
        return None


def is_key(text: object) -> TypeGuard[str]:
    """Whether `text` is a key in Z85."""
    return decode_z85(text, KEY_BYTES) is not None


@dataclass(frozen=True)
class KeyPair:
    """Curve25519 keys in Z85, 40 characters each. `repr` leaves the secret out."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """A random pair."""
        while True:
            public, secret = zmq.curve_keypair()
            if not public.startswith(b"-"):  # a command line would read it as an option
                return cls(public.decode(), secret.decode())

    @classmethod
    def of_secret(cls, secret: str) -> KeyPair:
        """The pair of a secret key (checked by `is_key`)."""
        return cls(zmq.curve_public(secret.encode()).decode(), secret)


@dataclass(frozen=True)
class SigningKey:
    """A cluster's Ed25519 key, as its seed in Z85. (Curve25519 keys cannot sign.)"""

    seed: str = field(repr=False)

    @classmethod
    def new(cls) -> SigningKey:
        """A random key."""
        return cls(z85.encode(os.urandom(KEY_BYTES)).decode())

    @property
    def public(self) -> str:
        """The public key that verifies signatures of this one."""
        return z85.encode(self._pair()[0]).decode()

    def sign(self, message: bytes) -> str:
        """The signature in Z85; deterministic."""
        from nacl.bindings import crypto_sign

        signed: bytes = crypto_sign(message, self._pair()[1])
        return z85.encode(signed[:SIGNATURE_BYTES]).decode()

    def _pair(self) -> tuple[bytes, bytes]:
        from nacl.bindings import crypto_sign_seed_keypair

        seed = decode_z85(self.seed, KEY_BYTES)
        assert seed is not None, "a seed is checked where it is read"
        pair: tuple[bytes, bytes] = crypto_sign_seed_keypair(seed)
        return pair


def verifies(public: str, message: bytes, signature: str) -> bool:
    """Whether `signature` of `message` is by the Ed25519 key `public`."""
    from nacl.bindings import crypto_sign_open
    from nacl.exceptions import CryptoError

    key, signed = decode_z85(public, KEY_BYTES), decode_z85(signature, SIGNATURE_BYTES)
    if key is None or signed is None:
        return False
    try:
        crypto_sign_open(signed + message, key)
    except CryptoError:
        return False
    return True


def fingerprint(data: bytes) -> str:
    """16 hexadecimal digits of the BLAKE2b hash. (`hashlib` would load 4 MB of OpenSSL.)"""
    from nacl.bindings import crypto_generichash_blake2b_salt_personal

    hashed: bytes = crypto_generichash_blake2b_salt_personal(data, digest_size=FINGERPRINT_BYTES)
    return hashed.hex()
