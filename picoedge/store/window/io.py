"""Two ways to read a unit: `DirectIO` with O_DIRECT into own memory, `MappedIO` through mmap.

Both give a unit a fixed address, so that kernels are bound once. The order of reading is decided
in `read_ahead.py`.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from picoedge.files import reading
from picoedge.kernels.arrays import U8
from picoedge.store.pages import (
    advise,
    anonymous,
    forget_anonymous,
    forget_cached,
    forget_mapped,
    page_range,
    page_up,
    populate,
)
from picoedge.store.reads import Files, failed_read, read_cached, read_range
from picoedge.store.shards import Unit

CHUNK = 1 << 20  # bytes per read: full speed of a disk with a few reads in flight
MAPPED_CHUNK = 4 << 20  # small enough that progress tells a slow disk from a dead one
READERS = 3  # reads in flight
_UNREADABLE = (errno.EFAULT, getattr(errno, "EHWPOISON", 133))


class WindowIO(Protocol):
    """Reads units in chunks of at most `chunk_bytes`."""

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
        """Close the files. Idempotent."""

    def free(self) -> None:
        """After `close`: free the bytes read, though arrays may still refer to them."""


class DirectIO(WindowIO):
    """Reads into a ring in memory, where each unit has a fixed place that it shares with others."""

    def __init__(self, files: Files, nbytes: int, places: dict[Unit, int]) -> None:
        """Raises ModelError, StorageError for files that cannot be opened."""
        self._files, self._places, self.chunk_bytes = files, places, CHUNK
        self._memory = anonymous(nbytes)
        for unit in places:
            files.fd(unit.file)  # opened here, not by several threads at once

    def array(self, unit: Unit) -> U8:
        at = self._places[unit] + unit.offset - page_range(unit)[0]
        return self._memory[at : at + unit.nbytes]

    def fill(self, unit: Unit, chunk: int) -> None:
        first, last = self.chunk_range(unit, chunk)
        at = self._places[unit] + chunk * self.chunk_bytes
        read_range(self._files, unit, self._memory[at : at + last - first], first, last)

    def release(self, unit: Unit) -> None:
        """Nothing to free: the bytes are in the ring."""

    def close(self) -> None:
        self._files.close()

    def free(self) -> None:
        forget_anonymous(self._memory)


class MappedIO(WindowIO):
    """Maps the files: the page cache is the window, and used pages are dropped from it."""

    def __init__(self, files: Files, units: Sequence[Unit], read_ahead: int) -> None:
        """Raises ModelError, StorageError for files that cannot be opened."""
        self._files, self._read_ahead, self.chunk_bytes = files, read_ahead, MAPPED_CHUNK
        self._maps = {name: _map(files, name) for name in {unit.file for unit in units}}
        streamed = {(unit.file, unit.offset) for unit in units}
        self._last = {unit for unit in units if (unit.file, unit.end) not in streamed}

    def array(self, unit: Unit) -> U8:
        return self._maps[unit.file][unit.offset : unit.end]

    def fill(self, unit: Unit, chunk: int) -> None:
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
            read_cached(self._files, unit, scratch[: end - at], at, end)

    def release(self, unit: Unit) -> None:
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

    def free(self) -> None:
        """Nothing more: `close` has dropped the pages."""


def _map(files: Files, name: str) -> U8:
    with reading(files.folder / name):
        mapped = mmap.mmap(files.fd(name), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    array = np.frombuffer(mapped, np.uint8)
    advise(array, mmap.MADV_SEQUENTIAL)
    return array
