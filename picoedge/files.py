"""Locks between processes, and files that are replaced whole or not at all."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.005  # far below what anybody notices, and no load while a lock is held for long


def take_lock(file: int, timeout_s: float | None = 0.0, *, shared: bool = False) -> bool:
    """Lock an open file against other processes, until it is closed.

    False where another process holds it for all of `timeout_s` (None: waits without end). The file
    must stay on the disk: two processes could lock two files of one name. Raises OSError where the
    file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if timeout_s is None:
        fcntl.flock(file, kind)
        return True
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end_s:
                return False
            time.sleep(_POLL_S)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Make `data` the content of `path`; it survives a power cut once this returns.

    It is written beside `path` and renamed: a reader, and a crash, find the old file or the new
    one. Raises OSError that names `path`.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    with suppress(FileNotFoundError):
        beside.unlink()  # of a killed process that had our number
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
