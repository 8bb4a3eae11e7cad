"""The cluster's folder: JSON files that only this user can read, and the running daemon's lock.

Files are replaced atomically, under the folder's lock. `daemon.json` says where this board's other
programs find its daemon. It is in this folder so that several boards can run on one machine. The
daemon holds a lock while it lives, which shows that the file of a killed one is stale.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picoedge.errors import AccessError, MeshError, StorageError, UsageError
from picoedge.fields import Fields, parse_json
from picoedge.files import make_folder, replace_file, storage_errors, take_lock, xdg_folder
from picoedge.mesh.addresses import Address, parse_address

_MAX_BYTES = 1 << 20  # a roster and an address book of 1024 boards, the largest, have 300 KB
LOCK = "lock"
LOCK_TIMEOUT_S = 5.0  # a holder writes two small files; a suspended holder must not suspend all
DAEMON_FILE, DAEMON_LOCK = "daemon.json", "daemon.lock"
DAEMON_LOCK_S = 0.2  # a process that looks whether a daemon runs holds the lock for a moment
Stamp = tuple[int, int, int, int]


def cluster_folder(environ: Mapping[str, str]) -> Path:
    """$PICOEDGE_CLUSTER, or `picoedge/cluster` in the user's configuration."""
    if environ.get("PICOEDGE_CLUSTER"):
        return Path(environ["PICOEDGE_CLUSTER"])
    return xdg_folder("CONFIG", environ) / "cluster"


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file.

    Raises AccessError if it is damaged, StorageError if it cannot be read.
    """
    with _as_storage_error(path):
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
    if len(data) > _MAX_BYTES:
        raise AccessError(f"{path}: damaged: too large", remedy)
    try:
        value = parse_json(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise AccessError(f"{path}: damaged: not a JSON object", remedy)
    return value


def stamp_of(path: Path) -> Stamp | None:
    """Inode, size and times of a file: they change when it is replaced. None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def write_json(path: Path, value: object) -> None:
    """Replace a file, durably before this returns. The caller holds its folder's lock."""
    data = json.dumps(value, indent=1).encode() + b"\n"
    with _as_storage_error(path):
        for left in path.parent.glob(f".{path.name}*.new"):  # by a writer that was killed
            left.unlink(missing_ok=True)
        replace_file(path, data, 0o600)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock against other processes; makes a missing folder, for this user alone.

    Not to be taken twice by one thread. Raises StorageError, also where it stays taken.
    """
    with _as_storage_error(folder):
        make_folder(folder, 0o700)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "rb"):
        if not take_lock(fd, LOCK_TIMEOUT_S):
            raise StorageError(
                f"{folder / LOCK}: held for {LOCK_TIMEOUT_S:.0f} s", "a picoedge is stopped: end it"
            )
        yield


def _as_storage_error(path: Path) -> AbstractContextManager[None]:
    return storage_errors(
        path, "check its owner and permissions; PICOEDGE_CLUSTER names another folder"
    )


@dataclass(frozen=True)
class LocalDaemon:
    """The running daemon of this board: where programs here call it, and where it listens."""

    pid: int
    address: Address
    listens: Address
    incarnation: int


@contextmanager
def published_daemon(folder: Path, address: Address, incarnation: int) -> Iterator[None]:
    """Mark this process as the board's daemon, listening on `address`, while the block runs.

    Raises MeshError if another one runs, StorageError if the folder cannot be written.
    """
    local = Address("127.0.0.1", address.port) if address.is_everywhere else address
    with folder_lock(folder):
        fd = os.open(folder / DAEMON_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "rb"):
        if not take_lock(fd, DAEMON_LOCK_S):
            daemon = _read_daemon(folder)
            where = f"process {daemon.pid}, at {daemon.address}" if daemon else "just starting"
            raise MeshError(
                f"a daemon with this identity runs already: {where}",
                "stop that one, or name another cluster folder in PICOEDGE_CLUSTER",
            )
        said = {
            "pid": os.getpid(),
            "address": str(local),
            "listens": str(address),
            "incarnation": incarnation,
        }
        with folder_lock(folder):
            write_json(folder / DAEMON_FILE, said)
        try:
            yield
        finally:
            (folder / DAEMON_FILE).unlink(missing_ok=True)


def find_local(folder: Path) -> LocalDaemon | None:
    """The daemon that runs with the identity in `folder`; None if there is none."""
    try:
        with (folder / DAEMON_LOCK).open("rb") as file:
            runs = not take_lock(file.fileno(), shared=True)
    except OSError:
        return None
    return _read_daemon(folder) if runs else None


def _read_daemon(folder: Path) -> LocalDaemon | None:
    try:
        fields = Fields(read_json(folder / DAEMON_FILE, "stop the daemon, and start it again"))
        address = parse_address(fields.text("address", 80))
        listens = parse_address(str(fields.get("listens", str, str(address)))[:80])
        incarnation = fields.integer("incarnation")
        return LocalDaemon(fields.integer("pid"), address, listens, incarnation)
    except (MeshError, UsageError):
        return None
