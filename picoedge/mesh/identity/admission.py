"""Admission to a cluster: found one, admit a board by its invite, accept being admitted."""

from __future__ import annotations

from pathlib import Path

from picoedge.errors import AccessError, ProtocolError, UsageError
from picoedge.mesh.cluster_folder import folder_lock, read_json, write_json
from picoedge.mesh.identity.identity import (
    Identity,
    KeyPair,
    SigningKey,
    create_identity,
    is_key,
    is_name,
    require_board_name,
    require_no_identity,
)
from picoedge.mesh.identity.invite import Invitation, Invites
from picoedge.mesh.identity.roster import Cluster, Roster, RosterFile

JOINING = "joining.json"


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
    roster_file: RosterFile, signing: SigningKey, invite: str, public: str, name: str, now: float
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
