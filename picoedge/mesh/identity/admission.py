"""Entering a cluster: making one, letting a board in by its invite, being let in."""

from __future__ import annotations

from pathlib import Path

from picoedge.errors import AccessError, ProtocolError, UsageError
from picoedge.mesh.identity.identity import (
    Identity,
    create_identity,
    require_board_name,
    require_no_identity,
)
from picoedge.mesh.identity.invite import Invitation, Invites
from picoedge.mesh.identity.keys import KeyPair, SigningKey, is_key
from picoedge.mesh.identity.roster import Cluster, Roster, is_name
from picoedge.mesh.identity.roster_file import RosterFile
from picoedge.mesh.private_files import locked, read_json, write_json

JOINING = "joining.json"


def found_cluster(folder: Path, cluster: str, board: str) -> Identity:
    """Make a cluster of this one board, which from then on lets others in.

    Raises AccessError where the board is in a cluster already, UsageError for a bad name.
    """
    if not is_name(cluster):
        raise UsageError("that is no name for a cluster", "letters, digits, '.', '_' and '-'")
    require_board_name(board)
    signing, keys = SigningKey.new(), KeyPair.new()
    roster = Roster(Cluster(cluster, signing.public)).with_allow(signing, keys.public, board)
    return create_identity(folder, board, roster, keys, signing)


def await_allow(folder: Path, roster_json: object, board: str) -> Identity:
    """Make this board's keys for a cluster whose roster was brought here.

    It is in once `picoedge keys allow` was given its public key. Raises as `found_cluster`, and
    AccessError or ProtocolError for a bad roster.
    """
    require_board_name(board)
    return create_identity(folder, board, Roster.from_json(roster_json), KeyPair.new())


def admit(
    roster_file: RosterFile,
    signing: SigningKey,
    invite: str,
    public: str,
    name: str,
    now: float,
) -> Roster:
    """Let the board `public` in for the invite of the one-time key `invite`, which is spent.

    A name that another board has gets a number. `public` and `name` are a peer's words. Raises
    ProtocolError where they are malformed, AccessError where the invite is not open (any more)
    or the key is revoked.
    """
    if not is_key(public) or not is_name(name) or public == invite:
        raise ProtocolError("a board that joins sent a malformed key or name")
    if not Invites(roster_file.folder).spend(invite, now):
        raise AccessError("this invite is used up or too old", "picoedge keys invite makes one")

    def allowing(roster: Roster) -> Roster:
        called = roster.members.get(public)  # a member's name is not the invited one's to change
        return roster.with_allow(signing, public, called or roster.free_name(name))

    roster_file.update(allowing)
    return roster_file.roster


def joining_keys(folder: Path) -> KeyPair:
    """The keys this board asks to be let in with: the same at each try, however tries end.

    Raises AccessError where the board is in a cluster already.
    """
    path = folder / JOINING
    with locked(folder):
        require_no_identity(folder)
        value = read_json(path, f"remove {path}")
        secret = (value or {}).get("secret")
        if is_key(secret):
            return KeyPair.of_secret(secret)
        keys = KeyPair.new()
        write_json(path, {"secret": keys.secret})
        return keys


def accept(folder: Path, invitation: Invitation, roster_json: object, keys: KeyPair) -> Identity:
    """Save what the inviting board answered: this board is in. It is named as the roster says.

    Raises ProtocolError or AccessError where the answer is not the cluster's or does not name us.
    """
    roster = Roster.from_json(roster_json)
    name = roster.members.get(keys.public)
    if roster.cluster.key != invitation.cluster or name is None:
        raise AccessError("the answer is not of the cluster that invited", "ask for a new invite")
    identity = create_identity(folder, name, roster, keys)
    with locked(folder):
        (folder / JOINING).unlink(missing_ok=True)
    return identity
