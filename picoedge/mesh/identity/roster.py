"""Roster: the keys of a cluster's boards, as signed entries that any board can verify.

One entry per key, signed by the cluster's key, allows or revokes it; a revoked key is never
allowed again. `merge` keeps the stronger entry of each key: it is commutative and idempotent, so
boards that gossip in any order end with the same roster. `RosterFile` keeps it on disk, where both
the daemon and `picoedge keys` write it, under a lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from picoedge.errors import AccessError, MeshError, ProtocolError
from picoedge.fields import Fields
from picoedge.mesh.cluster_folder import Stamp, folder_lock, read_json, stamp_of, write_json
from picoedge.mesh.identity.identity import (
    MAX_NAME,
    NAME_PATTERN,
    ROSTER_FILE,
    SIGNATURE_BYTES,
    SigningKey,
    decode_z85,
    fingerprint,
    is_key,
    is_name,
    read_key,
    verifies,
)

ALLOW, REVOKE = "allow", "revoke"
REMEDY = "remove the folder, and join again with a new invite"
MAX_ENTRIES = 1024  # far above a LAN of boards; with their signatures 300 KB, which fit one message
MAX_SERIAL = (1 << 53) - 1  # JSON numbers up to here are exact in every language
_DOMAIN = "picoedge roster 1"
_NAMED = f"letters, digits, '.', '_' and '-', at most {MAX_NAME} of them"


@dataclass(frozen=True)
class Cluster:
    """A cluster's identity: its name, and the public key that verifies its entries."""

    name: str
    key: str

    @property
    def tag(self) -> str:
        """16 hexadecimal digits, a hash of both: tells clusters of one name apart."""
        return fingerprint(_joined(self.name, self.key))


@dataclass(frozen=True)
class Entry:
    """A signed statement about one key. `serial` increases with each entry of a cluster."""

    kind: str
    public: str
    name: str
    serial: int
    signature: str = ""

    def signed_bytes(self, cluster: Cluster) -> bytes:
        """The bytes that are signed: the entry and its cluster."""
        about = (cluster.key, cluster.name, self.kind, self.public, self.name, str(self.serial))
        return _joined(_DOMAIN, *about)

    @property
    def strength(self) -> tuple[bool, int, str, str]:
        """Of two entries of a key, the one with the greater strength counts."""
        return self.kind == REVOKE, self.serial, self.name, self.signature

    def to_json(self) -> dict[str, object]:
        """As `_read_entry` takes it."""
        return dict(vars(self))


def _joined(*fields: str) -> bytes:
    return "\n".join(fields).encode()  # no field has a line end in it


@dataclass(frozen=True)
class Roster:
    """The boards of `cluster`. `entries` are verified, one per key, sorted by key."""

    cluster: Cluster
    entries: tuple[Entry, ...] = ()

    @cached_property
    def _by_public(self) -> dict[str, Entry]:
        return {entry.public: entry for entry in self.entries}

    def is_allowed(self, public: str) -> bool:
        """Whether a board with this key is admitted."""
        return public in self.members

    def name_of(self, public: str) -> str | None:
        """The name of the board with this key, revoked or not; None for an unknown key."""
        entry = self._by_public.get(public)
        return None if entry is None else entry.name

    @cached_property
    def shown_names(self) -> Mapping[str, str]:
        """Public key to a name that no other board is shown by.

        Two boards have one name where rosters were merged, or one of them is revoked: then the
        beginning of the key's hash is added.
        """
        count = Counter(self.members.values())  # a member's name is its own, or free of members
        return {
            entry.public: entry.name
            if count[entry.name] == (entry.kind == ALLOW)
            else f"{entry.name[: MAX_NAME - 5]}-{fingerprint(entry.public.encode())[:4]}"
            for entry in self.entries
        }

    @cached_property
    def members(self) -> Mapping[str, str]:
        """Public key to name of the admitted boards, in the order of their admission."""
        return self._named(ALLOW)

    @cached_property
    def revoked(self) -> Mapping[str, str]:
        """Public key to name of the revoked boards."""
        return self._named(REVOKE)

    def _named(self, kind: str) -> Mapping[str, str]:
        entries = sorted(self.entries, key=lambda entry: (entry.serial, entry.public))
        return MappingProxyType({e.public: e.name for e in entries if e.kind == kind})

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits: equal rosters have equal ones."""
        said = [_joined(self.cluster.name, self.cluster.key)]
        said += [e.signed_bytes(self.cluster) + e.signature.encode() for e in self.entries]
        return fingerprint(b"\n".join(said))

    def merge(self, other: Roster) -> Roster:
        """The stronger entry of each key. Raises AccessError for another cluster's roster."""
        if other.cluster != self.cluster:
            raise _foreign(self.cluster)
        if other.entries == self.entries:
            return self
        held = dict(self._by_public)
        for entry in other.entries:
            mine = held.get(entry.public)
            if mine is None or entry.strength > mine.strength:
                held[entry.public] = entry
        return self._holding(held)

    def with_allow(self, signing: SigningKey, public: str, name: str) -> Roster:
        """With the board `public` admitted under `name`, or renamed to it.

        Raises AccessError if the key is revoked, the name is taken, or the roster is full.
        """
        if not is_key(public):
            raise AccessError("that is not a public key", "picoedge keys show there tells it")
        if not is_name(name):
            raise AccessError("that is no name for a board", _NAMED)
        if public in self.revoked:
            raise AccessError(
                f"the key of {self.name_of(public)} is revoked, for good",
                "remove its cluster folder there, and join again with a new invite",
            )
        if self.members.get(public) == name:
            return self
        if any(taken == name and key != public for key, taken in self.members.items()):
            raise AccessError(f"another board is called {name}", "choose another name")
        return self._with(signing, ALLOW, public, name)

    def with_revoke(self, signing: SigningKey, public: str) -> Roster:
        """With the board `public` revoked. Raises AccessError if it was never in it."""
        name = self.name_of(public)
        if name is None:
            raise AccessError("no board of this cluster has that key", "picoedge keys show")
        return self if public in self.revoked else self._with(signing, REVOKE, public, name)

    def free_name(self, name: str) -> str:
        """`name`, or if it is taken `name-2` and so on."""
        taken = set(self.members.values())
        tried, number = name, 1
        while tried in taken:
            number += 1
            tried = f"{name[: MAX_NAME - 5]}-{number}"
        return tried

    def _with(self, signing: SigningKey, kind: str, public: str, name: str) -> Roster:
        if signing.public != self.cluster.key:
            raise AccessError("this is not the signing key of the cluster", "restore it")
        if public not in self._by_public and len(self.entries) >= MAX_ENTRIES:
            raise AccessError(f"a cluster has at most {MAX_ENTRIES} keys", "make a new cluster")
        serial = 1 + max((entry.serial for entry in self.entries), default=0)
        entry = Entry(kind, public, name, serial)
        signature = signing.sign(entry.signed_bytes(self.cluster))
        return self._holding({**self._by_public, public: replace(entry, signature=signature)})

    def _holding(self, held: dict[str, Entry]) -> Roster:
        return Roster(self.cluster, tuple(held[public] for public in sorted(held)))

    def to_json(self) -> dict[str, object]:
        """As `from_json` takes it. Contains no secret."""
        entries = [entry.to_json() for entry in self.entries]
        return {"cluster": dict(vars(self.cluster)), "entries": entries}

    @classmethod
    def from_json(cls, value: object, known: Roster | None = None) -> Roster:
        """A roster from a peer or a file; every signature is verified.

        With `known`, a roster of another cluster is refused at once, and entries already in
        `known` are not verified again. Raises ProtocolError if it is malformed, AccessError if
        it is another cluster's or a signature is wrong.
        """
        fields = Fields(value, "a roster").only(("cluster", "entries"))
        cluster = _read_cluster(fields.object("cluster"))
        if known is not None and cluster != known.cluster:
            raise _foreign(known.cluster)
        verified = {} if known is None else known._by_public
        listed = fields.objects("entries", MAX_ENTRIES)
        entries = tuple(_read_entry(entry, cluster, verified) for entry in listed)
        keys = [entry.public for entry in entries]
        if keys != sorted(set(keys)):
            raise ProtocolError("a roster is not in the order of its keys, one entry each")
        return cls(cluster, entries)


class RosterFile:
    """`roster.json` of a cluster folder. `roster` is the one read or written last.

    Raises AccessError if the file is missing, damaged or forged, StorageError if it cannot be
    read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / ROSTER_FILE
        self._stamp: Stamp | None = stamp_of(self.path)
        self.roster = self._read(None)

    def reload_if_changed(self) -> bool:
        """Merge the file if another process has replaced it; whether `roster` has changed.

        Entries are never lost to an older file. A damaged file raises once.
        """
        stamp = stamp_of(self.path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        return self._hold(self.roster.merge(self._read(self.roster)))

    def update(self, change: Callable[[Roster], Roster]) -> bool:
        """Apply `change` to the newest roster and save it; whether `roster` has changed.

        It is on the disk when this returns. If `change` raises, nothing is changed.
        """
        with folder_lock(self.folder):
            on_disk = self._read(self.roster)
            changed = change(self.roster.merge(on_disk))
            if changed != on_disk:
                write_json(self.path, changed.to_json())
            self._stamp = stamp_of(self.path)
        return self._hold(changed)

    def read(self, value: object) -> Roster:
        """A roster (JSON) from a peer, verified.

        Raises ProtocolError or AccessError if it is malformed, another cluster's or forged.
        """
        return Roster.from_json(value, self.roster)

    def take(self, theirs: Roster) -> bool:
        """Merge a roster of this cluster; whether it had anything new. Raises as `update`."""
        if self.roster.merge(theirs) == self.roster:
            return False
        return self.update(lambda roster: roster.merge(theirs))

    def _hold(self, roster: Roster) -> bool:
        changed = roster != self.roster
        self.roster = roster
        return changed

    def _read(self, known: Roster | None) -> Roster:
        value = read_json(self.path, REMEDY)
        if value is None:
            raise AccessError(f"{self.path}: there is no roster", REMEDY)
        try:
            return Roster.from_json(value, known)
        except MeshError as error:
            raise AccessError(f"{self.path}: {error.message}", error.hint or REMEDY) from None


def _foreign(cluster: Cluster) -> MeshError:
    return AccessError(
        f"a roster of another cluster than {cluster.name}", "a board is in one cluster at a time"
    )


def _read_cluster(fields: Fields) -> Cluster:
    fields.only(("name", "key"))
    return Cluster(fields.text("name", MAX_NAME, NAME_PATTERN, "a name"), read_key(fields, "key"))


def _read_entry(fields: Fields, cluster: Cluster, verified: Mapping[str, Entry]) -> Entry:
    fields.only(Entry.__dataclass_fields__)
    entry = Entry(
        fields.one_of("kind", (ALLOW, REVOKE)),
        read_key(fields, "public"),
        fields.text("name", MAX_NAME, NAME_PATTERN, "a name"),
        fields.integer("serial", 1, MAX_SERIAL),
        fields.get("signature", str),
    )
    if decode_z85(entry.signature, SIGNATURE_BYTES) is None:
        raise fields.fault("signature", "a signature")
    if entry == verified.get(entry.public):
        return entry
    if not verifies(cluster.key, entry.signed_bytes(cluster), entry.signature):
        raise AccessError(f"the entry of {entry.name} is not signed by the cluster, in a roster")
    return entry
