"""Embedding rows of a pack: how they are encoded, and two ways to look them up.

`RowEmbedding` gathers from a mapped file. `UntiedRows` and `TiedRows` read row by row, for models
that are not held whole: a page fault on a mapped file would read megabytes around the row, and end
the process where the card is gone, while a read fails with file, shard and byte.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from picoedge.errors import PicoedgeError, StorageError
from picoedge.files import reading
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import (
    BLOCK_COLS,
    FORMATS,
    TILE_ROWS,
    MatrixSpec,
    Quants,
    RowGather,
    Weights,
)
from picoedge.store.pack.quantize import quantize
from picoedge.store.reads import (
    READ_STALL_S,
    StallDetector,
    aborted_read,
    attempt,
    stalled_read,
    start_thread,
)
from picoedge.store.sources.encodings import ENCODINGS, Encoding
from picoedge.store.sources.tensors import SourceTensor

_CACHED_BYTES = 1 << 20  # that reads may leave in the page cache before it is dropped


def embed_encoding(tensor: SourceTensor, bits: int) -> Encoding:
    """Encoding of an untied embedding: the source's own if it is exact, else Q8_0.

    F32 where `bits` is 32 or rows do not fill blocks.
    """
    if tensor.encoding.format:
        return tensor.encoding
    whole = tensor.cols % BLOCK_COLS == 0 and not (tensor.encoding.is_float and bits == 32)
    return ENCODINGS["Q8_0" if whole else "F32"]


def encode_rows(tensor: SourceTensor, encoding: Encoding, first: int, last: int) -> U8:
    """Rows [first, last) in `encoding`, u8 [n, row bytes]. Raises ModelError on NaN or infinity."""
    if encoding.format and encoding == tensor.encoding:
        tensor.quants(first, last)  # for its checks
        return tensor.raw(first, last)
    values = tensor.floats(first, last)
    if encoding.is_float:
        return np.ascontiguousarray(values, "<f4").view(np.uint8)
    return _q8_0_rows(quantize(values, FORMATS["q8"], tensor.name))


def _q8_0_rows(parts: Quants) -> U8:
    n = len(parts.q)
    scales = parts.scales.reshape(n, -1, 1).view(np.uint8)
    return np.concatenate([scales, parts.q.reshape(n, -1, BLOCK_COLS)], axis=2).reshape(n, -1)


@dataclass(frozen=True, eq=False)
class RowEmbedding:
    """Rows of a memory-mapped file, u8 [>= vocabulary, row bytes]."""

    encoding: Encoding
    rows: U8

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = f32 row ids[i]; ids must be valid."""
        out[: len(ids)] = self.encoding.floats(self.rows[np.asarray(ids, dtype=np.intp)])


class _RowFile:
    """Rows read at random places of one file. Raises StorageError, naming file, shard and byte.

    Shards of `shard_bytes` begin at byte `start` and are named after the file.
    """

    def __init__(self, path: Path, start: int, shard_bytes: int, stall_s: float) -> None:
        with reading(path):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        self._path, self._start, self._shard_bytes = path, start, shard_bytes
        self._cached, self._stall_s = 0, stall_s
        self._reads, self._at = 0, 0  # finished reads; offset of the next one
        weakref.finalize(self, os.close, self._fd)

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = f32 row ids[i]; ids must be valid. Raises StorageError.

        A thread reads into a buffer of its own; it is abandoned where no read finishes for
        `stall_s`, and a late read does no harm.
        """
        own = np.empty_like(out[: len(ids)])
        ended, where = threading.Event(), str(self._path)
        errors: list[PicoedgeError | None] = [aborted_read(where)]

        def work() -> None:
            try:
                errors.append(attempt(partial(self._read_rows, ids, own), where))
            finally:
                ended.set()

        thread = start_thread(work, "rows")
        detector = StallDetector(self._stall_s)
        while not ended.wait(detector.poll_s):
            if detector.stalled(self._reads):
                raise stalled_read(self._place(self._at), self._stall_s)
        thread.join()
        if errors[-1] is not None:
            raise errors[-1]
        out[: len(ids)] = own

    def _read_rows(self, ids: Sequence[int], out: F32) -> None:
        raise NotImplementedError

    def _read(self, offset: int, nbytes: int) -> U8:
        """Bytes [offset, offset + nbytes), u8."""
        data = b""
        while len(data) < nbytes:
            part = self._read_some(offset + len(data), nbytes - len(data))
            if not part:
                raise StorageError(
                    f"{self._place(offset + len(data))}: the file ends there",
                    "the file is truncated or the card is failing: picoedge verify checks it",
                )
            data += part
        self._cached += nbytes
        if self._cached > _CACHED_BYTES:
            self._cached = 0
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return np.frombuffer(data, np.uint8)

    def _read_some(self, offset: int, nbytes: int) -> bytes:
        self._at = offset
        try:
            data = os.pread(self._fd, nbytes, offset)
        except OSError as error:
            raise StorageError(
                f"{self._place(offset)}: reading failed: {os.strerror(error.errno or 0)}",
                "check the card or disk and its cable; picoedge verify checks the pack",
            ) from error
        self._reads += 1
        return data

    def _place(self, offset: int) -> str:
        shard = (offset - self._start) // self._shard_bytes
        return f"{self._path}, shard {self._path.stem}/{self._path.stem}.{shard:03d}, byte {offset}"


class UntiedRows(_RowFile):
    """Rows of `row_bytes` from byte `start` on, `shard_rows` per shard."""

    def __init__(
        self, path: Path, start: int, encoding: Encoding, row_bytes: int, shard_rows: int,
        *, stall_s: float = READ_STALL_S,
    ) -> None:  # fmt: skip
        super().__init__(path, start, shard_rows * row_bytes, stall_s)
        self._encoding, self._row_bytes = encoding, row_bytes

    def _read_rows(self, ids: Sequence[int], out: F32) -> None:
        for i, row in enumerate(ids):
            data = self._read(self._start + row * self._row_bytes, self._row_bytes)
            out[i] = self._encoding.floats(data[None])[0]


class TiedRows(_RowFile):
    """Rows of the head: shards of `spec`, `stride` bytes apart from byte `start` on.

    A row is part of a tile of 16 rows: the tile's part of each plane is read, then the row decoded.
    """

    def __init__(
        self, path: Path, start: int, spec: MatrixSpec, stride: int,
        *, stall_s: float = READ_STALL_S,
    ) -> None:  # fmt: skip
        super().__init__(path, start, stride, stall_s)
        self._spec, self._stride = spec, stride
        rows = 1 if spec.format.bits == 32 else TILE_ROWS
        self._tile = MatrixSpec(spec.format, rows, spec.cols, 0, spec.superblock)

    def _read_rows(self, ids: Sequence[int], out: F32) -> None:
        data = np.empty(self._tile.nbytes, np.uint8)
        rows = RowGather(Weights(self._tile, data, self._tile.nbytes, 1))
        for i, row in enumerate(ids):
            shard, within = divmod(row, self._spec.rows)
            tile, lane = divmod(within, self._tile.rows)
            self._read_tile(self._start + shard * self._stride, tile, data)
            rows.gather([lane], out[i : i + 1])

    def _read_tile(self, shard_start: int, tile: int, data: U8) -> None:
        for name, (at, shape, dtype) in self._tile.planes.items():
            nbytes = math.prod(shape) * dtype.itemsize
            place = shard_start + self._spec.planes[name][0] + tile * nbytes
            data[at : at + nbytes] = self._read(place, nbytes)
