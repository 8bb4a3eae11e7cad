"""Embedding rows: gathered from a mapped file, or read one by one.

`RowEmbedding` gathers from a mapped file. `RowFile` reads row by row, for models that are not held
whole: a page fault on a mapped file would read megabytes around the row, and end the process where
the card is gone, while a read fails with file, shard and byte.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from picoedge.errors import PicoedgeError
from picoedge.files import (
    READ_STALL_S,
    StallDetector,
    aborted_read,
    attempt,
    stalled_read,
    start_thread,
)
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import TILE_ROWS, MatrixSpec, RowGather, Weights
from picoedge.store.encodings import Encoding
from picoedge.store.reads import Files, read_cached
from picoedge.store.shards import Unit

_CACHED_BYTES = 1 << 20  # that reads may leave in the page cache before it is dropped
ReadBytes = Callable[[int, U8], None]
"""fills an array with the bytes from an offset on, counted from the first shard"""
Decode = Callable[[ReadBytes, Sequence[int], F32], None]
"""out[i] = f32 row ids[i], of the bytes that it reads"""


@dataclass(frozen=True, eq=False)
class RowEmbedding:
    """Rows of a memory-mapped file, u8 [>= vocabulary, row bytes]."""

    encoding: Encoding
    rows: U8

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = f32 row ids[i]; ids must be valid."""
        out[: len(ids)] = self.encoding.floats(self.rows[np.asarray(ids, dtype=np.intp)])


class RowFile:
    """Rows read at random places of a span of shards. Raises StorageError, also where opened."""

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
