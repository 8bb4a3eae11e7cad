"""Reads of pack files into memory, spans of shards and single rows of embeddings.

Errors name file, shard and byte.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from picoedge.errors import ModelError, PicoedgeError, StorageError
from picoedge.files import (
    READ_STALL_S,
    StallDetector,
    aborted_read,
    attempt,
    reading,
    stalled_read,
    start_thread,
)
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import TILE_ROWS, MatrixSpec, RowGather, Weights
from picoedge.store.encodings import Encoding
from picoedge.store.pages import forget_cached
from picoedge.store.shards import PackItem, Unit, digest_of

_SHORTER = "the file is truncated or the card is failing: picoedge verify checks it"
_FAILING = "check the card or disk and its cable; picoedge verify checks the pack"
_CACHED_BYTES = 1 << 20  # that reads of rows may leave in the page cache before it is dropped
ReadBytes = Callable[[int, U8], None]
"""fills an array with the bytes from an offset on, counted from the first shard"""
Decode = Callable[[ReadBytes, Sequence[int], F32], None]
"""out[i] = f32 row ids[i], of the bytes that it reads"""


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


def check_hashes(folder: Path, unit: Unit, data: U8, shards: Sequence[PackItem]) -> None:
    """Compare a unit with the hashes of its shards. Raises ModelError naming the shard."""
    for shard in shards:
        at = shard.offset - unit.offset
        if digest_of(data[at : at + shard.nbytes].data) != shard.blake2b:
            raise ModelError(
                f"{unit.place(folder, shard.offset)}: it does not match its hash",
                "the card is failing or the file was changed: pack the model again",
            )


class RowFile:
    """Embedding rows read one by one, for models that are not held whole.

    A page fault on a mapped file would read megabytes around the row, and end the process where the
    card is gone. Raises ModelError where the file is missing, StorageError where it cannot be
    opened.
    """

    def __init__(
        self, folder: Path, shards: Unit, decode: Decode, *, stall_s: float = READ_STALL_S
    ) -> None:
        self._folder, self._shards, self._decode = folder, shards, decode
        self._files = Files(folder, direct=False)
        self._fd = self._files.fd(shards.file)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        self._cached, self._stall_s = 0, stall_s
        self._reads, self._at = 0, 0  # finished reads; offset of the next one
        weakref.finalize(self, self._files.close)

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = f32 row ids[i]; ids must be valid. Raises StorageError.

        A thread reads into a buffer of its own; it is abandoned where no read finishes for
        `stall_s`, and a late read does no harm.
        """
        own = np.empty_like(out[: len(ids)])
        ended, where = threading.Event(), str(self._folder / self._shards.file)
        errors: list[PicoedgeError | None] = []

        def work() -> None:
            try:
                errors.append(attempt(partial(self._decode, self._read, ids, own), where))
            finally:
                ended.set()

        thread = start_thread(work, "rows")
        detector = StallDetector(self._stall_s)
        while not ended.wait(detector.poll_s):
            if detector.stalled(self._reads):
                raise stalled_read(self._shards.place(self._folder, self._at), self._stall_s)
        thread.join()
        error = errors[0] if errors else aborted_read(where)
        if error is not None:
            raise error
        out[: len(ids)] = own

    def _read(self, at: int, data: U8) -> None:
        self._at = start = self._shards.offset + at
        read_cached(self._files, self._shards, data, start, start + len(data))
        self._reads += 1
        self._cached += len(data)
        if self._cached > _CACHED_BYTES:
            self._cached = 0
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)


def untied_rows(encoding: Encoding, row_bytes: int) -> Decode:
    """Rows of `row_bytes`, one after another."""

    def decode(read: ReadBytes, ids: Sequence[int], out: F32) -> None:
        data = np.empty((1, row_bytes), np.uint8)
        for i, row in enumerate(ids):
            read(row * row_bytes, data[0])
            out[i] = encoding.floats(data)[0]

    return decode


def tied_rows(spec: MatrixSpec, stride: int) -> Decode:
    """Rows of the head: shards of `spec`, `stride` bytes apart.

    A row is part of a tile of 16 rows: the tile's part of each plane is read, then the row decoded.
    """
    rows = 1 if spec.format.bits == 32 else TILE_ROWS
    tile = MatrixSpec(spec.format, rows, spec.cols, 0, spec.superblock)

    def decode(read: ReadBytes, ids: Sequence[int], out: F32) -> None:
        data = np.empty(tile.nbytes, np.uint8)
        table = RowGather(Weights(tile, data, tile.nbytes, 1))
        for i, row in enumerate(ids):
            shard, within = divmod(row, spec.rows)
            index, lane = divmod(within, rows)
            for name, (at, shape, dtype) in tile.planes.items():
                nbytes = math.prod(shape) * dtype.itemsize
                place = shard * stride + spec.planes[name][0] + index * nbytes
                read(place, data[at : at + nbytes])
            table.gather([lane], out[i : i + 1])

    return decode
