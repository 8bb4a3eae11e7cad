"""Reads of pack files into memory: errors name file, shard and byte."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from picoedge.errors import ModelError, StorageError
from picoedge.files import reading
from picoedge.kernels.arrays import U8
from picoedge.store.pages import forget_cached
from picoedge.store.shards import Unit, digest_of

_SHORTER = "the file is truncated or the card is failing: picoedge verify checks it"
_FAILING = "check the card or disk and its cable; picoedge verify checks the pack"


class Files:
    """Open files of a pack, with O_DIRECT where the file system supports it."""

    def __init__(self, folder: Path, *, direct: bool) -> None:
        self.folder, self._direct = folder, direct
        self._fds: dict[str, int] = {}
        self._unbuffered: set[int] = set()
        self._opened, self._lock = ExitStack(), threading.Lock()
        self.closed = False

    def fd(self, name: str) -> int:
        """Descriptor of a file. Raises ModelError, and StorageError, also after `close`."""
        with self._lock:
            if self.closed:
                raise StorageError(f"{self.folder / name} is closed")
            if name not in self._fds:
                with reading(self.folder / name):
                    self._fds[name] = self._open(self.folder / name)
                self._opened.callback(os.close, self._fds[name])
            return self._fds[name]

    def _open(self, path: Path) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        if self._direct:
            try:
                fd = os.open(path, flags | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # as on tmpfs
                    raise
                self._direct = False
            else:
                self._unbuffered.add(fd)
                return fd
        return os.open(path, flags)

    def refused(self, fd: int) -> bool:
        """Whether `fd`, whose read failed, has O_DIRECT; if so, files are reopened without.

        Some network and FUSE file systems accept O_DIRECT in open() and refuse it in read(). Old
        descriptors stay open until `close`, as other threads may be reading from them.
        """
        with self._lock:
            if fd not in self._unbuffered:
                return False
            if self._direct:
                self._direct = False
                self._fds.clear()
            return True

    @property
    def cached(self) -> bool:
        """Whether reads go through the page cache."""
        return not self._direct

    def close(self) -> None:
        """Close all. Idempotent."""
        with self._lock:
            self.closed = True
            self._fds.clear()
            self._unbuffered.clear()
            self._opened.close()


def read_range(files: Files, unit: Unit, memory: U8, start: int, end: int) -> None:
    """Read file range [start, end) into `memory`, leaving nothing in the page cache.

    The file may end after the unit. Raises StorageError naming file, shard and byte.
    """
    read_cached(files, unit, memory, start, end)
    if files.cached:
        forget_cached(files.fd(unit.file), start, end)


def read_cached(files: Files, unit: Unit, memory: U8, start: int, end: int) -> None:
    """`read_range` without clearing the page cache."""
    view, got = memory.data, 0
    needed = min(end, unit.end) - start
    while got < needed:
        fd = files.fd(unit.file)
        try:
            count = os.preadv(fd, [view[got:]], start + got)
        except OSError as error:
            number = 0 if _ends_by(fd, start + got) else error.errno
            if number == errno.EINVAL and files.refused(fd):
                continue
            raise failed_read(files.folder, unit, start + got, number) from error
        if not count:
            raise failed_read(files.folder, unit, start + got, 0)
        got += count


def _ends_by(fd: int, offset: int) -> bool:
    """Whether the file ends at or before `offset`: O_DIRECT may then fail with EINVAL."""
    try:
        return os.fstat(fd).st_size <= offset
    except OSError:
        return False


def failed_read(folder: Path, unit: Unit, offset: int, number: int | None) -> StorageError:
    """The error for a failed read of `unit` at `offset`; `number`: errno, 0 for end of file."""
    where = unit.place(folder, max(offset, unit.offset))  # reads begin at the page, before it
    if not number:
        return StorageError(f"{where}: the file ends, {unit.end} bytes are needed", _SHORTER)
    return StorageError(f"{where}: reading failed: {os.strerror(number)}", _FAILING)


def check_hashes(folder: Path, unit: Unit, data: U8, hashes: Sequence[tuple[str, str]]) -> None:
    """Compare a unit with the hashes of its shards. Raises ModelError naming the shard."""
    size = unit.shard_bytes
    for i, (name, expected) in enumerate(hashes):
        if digest_of(data[i * size : (i + 1) * size].data) != expected:
            raise ModelError(
                f"{folder / unit.file}, shard {name}, byte {unit.offset + i * size}: "
                "it does not match its hash",
                "the card is failing or the file was changed: pack the model again",
            )
