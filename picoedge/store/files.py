"""File access: reads and writes that are complete or raise, and JSON files of models."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from picoedge.errors import ModelError, StorageError
from picoedge.fields import Fields
from picoedge.files import sync
from picoedge.kernels.arrays import U8
from picoedge.units import format_size

_WINDOW = 1 << 20


def read_at(path: Path, offset: int, nbytes: int) -> U8:
    """Bytes [offset, offset + nbytes) of a file. Raises ModelError where the file ends earlier."""
    buffer = np.empty(nbytes, np.uint8)
    with reading(path), path.open("rb", buffering=0) as file:
        file.seek(offset)
        view, got = buffer.data, 0
        while got < nbytes:
            count = file.readinto(view[got:])
            if not count:
                raise ModelError(
                    f"{path} ends at byte {offset + got}, {offset + nbytes} are needed",
                    "the file is truncated or changed while it was read",
                )
            got += count
    return buffer


def digest(path: Path, offset: int, nbytes: int) -> str:
    """blake2b (32 bytes, in hex) of a range of a file."""
    import hashlib  # loads OpenSSL, 4 MB that most runs never need

    hasher = hashlib.blake2b(digest_size=32)
    for start in range(0, nbytes, _WINDOW):
        hasher.update(read_at(path, offset + start, min(_WINDOW, nbytes - start)).data)
    return hasher.hexdigest()


def source_fingerprint(paths: Sequence[Path]) -> str:
    """Hash of the files' names, sizes and times and of the first one's first MB."""
    import hashlib

    hasher = hashlib.blake2b(digest_size=16)
    for path in paths:
        with reading(path):
            stat = path.stat()
        hasher.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    with reading(paths[0]):
        size = min(_WINDOW, paths[0].stat().st_size)
    hasher.update(read_at(paths[0], 0, size).data)
    return hasher.hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failed read into ModelError (missing, no permission) or StorageError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", "check the path") from error
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except OSError as error:
        raise StorageError(f"reading {path} failed: {error.strerror or error}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to a ModelError that lacks it."""
    try:
        yield
    except ModelError as error:
        if str(path) in error.message:
            raise
        raise type(error)(f"{path}: {error.message}", error.hint) from error


@contextmanager
def writing(folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn a failed write below `folder` into StorageError; the message names `needed` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder, needed) from error
        what = error.strerror or str(error)
        raise StorageError(
            f"cannot write below {folder}: {what}", "choose a folder that you may write to"
        ) from error


def disk_full(folder: Path, needed: int, free: int | None = None) -> StorageError:
    """The error for a disk that cannot hold `needed` bytes, with the figures."""
    free = free_bytes(folder) if free is None else free
    return StorageError(
        f"no room in {folder}: {format_size(needed)} needed, {format_size(free)} free",
        "free some space or choose another folder",
    )


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, or of its nearest existing parent."""
    for place in (folder, *folder.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0


class OutputFile:
    """A new file of a known size, written in any order; unwritten parts are zeros."""

    def __init__(self, path: Path, nbytes: int, wrote: Callable[[int], None]) -> None:
        self.path = path
        self._wrote = wrote
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.ftruncate(self._fd, nbytes)
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, offset: int, data: U8 | bytes) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data) if isinstance(data, bytes) else data.data
        write_all(self._fd, view, offset)
        self._wrote(len(view))

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`; the system may accept less per call."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def sync_tree(folder: Path) -> None:
    """fsync a folder and the files in it."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def read_object(path: Path, max_bytes: int, hint: str) -> Fields:
    """Read a file of one JSON object. Raises ModelError with `hint` where it is anything else."""
    with reading(path):
        size = path.stat().st_size
    if size > max_bytes:
        raise ModelError(f"{path} has {size} bytes, at most {max_bytes} are expected", hint)
    return parse_object(read_at(path, 0, size).tobytes(), path, hint)


def parse_object(data: bytes, path: Path, hint: str) -> Fields:
    """Parse one JSON object; `path` is for messages. Raises ModelError."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} does not hold valid JSON", hint) from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} does not hold a JSON object", hint)
    return Fields(values, path, ModelError, hint)
