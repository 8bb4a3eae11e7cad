"""This board's identity: its name and keys, in a folder that only this user can read.

`board.json` is written last on joining a cluster: a folder without it has no identity.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.errors import AccessError, UsageError
from picoedge.mesh.identity.keys import KeyPair, SigningKey, is_key
from picoedge.mesh.identity.roster import MAX_NAME, Roster, is_name
from picoedge.mesh.identity.roster_file import write_first_roster
from picoedge.mesh.private_files import folder_lock, read_json, write_json

IDENTITY_FILE = "board.json"
JOIN_REMEDY = "picoedge keys init makes a cluster; picoedge run --join STRING joins one"


@dataclass(frozen=True)
class Identity:
    """Name and keys of this board. `load_signing_key` has the cluster's, if it is here."""

    name: str
    keys: KeyPair
    folder: Path


def cluster_folder(environ: Mapping[str, str]) -> Path:
    """$PICOEDGE_CLUSTER, or `picoedge/cluster` in the user's configuration."""
    if environ.get("PICOEDGE_CLUSTER"):
        return Path(environ["PICOEDGE_CLUSTER"])
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(config, "picoedge", "cluster")


def load_identity(folder: Path) -> Identity:
    """Raises AccessError if there is none, it is damaged, or other users can read it."""
    return _identity(folder, _read(folder))


def load_signing_key(folder: Path) -> SigningKey:
    """The cluster's signing key. Raises AccessError on all boards but the one that founded it."""
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
    folder: Path, name: str, roster: Roster, keys: KeyPair, signing: SigningKey | None = None
) -> Identity:
    """Save this board's identity and its first roster: both or neither.

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
        write_first_roster(folder, roster)
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
    if value.keys() != {"name", "public", "secret", "signing"}:
        return False
    if not is_name(value["name"]) or not is_key(value["public"]) or not is_key(value["secret"]):
        return False
    if value["signing"] is not None and not is_key(value["signing"]):
        return False
    return KeyPair.of_secret(value["secret"]).public == str(value["public"])


def _identity(folder: Path, values: dict[str, Any]) -> Identity:
    return Identity(values["name"], KeyPair(values["public"], values["secret"]), folder)
