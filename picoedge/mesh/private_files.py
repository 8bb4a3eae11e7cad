"""JSON files that only this user can read: replaced atomically, under their folder's lock."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from picoedge.errors import AccessError, StorageError, storage_errors
from picoedge.files import replace_file, take_lock

MAX_BYTES = 1 << 20
LOCK = "lock"
LOCK_TIMEOUT_S = 5.0  # a holder writes two small files; one that is suspended must not suspend all
Stamp = tuple[int, int, int, int]


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file.

    Raises AccessError if it is damaged, StorageError if it cannot be read.
    """
    with _as_storage_error(path):
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
    if len(data) > MAX_BYTES:
        raise AccessError(f"{path}: damaged: too large", remedy)
    try:
        value = json.loads(data)
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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "rb"):
        if not take_lock(fd, LOCK_TIMEOUT_S):
            raise StorageError(
                f"{folder / LOCK}: held for {LOCK_TIMEOUT_S:.0f} s", "a picoedge is stopped: end it"
            )
        yield


def _as_storage_error(path: Path) -> AbstractContextManager[None]:
    return storage_errors(
        path, "check who may read and write there; PICOEDGE_CLUSTER names another folder"
    )
