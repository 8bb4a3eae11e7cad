"""Membership of a cluster: rosters, identities, invites, announcements."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from fuzz.inputs import of_bytes, of_json
from fuzz.mutate import mutate_text, mutate_value, to_json
from fuzz.target import Run, Target
from fuzz.targets.board_messages import (
    KEYS,
)
from picoedge.mesh.addresses import parse_address
from picoedge.mesh.identity.admission import INVITE_PREFIX, Invites, found_cluster, parse_invite
from picoedge.mesh.identity.identity import Identity, load_identity, load_signing_key
from picoedge.mesh.identity.lifetime import Moment
from picoedge.mesh.identity.roster import Roster, RosterFile
from picoedge.mesh.node.announce import read_announcement

# -- identity ------------------------------------------------------------------------------------


def _cluster(folder: Path) -> Identity:
    return found_cluster(folder / "home", "desk", "b0")


def _roster(folder: Path) -> Run:
    """The file of a board, which a bad card may have changed; then what a peer sends."""
    identity = _cluster(folder)
    rosters = RosterFile(identity.folder)
    signing = load_signing_key(identity.folder)
    rosters.update(lambda roster: roster.with_allow(signing, KEYS[1].public, "b1"))
    path, good = rosters.path, rosters.path.read_bytes()
    template = json.loads(good)

    def run(data: bytes) -> None:
        changed = data.replace(b'"@cluster"', json.dumps(template["cluster"]["key"]).encode())
        for number, entry in enumerate(template["entries"]):
            changed = changed.replace(
                f'"@{number}s"'.encode(), json.dumps(entry["signature"]).encode()
            )
            changed = changed.replace(
                f'"@{number}p"'.encode(), json.dumps(entry["public"]).encode()
            )
            changed = changed.replace(f'"@{number}n"'.encode(), json.dumps(entry["name"]).encode())
            changed = changed.replace(
                f'"@{number}#"'.encode(), json.dumps(entry["serial"]).encode()
            )
        path.write_bytes(changed)
        try:
            RosterFile(identity.folder)
        finally:
            path.write_bytes(good)
        rosters.take(Roster.from_json(json.loads(changed), rosters.roster))

    return run


ROSTER = {
    "cluster": {"name": "desk", "key": "@cluster"},
    "entries": [
        {
            "kind": "allow",
            "public": f"@{i}p",
            "name": f"@{i}n",
            "serial": f"@{i}#",
            "signature": f"@{i}s",
        }
        for i in range(2)
    ],
}


def _identity_file(folder: Path) -> Run:
    identity = _cluster(folder)
    path = identity.folder / "board.json"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        load_identity(identity.folder)

    return run


def _identity_samples() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        return [(_cluster(Path(name)).folder / "board.json").read_bytes()]


def _invites_file(folder: Path) -> Run:
    identity = _cluster(folder)
    invites = Invites(identity.folder)

    def run(data: bytes) -> None:
        invites.path.write_bytes(data)
        invites.is_open(KEYS[0].public, Moment(1.0, 1.0, "a boot"))

    return run


def _invite(folder: Path) -> Run:
    def run(data: bytes) -> None:
        invitation = parse_invite(data.decode("utf-8", "replace"))
        assert parse_invite(invitation.to_string()) == invitation

    return run


INVITE: dict[str, Any] = {
    "address": "10.0.0.2:7433",
    "server": KEYS[0].public,
    "secret": KEYS[1].secret,
    "expires": 1 << 33,
    "cluster": KEYS[1].public,
}


INVITE_OF_MANY = {**INVITE, "more": "[fe80::1%eth0]:7433,b0.lan:7433"}


def _as_invite(value: Any) -> bytes:
    return (INVITE_PREFIX + base64.urlsafe_b64encode(to_json(value)).decode().rstrip("=")).encode()


def _mutated_invite(rng: Random, given: Sequence[bytes]) -> bytes:
    if rng.randrange(3) == 0:
        return mutate_text(rng, given[0].decode()).encode("utf-8", "surrogatepass")
    return _as_invite(mutate_value(rng, rng.choice((INVITE, INVITE_OF_MANY)), ("more",)))


def _announcement(folder: Path) -> Run:
    def run(data: bytes) -> None:
        parts = data.split(b"\xff")
        hosts = [part.decode("utf-8", "replace") for part in parts[2:]]
        read_announcement({b"cluster": b"ab", b"key": parts[0]}, hosts, len(data) % 65536, "ab")
        for host in hosts:
            parse_address(host)

    return run


IDENTITY = (
    Target(
        "roster",
        _roster,
        **of_json(ROSTER),
        modules=(
            "mesh/identity/roster.py:Roster.from_json,RosterFile.take,RosterFile._read,_read_cluster,_read_entry",
        ),
        also=(ValueError, RecursionError),
    ),
    Target("identity", _identity_file, **of_bytes(_identity_samples), weight=2),
    Target("invites", _invites_file, **of_json({"open": {KEYS[0].public: 1 << 33}}), weight=2),
    Target(
        "invite",
        _invite,
        lambda: [_as_invite(INVITE), _as_invite(INVITE_OF_MANY)],
        _mutated_invite,
        ("mesh/identity/admission.py:parse_invite,_decoded",),
        weight=4,
    ),
    Target(
        "announcement",
        _announcement,
        **of_bytes(
            lambda: [KEYS[0].public.encode() + b"\xff\xff10.0.0.2\xfffe80::1%eth0\xff[::1]:80"]
        ),
        weight=4,
    ),
)
