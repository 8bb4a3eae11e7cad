"""Two ways for a unit's bytes to get to where the kernels read them.

`DirectIO` reads past the page cache into memory of our own; `MappedIO` maps the files and has the
kernel read their pages. Either gives a unit one address for as long as it lives, so kernels are
bound once. Neither knows in which order units are used: that is `window.py`.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np

from picoedge.errors import ModelError, StorageError
from picoedge.kernels.arrays import U8
from picoedge.store.files import reading
from picoedge.store.pages import (
    advise,
    anonymous,
    forget_cached,
    forget_mapped,
    page_up,
    populate,
)
from picoedge.store.units import Unit, page_range

CHUNK = 1 << 20  # bytes of one read: enough for a disk to be at full speed with a few in flight
MAPPED_CHUNK = 4 << 20  # the kernel reads it in smaller ones; how far it is tells slow from dead
READERS = 3  # reads in flight
_UNREADABLE = (errno.EFAULT, getattr(errno, "EHWPOISON", 133))
_SHORTER = "the file is truncated or the card is failing: picoedge verify checks it"
_FAILING = "check the card or disk and its cable; picoedge verify checks the pack"


class WindowIO(Protocol):
    """How units are read."""

    name: str

    def array(self, unit: Unit) -> U8:
        """The unit's bytes, u8 [nbytes], at the address they will always be at."""

    def chunks(self, unit: Unit) -> int:
        """Reads that a unit takes."""

    def begins(self, unit: Unit, chunk: int) -> int:
        """The unit's first byte in the file that this read brings."""

    def fill(self, unit: Unit, chunk: int) -> None:
        """Do one of the reads. Raises StorageError. Safe from several threads."""

    def release(self, unit: Unit) -> None:
        """Give back what the unit's bytes take beside the window's own memory."""

    def close(self) -> None:
        """Close the files, and leave nothing of what was read. Idempotent."""


class Files:
    """Files of a pack, opened for reading; unbuffered where the file system can do that."""

    def __init__(self, folder: Path, *, direct: bool) -> None:
        self.folder, self._direct = folder, direct
        self._fds: dict[str, int] = {}
        self._unbuffered: set[int] = set()
        self._opened, self._lock = ExitStack(), threading.Lock()
        self.closed = False

    def fd(self, name: str) -> int:
        """Descriptor of one file. Raises ModelError, StorageError; also after `close`."""
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
                if error.errno != errno.EINVAL:  # tmpfs and some others have no such thing
                    raise
                self._direct = False
            else:
                self._unbuffered.add(fd)
                return fd
        return os.open(path, flags)

    def refused(self, fd: int) -> bool:
        """Whether a read was refused for being unbuffered; from then on no file is opened so.

        Some network and user-space file systems open files so and then cannot read them. Other
        threads may still be reading by the old descriptors: they are closed with all others.
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
        """Whether reads leave pages in the page cache."""
        return not self._direct

    def close(self) -> None:
        """Close all. Idempotent."""
        with self._lock:
            self.closed = True
            self._fds.clear()
            self._unbuffered.clear()
            self._opened.close()


def count_chunks(unit: Unit, most: int) -> int:
    """Reads of at most `most` bytes that a unit's pages take."""
    start, end = page_range(unit)
    return -(-(end - start) // most)


def chunk_range(unit: Unit, chunk: int, most: int) -> tuple[int, int]:
    """Bytes [first, last) of the file that one of these reads brings."""
    start, end = page_range(unit)
    first = start + chunk * most
    return first, min(first + most, end)


def read_range(files: Files, unit: Unit, memory: U8, start: int, end: int) -> None:
    """Bytes [start, end) of the unit's file into `memory`, and not into the page cache.

    Beyond the unit the file may end. Raises StorageError naming file, shard and byte.
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
    """Whether the file has become so short: direct reads may call its odd end a wrong argument."""
    try:
        return os.fstat(fd).st_size <= offset
    except OSError:
        return False


def failed_read(folder: Path, unit: Unit, offset: int, number: int | None) -> StorageError:
    """The error for a read of `unit` that failed at byte `offset`; number 0: the file ends."""
    offset = max(offset, unit.offset)  # a read begins with the page, the unit within it
    where = f"{folder / unit.file}, shard {unit.shard_at(offset)}, byte {offset}"
    if not number:
        return StorageError(f"{where}: the file ends, {unit.end} bytes are needed", _SHORTER)
    return StorageError(f"{where}: reading failed: {os.strerror(number)}", _FAILING)


def read_unit(files: Files, unit: Unit, memory: U8, heard: Callable[[int], None]) -> U8:
    """A unit read whole into memory for its pages; where it lies there, u8 [nbytes].

    `heard` is told how far it is. Raises StorageError.
    """
    start, end = page_range(unit)
    for at in range(start, end, CHUNK):
        last = min(at + CHUNK, end)
        read_range(files, unit, memory[at - start : last - start], at, last)
        heard(last)
    return memory[unit.offset - start : unit.end - start]


class DirectIO:
    """Reads into a ring of memory: each unit has its fixed place, which others use between."""

    name = "direct"

    def __init__(self, files: Files, nbytes: int, places: dict[Unit, int]) -> None:
        """Raises ModelError, StorageError for files that cannot be opened."""
        self._files, self._places = files, places
        self._memory = anonymous(nbytes)
        for unit in places:
            files.fd(unit.file)  # now, and not by several threads at once

    def array(self, unit: Unit) -> U8:
        """See `WindowIO.array`."""
        at = self._places[unit] + unit.offset - page_range(unit)[0]
        return self._memory[at : at + unit.nbytes]

    def chunks(self, unit: Unit) -> int:
        """See `WindowIO.chunks`."""
        return count_chunks(unit, CHUNK)

    def begins(self, unit: Unit, chunk: int) -> int:
        """See `WindowIO.begins`."""
        return max(unit.offset, chunk_range(unit, chunk, CHUNK)[0])

    def fill(self, unit: Unit, chunk: int) -> None:
        """See `WindowIO.fill`."""
        first, last = chunk_range(unit, chunk, CHUNK)
        at = self._places[unit] + chunk * CHUNK
        read_range(self._files, unit, self._memory[at : at + last - first], first, last)

    def release(self, unit: Unit) -> None:
        """Nothing: the place is the window's own."""

    def close(self) -> None:
        """See `WindowIO.close`."""
        self._files.close()


class MappedIO:
    """Maps the files. The page cache is the window, and is made to forget what was used."""

    name = "mmap"

    def __init__(self, files: Files, units: Sequence[Unit], read_ahead: int) -> None:
        """Raises ModelError, StorageError for files that cannot be opened."""
        self._files, self._read_ahead = files, read_ahead
        self._maps = {name: _map(files, name) for name in {unit.file for unit in units}}
        streamed = {(unit.file, unit.offset) for unit in units}
        self._last = {unit for unit in units if (unit.file, unit.end) not in streamed}

    def array(self, unit: Unit) -> U8:
        """See `WindowIO.array`."""
        return self._maps[unit.file][unit.offset : unit.end]

    def chunks(self, unit: Unit) -> int:
        """See `WindowIO.chunks`."""
        return count_chunks(unit, MAPPED_CHUNK)

    def begins(self, unit: Unit, chunk: int) -> int:
        """See `WindowIO.begins`."""
        return max(unit.offset, chunk_range(unit, chunk, MAPPED_CHUNK)[0])

    def fill(self, unit: Unit, chunk: int) -> None:
        """See `WindowIO.fill`."""
        first, last = chunk_range(unit, chunk, MAPPED_CHUNK)
        pages = self._maps[unit.file][first : min(last, unit.end)]
        if not populate(pages):
            return
        self._read_through(unit, first, last)  # an old kernel; or the bad byte is found
        if populate(pages) in _UNREADABLE:
            raise failed_read(self._files.folder, unit, self.begins(unit, chunk), errno.EIO)

    def _read_through(self, unit: Unit, first: int, last: int) -> None:
        """Have pages cached by reading them into nothing."""
        scratch = np.empty(CHUNK, np.uint8)
        for at in range(first, last, CHUNK):
            end = min(at + CHUNK, last)
            _read(self._files, unit, scratch[: end - at], at, end)

    def release(self, unit: Unit) -> None:
        """See `WindowIO.release`."""
        end, beyond = unit.end, 0
        if unit in self._last:  # nobody else will give back what lies behind it
            end, beyond = page_up(unit.end), self._read_ahead
        forget_mapped(self._maps[unit.file], unit.offset, end)
        forget_cached(self._files.fd(unit.file), unit.offset, end + beyond)

    def close(self) -> None:
        """See `WindowIO.close`. Arrays stay readable while they are held."""
        if self._files.closed:
            return
        for name, pages in self._maps.items():
            forget_mapped(pages, 0, page_up(pages.nbytes))  # with what was read ahead
            forget_cached(self._files.fd(name), 0, pages.nbytes)
        self._files.close()


def _map(files: Files, name: str) -> U8:
    with reading(files.folder / name):
        mapped = mmap.mmap(files.fd(name), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    array = np.frombuffer(mapped, np.uint8)
    advise(array, mmap.MADV_SEQUENTIAL)
    return array


def check_hashes(folder: Path, unit: Unit, data: U8, hashes: Sequence[tuple[str, str]]) -> None:
    """Compare a unit's bytes with the hashes of its shards. Raises ModelError naming the shard."""
    import hashlib  # loads OpenSSL, 4 MB that most runs never need

    each = unit.shard_bytes
    for i, (name, expected) in enumerate(hashes):
        part = data[i * each : (i + 1) * each]
        if hashlib.blake2b(part.data, digest_size=32).hexdigest() != expected:
            raise ModelError(
                f"{folder / unit.file}, shard {name}, byte {unit.offset + i * each}: "
                "it does not match its hash",
                "the card is failing or the file was changed: pack the model again",
            )
