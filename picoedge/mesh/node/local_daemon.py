"""`daemon.json`: where this board's other programs find its daemon.

It is in the cluster's folder, so that several boards can run on one machine. The daemon holds a
lock while it lives, which shows that the file of a killed one is stale.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.errors import BoardLostError, MeshError, UsageError
from picoedge.fields import Fields
from picoedge.files import take_lock
from picoedge.mesh.addresses import Address, parse_address
from picoedge.mesh.identity.identity import load_identity
from picoedge.mesh.private_files import folder_lock, read_json, write_json
from picoedge.mesh.transport.client import Client
from picoedge.mesh.transport.messages import NO_TRANSLATION, Translation

if TYPE_CHECKING:
    from picoedge.mesh.transport.curve import Context

FILE, LOCK = "daemon.json", "daemon.lock"
LOCK_S = 0.2  # a process that looks whether a daemon runs holds the lock for a moment


@dataclass(frozen=True)
class LocalDaemon:
    """The running daemon of this board."""

    pid: int
    address: Address
    incarnation: int


class DaemonFile:
    """Marks this process as the board's daemon, until `remove` or its end.

    Raises MeshError if another one runs, StorageError if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with folder_lock(folder):
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not take_lock(self._lock, LOCK_S):
            os.close(self._lock)
            raise _running(folder)

    def write(self, address: Address, incarnation: int) -> None:
        """Publish the address it listens on."""
        if address.is_everywhere:
            local = "::1" if ":" in address.host else "127.0.0.1"
            address = Address(local, address.port)
        said = {"pid": os.getpid(), "address": str(address), "incarnation": incarnation}
        with folder_lock(self._folder):
            write_json(self._folder / FILE, said)

    def remove(self) -> None:
        """Unpublish it. Idempotent."""
        if self._lock >= 0:
            (self._folder / FILE).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def find_local(folder: Path) -> LocalDaemon | None:
    """The daemon that runs with the identity in `folder`; None if there is none."""
    return _read(folder) if _is_locked(folder / LOCK) else None


def connect_local(
    context: Context, folder: Path, translation: Translation = NO_TRANSLATION
) -> Client:
    """A connection to this board's own daemon.

    Raises AccessError if the board is in no cluster, BoardLostError if no daemon runs.
    """
    identity = load_identity(folder)
    daemon = find_local(folder)
    if daemon is None:
        raise BoardLostError(
            f"no daemon runs on this board with the identity in {folder}",
            "start it: picoedge run",
            board=identity.name,
        )
    keys = identity.keys
    return Client(context, keys, daemon.address, keys.public, identity.name, translation)


def _read(folder: Path) -> LocalDaemon | None:
    try:
        fields = Fields(read_json(folder / FILE, "stop the daemon, and start it again"))
        address = parse_address(fields.text("address", 80))
        return LocalDaemon(fields.integer("pid"), address, fields.integer("incarnation"))
    except (MeshError, UsageError):
        return None


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not take_lock(file.fileno(), shared=True)
    except OSError:
        return False


def _running(folder: Path) -> MeshError:
    daemon = _read(folder)
    who = f"process {daemon.pid}, at {daemon.address}" if daemon else "it is just starting"
    return MeshError(
        f"a daemon with this identity runs already: {who}",
        "stop that one, or name another cluster folder in PICOEDGE_CLUSTER",
    )
