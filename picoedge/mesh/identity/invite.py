"""Invites: strings that admit one board, once, within a limited time.

An invite contains the secret half of a one-time key pair. The board that issued it keeps the
public half in `invites.json` until it is used or expires, by that board's clock: a new board may
not know the time yet.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.errors import AccessError, PicoedgeError, UsageError
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.cluster_folder import Stamp, folder_lock, read_json, stamp_of, write_json
from picoedge.mesh.identity.identity import KeyPair, is_key, load_identity, load_signing_key

INVITE_PREFIX = "picoedge-join:"
MAX_OPEN = 64  # each is a key that may connect: enough to set up a cluster in one go
MAX_CHARACTERS = 1024  # an invite has about 300
INVITES_FILE = "invites.json"
_FIELDS = {"address", "server", "secret", "expires", "cluster"}


def dialled_address(text: str) -> str:
    """`text` as a HOST:PORT to which a peer can connect. Raises UsageError."""
    address = parse_address(text)
    if address.is_everywhere or not address.port:
        raise UsageError(f"no board can be asked at {address}", "name one address of this board")
    return str(address)


@dataclass(frozen=True)
class Invitation:
    """The content of an invite: the board to ask, the one-time keys, the cluster.

    `server` is the public key of the board at `address`, `cluster` verifies its roster,
    `expires` is in unix seconds of that board.
    """

    address: str
    server: str
    keys: KeyPair
    expires: int
    cluster: str

    def to_string(self) -> str:
        """The string to type on the other board. It is a secret: any reader can use it."""
        fields = {
            "address": self.address,
            "server": self.server,
            "secret": self.keys.secret,
            "expires": self.expires,
            "cluster": self.cluster,
        }
        data = json.dumps(fields, separators=(",", ":")).encode()
        return INVITE_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def parse_invite(text: str) -> Invitation:
    """The inverse of `to_string`. Raises UsageError, which does not repeat the string."""
    text = text.strip()
    if not text.startswith(INVITE_PREFIX):
        raise UsageError(
            f"an invite begins with {INVITE_PREFIX}", "picoedge keys invite prints one"
        )
    invitation = _decoded(text[len(INVITE_PREFIX) :]) if len(text) <= MAX_CHARACTERS else None
    if invitation is None:
        raise UsageError(
            "the invite is cut off or altered", "copy the whole line that picoedge keys invite gave"
        )
    return invitation


def _decoded(text: str) -> Invitation | None:
    padded = text.encode("ascii", "replace") + b"=" * (-len(text) % 4)
    try:
        fields = json.loads(base64.b64decode(padded, b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.keys() != _FIELDS or not _sound(fields):
        return None
    keys = KeyPair.of_secret(fields["secret"])
    cluster, expires = fields["cluster"], fields["expires"]
    return Invitation(fields["address"], fields["server"], keys, expires, cluster)


def _sound(fields: Mapping[str, object]) -> bool:
    address = fields["address"]
    try:
        dialled = isinstance(address, str) and dialled_address(address) == address
    except UsageError:
        return False
    keys = all(is_key(fields[name]) for name in ("server", "secret", "cluster"))
    return dialled and keys and _is_time(fields["expires"])


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


class Invites:
    """The open invites of this board, kept on disk. Times are unix seconds of this board."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / INVITES_FILE
        self._seen: Stamp | None = None
        self._seen_open: dict[str, int] = {}

    def issue(self, address: str, cluster: str, ttl_s: float, now: float) -> str:
        """A new invite for the board at `address` (HOST:PORT), valid for `ttl_s`, as a string.

        `cluster` is the cluster's public key. Raises AccessError if this board cannot admit
        others or too many invites are open, UsageError for a bad address.
        """
        asked = dialled_address(address)
        load_signing_key(self.folder)
        server = load_identity(self.folder).keys.public
        invitation = Invitation(asked, server, KeyPair.new(), math.ceil(now + ttl_s), cluster)
        with folder_lock(self.folder):
            opened = self._open(now)
            if len(opened) >= MAX_OPEN:
                raise AccessError(f"{MAX_OPEN} invites are open", "use them, or wait for their end")
            self._write({**opened, invitation.keys.public: invitation.expires})
        return invitation.to_string()

    def is_open(self, public: str, now: float) -> bool:
        """Whether the one-time key `public` may still ask to join; False if the file is damaged.

        Any client can make a daemon call this, so an unchanged file is not read again.
        """
        stamp = stamp_of(self.path)
        if stamp != self._seen:
            self._seen, self._seen_open = stamp, {}
            with suppress(PicoedgeError):
                self._seen_open = self._open(now)
        return now < self._seen_open.get(public, 0)

    def spend(self, public: str, now: float) -> bool:
        """Use up an invite, on disk before this returns; True for the first caller only."""
        with folder_lock(self.folder):
            opened = self._open(now)
            if public not in opened:
                return False
            del opened[public]
            self._write(opened)
        return True

    def open_until(self, now: float) -> list[int]:
        """Expiry times of the open invites (unix seconds), ascending."""
        return sorted(self._open(now).values())

    def _open(self, now: float) -> dict[str, int]:
        remedy = f"remove {self.path}: open invites are then forgotten"
        listed = read_json(self.path, remedy) or {}
        if not all(is_key(key) and _is_time(expires) for key, expires in listed.items()):
            raise AccessError(f"{self.path}: damaged", remedy)
        return {key: expires for key, expires in listed.items() if now < expires}

    def _write(self, opened: Mapping[str, int]) -> None:
        write_json(self.path, opened)
