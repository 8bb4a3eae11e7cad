"""This board's identity: its name and keys, in a folder that only this user can read.

A Curve25519 pair identifies a board, an Ed25519 key signs for the cluster. All are written in Z85
(ZeroMQ RFC 32): 40 characters for a key, 80 for a signature. `board.json` is written last on
joining a cluster: a folder without it has no identity.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import zmq
from zmq.utils import z85

from picoedge.errors import AccessError, UsageError
from picoedge.fields import Fields
from picoedge.mesh.cluster_folder import folder_lock, read_json, write_json

IDENTITY_FILE, ROSTER_FILE = "board.json", "roster.json"
JOIN_REMEDY = "picoedge keys init makes a cluster; picoedge run --join STRING joins one"
MAX_NAME = 32  # shorter than a key, so that neither can be mistaken for the other
NAME_PATTERN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}", re.ASCII)
KEY_BYTES = 32  # of Curve25519, and of Ed25519
SIGNATURE_BYTES = 64  # of Ed25519
FINGERPRINT_BYTES = 8  # it tells clusters and rosters apart; signatures prove them
_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]*", re.ASCII)


def is_name(text: object) -> bool:
    """Whether `text` can name a board or a cluster."""
    return isinstance(text, str) and NAME_PATTERN.fullmatch(text) is not None


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


def read_key(fields: Fields, name: str) -> str:
    """The public key in a field. Raises the error of `fields`."""
    key = fields.get(name, str)
    if not is_key(key):
        raise fields.fault(name, "a public key")
    return key


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


@dataclass(frozen=True)
class Identity:
    """Name and keys of this board. `load_signing_key` has the cluster's, if it is here."""

    name: str
    keys: KeyPair
    folder: Path


def load_identity(folder: Path) -> Identity:
    """Raises AccessError if there is none, it is damaged, or other users can read it."""
    values = _read(folder)
    return Identity(values["name"], KeyPair(values["public"], values["secret"]), folder)


def load_signing_key(folder: Path) -> SigningKey:
    """The cluster's signing key. Raises AccessError on all boards but its founder."""
    seed = _read(folder)["signing"]
    if seed is None:
        raise AccessError(
            "this board does not have the cluster's signing key",
            "run this on the board where picoedge keys init made the cluster",
        )
    return SigningKey(seed)


def has_signing_key(folder: Path) -> bool:
    """Whether this board can admit others. Raises AccessError as `load_identity`."""
    return _read(folder)["signing"] is not None


def require_board_name(name: str) -> None:
    """Raises UsageError if `name` cannot name a board."""
    if not is_name(name):
        raise UsageError(
            f"no name for a board: {name!r}", f"letters, digits, '.', '_', '-'; at most {MAX_NAME}"
        )


def require_no_identity(folder: Path) -> None:
    """Raises AccessError if this board is in a cluster."""
    if (folder / IDENTITY_FILE).exists():
        raise AccessError(
            f"{folder}: this board is in a cluster already",
            "to leave it for good, remove that folder",
        )


def board_name_of(host: str) -> str:
    """The default name of a board: its host name without what a name may not contain."""
    label = re.sub(r"[^A-Za-z0-9_-]+", "-", host.split(".")[0])
    return label.strip("-_")[:MAX_NAME] or "board"


def create_identity(
    folder: Path,
    name: str,
    roster: Mapping[str, object],
    keys: KeyPair,
    signing: SigningKey | None = None,
) -> Identity:
    """Save this board's identity and its first roster (JSON): both or neither.

    Raises AccessError if the folder has an identity already, UsageError for a bad name.
    """
    require_board_name(name)
    values = {
        "name": name,
        "public": keys.public,
        "secret": keys.secret,
        "signing": None if signing is None else signing.seed,
    }
    with folder_lock(folder):
        require_no_identity(folder)
        write_json(folder / ROSTER_FILE, roster)
        write_json(folder / IDENTITY_FILE, values)
    return Identity(name, keys, folder)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / IDENTITY_FILE
    value = read_json(path, f"restore it, or remove the folder: {JOIN_REMEDY}")
    if value is None:
        raise AccessError(f"{folder}: this board is in no cluster", JOIN_REMEDY)
    if path.stat().st_mode & 0o077:
        raise AccessError(f"{path}: others can read this board's secret key", f"chmod 600 {path}")
    if not _well_formed(value):
        raise AccessError(f"{path}: damaged", f"restore it, or remove the folder: {JOIN_REMEDY}")
    return value


def _well_formed(value: Mapping[str, Any]) -> bool:
    if value.keys() != {"name", "public", "secret", "signing"} or not is_name(value["name"]):
        return False
    public, secret, signing = value["public"], value["secret"], value["signing"]
    if not is_key(public) or not is_key(secret) or not (signing is None or is_key(signing)):
        return False
    return KeyPair.of_secret(secret).public == public
