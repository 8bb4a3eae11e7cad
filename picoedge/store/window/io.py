"""Two ways to read a unit: `DirectIO` with O_DIRECT into own memory, `MappedIO` through mmap.

Both give a unit a fixed address, so that kernels are bound once. The order of reading is decided
in `read_ahead.py`.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np

from picoedge.errors import ModelError, StorageError
from picoedge.files import reading
from picoedge.kernels.arrays import U8
from picoedge.store.pages import (
    advise,
    anonymous,
    forget_cached,
    forget_mapped,
    page_range,
    page_up,
    populate,
)
from picoedge.store.shards import Unit

CHUNK = 1 << 20  # bytes per read: full speed of a disk with a few reads in flight
MAPPED_CHUNK = 4 << 20  # small enough that progress tells a slow disk from a dead one
READERS = 3  # reads in flight
_UNREADABLE = (errno.EFAULT, getattr(errno, "EHWPOISON", 133))
_SHORTER = "the file is truncated or the card is failing: picoedge verify checks it"
_FAILING = "check the card or disk and its cable; picoedge verify checks the pack"


class WindowIO(Protocol):
    """Reads units in chunks of at most `chunk_bytes`."""

    name: str
    chunk_bytes: int

    def array(self, unit: Unit) -> U8:
        """The unit's bytes, u8 [nbytes], at their fixed address."""

    def chunks(self, unit: Unit) -> int:
        """Number of chunks of a unit."""
        start, end = page_range(unit)
        return -(-(end - start) // self.chunk_bytes)

    def chunk_range(self, unit: Unit, chunk: int) -> tuple[int, int]:
        """File range [first, last) of a chunk."""
        start, end = page_range(unit)
        first = start + chunk * self.chunk_bytes
        return first, min(first + self.chunk_bytes, end)

    def begins(self, unit: Unit, chunk: int) -> int:
        """File offset of the unit's first byte in a chunk."""
        return max(unit.offset, self.chunk_range(unit, chunk)[0])

    def fill(self, unit: Unit, chunk: int) -> None:
        """Read one chunk. Raises StorageError. Thread-safe."""

    def release(self, unit: Unit) -> None:
        """Free the memory and page cache that the unit takes outside the window's ring."""

    def close(self) -> None:
        """Close the files and free what was read. Idempotent."""


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
    _read(files, unit, memory, start, end)
    if files.cached:
        forget_cached(files.fd(unit.file), start, end)


def _read(files: Files, unit: Unit, memory: U8, start: int, end: int) -> None:
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


class DirectIO(WindowIO):
    """Reads into a ring in memory, where each unit has a fixed place that it shares with others."""

    name = "direct"

    def __init__(self, files: Files, nbytes: int, places: dict[Unit, int]) -> None:
        """Raises ModelError, StorageError for files that cannot be opened."""
        self._files, self._places, self.chunk_bytes = files, places, CHUNK
        self._memory = anonymous(nbytes)
        for unit in places:
            files.fd(unit.file)  # opened here, not by several threads at once

    def array(self, unit: Unit) -> U8:
        """See `WindowIO.array`."""
        at = self._places[unit] + unit.offset - page_range(unit)[0]
        return self._memory[at : at + unit.nbytes]

    def fill(self, unit: Unit, chunk: int) -> None:
        """See `WindowIO.fill`."""
        first, last = self.chunk_range(unit, chunk)
        at = self._places[unit] + chunk * self.chunk_bytes
        read_range(self._files, unit, self._memory[at : at + last - first], first, last)

    def release(self, unit: Unit) -> None:
        """Nothing to free: the bytes are in the ring."""

    def close(self) -> None:
        """See `WindowIO.close`."""
        self._files.close()


class MappedIO(WindowIO):
    """Maps the files: the page cache is the window, and used pages are dropped from it."""

    name = "mmap"

    def __init__(self, files: Files, units: Sequence[Unit], read_ahead: int) -> None:
        """Raises ModelError, StorageError for files that cannot be opened."""
        self._files, self._read_ahead, self.chunk_bytes = files, read_ahead, MAPPED_CHUNK
        self._maps = {name: _map(files, name) for name in {unit.file for unit in units}}
        streamed = {(unit.file, unit.offset) for unit in units}
        self._last = {unit for unit in units if (unit.file, unit.end) not in streamed}

    def array(self, unit: Unit) -> U8:
        """See `WindowIO.array`."""
        return self._maps[unit.file][unit.offset : unit.end]

    def fill(self, unit: Unit, chunk: int) -> None:
        """See `WindowIO.fill`."""
        first, last = self.chunk_range(unit, chunk)
        pages = self._maps[unit.file][first : min(last, unit.end)]
        if not populate(pages):
            return
        self._read_through(unit, first, last)  # for an old kernel, or to find the bad byte
        if populate(pages) in _UNREADABLE:
            raise failed_read(self._files.folder, unit, self.begins(unit, chunk), errno.EIO)

    def _read_through(self, unit: Unit, first: int, last: int) -> None:
        """Fill the page cache by reading into a scratch buffer."""
        scratch = np.empty(CHUNK, np.uint8)
        for at in range(first, last, CHUNK):
            end = min(at + CHUNK, last)
            _read(self._files, unit, scratch[: end - at], at, end)

    def release(self, unit: Unit) -> None:
        """See `WindowIO.release`."""
        end, beyond = unit.end, 0
        if unit in self._last:  # no later unit frees the pages after it
            end, beyond = page_up(unit.end), self._read_ahead
        forget_mapped(self._maps[unit.file], unit.offset, end)
        forget_cached(self._files.fd(unit.file), unit.offset, end + beyond)

    def close(self) -> None:
        """See `WindowIO.close`. Arrays stay readable while they are held."""
        if self._files.closed:
            return
        for name, pages in self._maps.items():
            forget_mapped(pages, 0, page_up(pages.nbytes))  # read-ahead included
            forget_cached(self._files.fd(name), 0, pages.nbytes)
        self._files.close()


def _map(files: Files, name: str) -> U8:
    with reading(files.folder / name):
        mapped = mmap.mmap(files.fd(name), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    array = np.frombuffer(mapped, np.uint8)
    advise(array, mmap.MADV_SEQUENTIAL)
    return array


def check_hashes(folder: Path, unit: Unit, data: U8, hashes: Sequence[tuple[str, str]]) -> None:
    """Compare a unit with the hashes of its shards. Raises ModelError naming the shard."""
    import hashlib  # loads OpenSSL, 4 MB that most runs never need

    size = unit.shard_bytes
    for i, (name, expected) in enumerate(hashes):
        part = data[i * size : (i + 1) * size]
        if hashlib.blake2b(part.data, digest_size=32).hexdigest() != expected:
            raise ModelError(
                f"{folder / unit.file}, shard {name}, byte {unit.offset + i * size}: "
                "it does not match its hash",
                "the card is failing or the file was changed: pack the model again",
            )
