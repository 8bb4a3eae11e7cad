"""Files of this user alone, replaced whole or not at all, by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from picoedge.errors import AccessError, StorageError

MAX_BYTES = 1 << 20
LOCK = "lock"
Stamp = tuple[int, int, int, int]


def read_json(path: Path, remedy: str) -> Any:
    """What a JSON file holds; None where there is none.

    Raises AccessError where it is damaged, StorageError where it cannot be read.
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
        return json.loads(data)
    except (ValueError, RecursionError):
        raise AccessError(f"{path}: damaged: not JSON", remedy) from None


def stamp_of(path: Path) -> Stamp | None:
    """What changes when the file is replaced; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def write_json(path: Path, value: object) -> None:
    """Replace a file, for good when this returns. Its folder's lock must be held."""
    data = json.dumps(value, indent=1).encode() + b"\n"
    beside = path.with_name(f".{path.name}.new")  # under the lock: nobody else's
    with _as_storage_error(path):
        beside.unlink(missing_ok=True)
        try:
            _write_new(beside, data)
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _write_new(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock against other processes; makes the folder, for this user alone, where there is none.

    Not to be taken twice by one thread. Raises StorageError.
    """
    with _as_storage_error(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "rb"):
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"{error.filename or path}: {reason}",
            "check who may read and write there; PICOEDGE_CLUSTER names another folder",
        ) from error
