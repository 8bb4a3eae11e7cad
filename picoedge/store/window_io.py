"""Two ways for a unit's bytes to get to where the kernels read them.

`DirectIO` reads past the page cache into memory of our own; `MappedIO` maps the files and has the
kernel read their pages. Either gives a unit one address for as long as it lives, so kernels are
bound once. Neither knows in which order units are used: that is `window.py`.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np

from picoedge.errors import ModelError, StorageError
from picoedge.kernels.blocks import U8
from picoedge.store.files import reading
from picoedge.store.pages import (
    advise,
    anonymous,
    forget_cached,
    forget_mapped,
    page_down,
    page_up,
    populate,
)
from picoedge.store.units import Unit

CHUNK = 1 << 20  # bytes of one read: enough for a disk to be at full speed with a few in flight
READERS = 3  # reads in flight
_SHORTER = "the file is truncated or the card is failing: picoedge verify checks it"
_FAILING = "check the card or disk and its cable; picoedge verify checks the pack"


class WindowIO(Protocol):
    """How units are read."""

    name: str

    def array(self, unit: Unit) -> U8:
        """The unit's bytes, u8 [nbytes], at the address they will always be at."""

    def chunks(self, unit: Unit) -> int:
        """Reads that a unit takes."""

    def fill(self, unit: Unit, chunk: int) -> None:
        """Do one of the reads. Raises StorageError. Safe from several threads."""

    def release(self, unit: Unit) -> None:
        """Give back what the unit's bytes take beside the window's own memory."""

    def close(self) -> None:
        """Close the files. Idempotent."""


class Files:
    """Files of a pack, opened for reading; unbuffered where the file system can do that."""

    def __init__(self, folder: Path, *, direct: bool) -> None:
        self.folder, self._direct = folder, direct
        self._fds: dict[str, int] = {}
        self._opened = ExitStack()

    def fd(self, name: str) -> int:
        """Descriptor of one file. Raises ModelError, StorageError."""
        if name not in self._fds:
            with reading(self.folder / name):
                self._fds[name] = self._open(self.folder / name)
            self._opened.callback(os.close, self._fds[name])
        return self._fds[name]

    def _open(self, path: Path) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        if self._direct:
            try:
                return os.open(path, flags | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:  # tmpfs and some others have no such thing
                    raise
                self._direct = False
        return os.open(path, flags)

    @property
    def cached(self) -> bool:
        """Whether reads leave pages in the page cache."""
        return not self._direct

    def close(self) -> None:
        """Close all. Idempotent."""
        self._fds.clear()
        self._opened.close()


def span_of(unit: Unit) -> tuple[int, int]:
    """The unit's bytes widened to pages: what is read."""
    return page_down(unit.offset), page_up(unit.end)


def read_span(files: Files, unit: Unit, memory: U8, start: int, end: int) -> None:
    """Bytes [start, end) of the unit's file into `memory`; beyond the unit the file may end.

    Raises StorageError naming file, shard and byte.
    """
    fd, view, got = files.fd(unit.file), memory.data, 0
    needed = min(end, unit.end) - start
    while got < needed:
        try:
            count = os.preadv(fd, [view[got:]], start + got)
        except OSError as error:
            raise failed_read(files.folder, unit, start + got, error.errno) from error
        if not count:
            raise failed_read(files.folder, unit, start + got, 0)
        got += count
    if files.cached:
        forget_cached(fd, start, end)


def failed_read(folder: Path, unit: Unit, offset: int, number: int | None) -> StorageError:
    """The error for a read of `unit` that failed at byte `offset`; number 0: the file ends."""
    where = f"{folder / unit.file}, shard {unit.shard_at(offset)}, byte {offset}"
    if not number:
        return StorageError(f"{where}: the file ends, {unit.end} bytes are needed", _SHORTER)
    return StorageError(f"{where}: reading failed: {os.strerror(number)}", _FAILING)


def read_unit(files: Files, unit: Unit) -> U8:
    """A unit read whole into memory of its own, u8 [nbytes]. Raises StorageError."""
    start, end = span_of(unit)
    memory = anonymous(end - start)
    for at in range(start, end, CHUNK):
        last = min(at + CHUNK, end)
        read_span(files, unit, memory[at - start : last - start], at, last)
    return memory[unit.offset - start : unit.end - start]


class DirectIO:
    """Reads into a ring of memory: each unit has its fixed place, which others use between."""

    name = "direct"

    def __init__(self, files: Files, nbytes: int, places: dict[Unit, int]) -> None:
        self._files, self._places = files, places
        self._memory = anonymous(nbytes)

    def array(self, unit: Unit) -> U8:
        """See `WindowIO.array`."""
        at = self._places[unit] + unit.offset - span_of(unit)[0]
        return self._memory[at : at + unit.nbytes]

    def chunks(self, unit: Unit) -> int:
        """See `WindowIO.chunks`."""
        start, end = span_of(unit)
        return -(-(end - start) // CHUNK)

    def fill(self, unit: Unit, chunk: int) -> None:
        """See `WindowIO.fill`."""
        start, end = span_of(unit)
        first = start + chunk * CHUNK
        last = min(first + CHUNK, end)
        at = self._places[unit] + first - start
        read_span(self._files, unit, self._memory[at : at + last - first], first, last)

    def release(self, unit: Unit) -> None:
        """Nothing: the place is the window's own."""

    def close(self) -> None:
        """See `WindowIO.close`."""
        self._files.close()


class MappedIO:
    """Maps the files. The page cache is the window, and is made to forget what was used."""

    name = "mmap"

    def __init__(self, files: Files, units: Sequence[Unit], read_ahead: int) -> None:
        self._files, self._read_ahead = files, read_ahead
        self._maps = {name: _map(files, name) for name in {unit.file for unit in units}}
        streamed = {(unit.file, unit.offset) for unit in units}
        self._last = {unit for unit in units if (unit.file, unit.end) not in streamed}

    def array(self, unit: Unit) -> U8:
        """See `WindowIO.array`."""
        return self._maps[unit.file][unit.offset : unit.end]

    def chunks(self, unit: Unit) -> int:
        """See `WindowIO.chunks`."""
        return 1  # the kernel cuts it, and reads ahead

    def fill(self, unit: Unit, chunk: int) -> None:
        """See `WindowIO.fill`."""
        number = populate(self.array(unit))
        if number in (errno.EFAULT, getattr(errno, "EHWPOISON", 133)):
            raise self._cause(unit)
        if number:
            self._read_through(unit)

    def _read_through(self, unit: Unit) -> None:
        """An older kernel: have the pages cached by reading them into nothing."""
        scratch = np.empty(min(CHUNK, unit.nbytes), np.uint8)
        for at in range(unit.offset, unit.end, CHUNK):
            last = min(at + CHUNK, unit.end)
            view = scratch[: last - at].data
            got = 0
            while got < last - at:
                try:
                    count = os.preadv(self._files.fd(unit.file), [view[got:]], at + got)
                except OSError as error:
                    raise failed_read(self._files.folder, unit, at + got, error.errno) from error
                if not count:
                    raise failed_read(self._files.folder, unit, at + got, 0)
                got += count

    def _cause(self, unit: Unit) -> StorageError:
        size = os.fstat(self._files.fd(unit.file)).st_size
        if size < unit.end:
            return failed_read(self._files.folder, unit, size, 0)
        return failed_read(self._files.folder, unit, unit.offset, errno.EIO)

    def release(self, unit: Unit) -> None:
        """See `WindowIO.release`."""
        forget_mapped(self._maps[unit.file], unit.offset, unit.end)
        beyond = self._read_ahead if unit in self._last else 0
        forget_cached(self._files.fd(unit.file), unit.offset, unit.end + beyond)

    def close(self) -> None:
        """See `WindowIO.close`. Arrays stay readable while they are held."""
        self._files.close()


def _map(files: Files, name: str) -> U8:
    with reading(files.folder / name):
        mapped = mmap.mmap(files.fd(name), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    array = np.frombuffer(mapped, np.uint8)
    advise(array, mmap.MADV_SEQUENTIAL)
    return array


def check_shards(folder: Path, unit: Unit, data: U8, hashes: Sequence[tuple[str, str]]) -> None:
    """Compare a unit's bytes with the hashes of its shards. Raises ModelError naming the shard."""
    each = unit.nbytes // len(unit.shards)
    for i, (name, expected) in enumerate(hashes):
        part = data[i * each : (i + 1) * each]
        if hashlib.blake2b(part.data, digest_size=32).hexdigest() != expected:
            raise ModelError(
                f"{folder / unit.file}, shard {name}, byte {unit.offset + i * each}: "
                "it does not match its hash",
                "the card is failing or the file was changed: pack the model again",
            )
