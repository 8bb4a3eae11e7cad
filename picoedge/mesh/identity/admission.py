"""Admission to a cluster: found one, admit a board by its invite, accept being admitted.

An invite is a string that admits one board, once, within a limited time. It contains the secret
half of a one-time key pair. The board that issued it keeps the public half in `invites.json` until
it is used or expires: a new board may not know the time yet.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from picoedge.errors import AccessError, PicoedgeError, ProtocolError, UsageError
from picoedge.fields import Fields
from picoedge.mesh.addresses import parse_addresses
from picoedge.mesh.cluster_folder import Stamp, folder_lock, read_json, stamp_of, write_json
from picoedge.mesh.identity.identity import (
    Identity,
    KeyPair,
    SigningKey,
    create_identity,
    is_key,
    is_name,
    load_identity,
    load_signing_key,
    read_key,
    require_board_name,
    require_no_identity,
)
from picoedge.mesh.identity.lifetime import MAX_TIME, Lifetime, Moment
from picoedge.mesh.identity.roster import Cluster, Roster, RosterFile

INVITE_PREFIX = "picoedge-join:"
MAX_OPEN = 64  # each is a key that may connect: enough to set up a cluster in one go
MAX_CHARACTERS = 1024  # an invite has about 300
INVITES_FILE, JOINING = "invites.json", "joining.json"
_MAX_ADDRESSES = 8  # of the board that invites: a few interfaces, IPv4 and IPv6
_FIELDS = ("address", "more", "server", "secret", "expires", "cluster")


def dialled_addresses(text: str) -> tuple[str, ...]:
    """`text` as HOST:PORT,… to which a peer can connect. Raises UsageError."""
    addresses = parse_addresses(text)
    for address in addresses:
        if address.is_everywhere or not address.port:
            raise UsageError(f"no board can be asked at {address}", "name addresses of this board")
    if not 0 < len(addresses) <= _MAX_ADDRESSES:
        raise UsageError(f"an invite has 1 to {_MAX_ADDRESSES} addresses, not {len(addresses)}")
    return tuple(map(str, addresses))


@dataclass(frozen=True)
class Invitation:
    """The content of an invite: the board to ask, the one-time keys, the cluster.

    `server` is the public key of the board at `addresses` (HOST:PORT), `cluster` verifies its
    roster, `expires` is in unix seconds of that board.
    """

    addresses: tuple[str, ...]
    server: str
    keys: KeyPair
    expires: int
    cluster: str

    def to_string(self) -> str:
        """The string to type on the other board. It is a secret: any reader can use it."""
        fields = {
            "address": self.addresses[0],
            "server": self.server,
            "secret": self.keys.secret,
            "expires": self.expires,
            "cluster": self.cluster,
        }
        if more := self.addresses[1:]:  # older boards take an invite of one address alone
            fields["more"] = ",".join(more)
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
        fields = Fields(json.loads(base64.b64decode(padded, b"-_", validate=True))).only(_FIELDS)
        address, secret = fields.text("address"), read_key(fields, "secret")
        more = fields.text("more") if "more" in fields.values else ""
        server, cluster = read_key(fields, "server"), read_key(fields, "cluster")
        expires = fields.integer("expires", 0, MAX_TIME)
        addresses = dialled_addresses(f"{address},{more}")
        if ",".join(addresses) != f"{address},{more}".rstrip(","):
            return None
    except (PicoedgeError, ValueError, RecursionError):
        return None
    return Invitation(addresses, server, KeyPair.of_secret(secret), expires, cluster)


class Invites:
    """The open invites of this board, kept on disk: one-time keys, and how long each is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / INVITES_FILE
        self._seen: Stamp | None = None
        self._seen_open: dict[str, Lifetime] = {}

    def issue(self, address: str, cluster: str, ttl_s: float, now: Moment) -> str:
        """A new invite for the board at `address` (HOST:PORT,…), valid for `ttl_s`, as a string.

        `cluster` is the cluster's public key. Raises AccessError if this board cannot admit
        others or too many invites are open, UsageError for a bad address.
        """
        asked = dialled_addresses(address)
        load_signing_key(self.folder)
        server, life = load_identity(self.folder).keys.public, Lifetime.of(ttl_s, now)
        invitation = Invitation(asked, server, KeyPair.new(), life.expires, cluster)
        with folder_lock(self.folder):
            opened = self._open(now)
            if len(opened) >= MAX_OPEN:
                raise AccessError(f"{MAX_OPEN} invites are open", "use them, or wait for their end")
            self._write({**opened, invitation.keys.public: life})
        return invitation.to_string()

    def is_open(self, public: str, now: Moment) -> bool:
        """Whether the one-time key `public` may still ask to join; False if the file is damaged.

        Any client can make a daemon call this, so an unchanged file is not read again.
        """
        stamp = stamp_of(self.path)
        if stamp != self._seen:
            self._seen, self._seen_open = stamp, {}
            with suppress(PicoedgeError):
                self._seen_open = self._open(now)
        life = self._seen_open.get(public)
        return life is not None and life.left_s(now) > 0

    def settle(self, now: Moment) -> None:
        """Forget invites that are over, and note that this boot has seen the others.

        For a daemon to call at its start, and now and then: an expired invite must not be open
        again after a restart with another clock. Raises AccessError, StorageError.
        """
        if self._open(now) != self._read():
            with folder_lock(self.folder):
                self._write(self._open(now))

    def spend(self, public: str, now: Moment) -> bool:
        """Use up an invite, on disk before this returns; True for the first caller only."""
        with folder_lock(self.folder):
            opened = self._open(now)
            if public not in opened:
                return False
            del opened[public]
            self._write(opened)
        return True

    def open_until(self, now: Moment) -> list[int]:
        """Ends of the open invites (unix seconds of a clock that is as now), ascending."""
        left = (life.left_s(now) for life in self._open(now).values())
        return sorted(math.ceil(now.unix_s + left_s) for left_s in left)

    def _open(self, now: Moment) -> dict[str, Lifetime]:
        """The invites that are open, counted by this boot."""
        found = self._read().items()
        return {key: life.in_boot(now) for key, life in found if life.left_s(now) > 0}

    def _read(self) -> dict[str, Lifetime]:
        remedy = f"remove {self.path}: open invites are then forgotten"
        listed = read_json(self.path, remedy) or {}
        try:
            if all(map(is_key, listed)):
                return {key: Lifetime.read(value) for key, value in listed.items()}
        except ProtocolError:
            pass
        raise AccessError(f"{self.path}: damaged", remedy)

    def _write(self, opened: Mapping[str, Lifetime]) -> None:
        write_json(self.path, {key: life.to_json() for key, life in opened.items()})


def found_cluster(folder: Path, cluster: str, board: str) -> Identity:
    """Make a cluster of this one board, which has its signing key and can admit others.

    Raises AccessError if the board is in a cluster already, UsageError for a bad name.
    """
    if not is_name(cluster):
        raise UsageError("that is no name for a cluster", "letters, digits, '.', '_' and '-'")
    require_board_name(board)
    signing, keys = SigningKey.new(), KeyPair.new()
    roster = Roster(Cluster(cluster, signing.public)).with_allow(signing, keys.public, board)
    return create_identity(folder, board, roster.to_json(), keys, signing)


def await_allow(folder: Path, roster_json: object, board: str) -> Identity:
    """Make this board's keys for a cluster whose roster was copied here as a file.

    The board is a member once its public key was given to `picoedge keys allow`. Raises as
    `found_cluster`, and AccessError or ProtocolError for a bad roster.
    """
    require_board_name(board)
    roster = Roster.from_json(roster_json)
    return create_identity(folder, board, roster.to_json(), KeyPair.new())


def admit(
    roster_file: RosterFile, signing: SigningKey, invite: str, public: str, name: str, now: Moment
) -> Roster:
    """Admit the board `public` and spend the invite with the one-time key `invite`.

    A name that is taken gets a number. `public` and `name` come from a peer, unchecked. Raises
    ProtocolError if they are malformed, AccessError if the invite is not open or the key is
    revoked.
    """
    if not is_key(public) or not is_name(name) or public == invite:
        raise ProtocolError("a board that joins sent a malformed key or name")
    if not Invites(roster_file.folder).spend(invite, now):
        raise AccessError("this invite is used up or too old", "picoedge keys invite makes one")

    def allowing(roster: Roster) -> Roster:
        called = roster.members.get(public)  # an invite does not rename a member
        return roster.with_allow(signing, public, called or roster.free_name(name))

    roster_file.update(allowing)
    return roster_file.roster


def joining_keys(folder: Path) -> KeyPair:
    """The keys with which this board asks to join: kept on disk, so the same at each attempt.

    Raises AccessError if the board is in a cluster already.
    """
    path = folder / JOINING
    with folder_lock(folder):
        require_no_identity(folder)
        value = read_json(path, f"remove {path}")
        secret = (value or {}).get("secret")
        if is_key(secret):
            return KeyPair.of_secret(secret)
        keys = KeyPair.new()
        write_json(path, {"secret": keys.secret})
        return keys


def accept(folder: Path, invitation: Invitation, roster_json: object, keys: KeyPair) -> Identity:
    """Save the roster that the inviting board replied with: this board is a member now.

    Its name is the roster's. Raises ProtocolError or AccessError if the roster is malformed, of
    another cluster, or without this board.
    """
    roster = Roster.from_json(roster_json)
    name = roster.members.get(keys.public)
    if roster.cluster.key != invitation.cluster or name is None:
        raise AccessError("the answer is not of the cluster that invited", "ask for a new invite")
    identity = create_identity(folder, name, roster.to_json(), keys)
    with folder_lock(folder):
        (folder / JOINING).unlink(missing_ok=True)
    return identity
