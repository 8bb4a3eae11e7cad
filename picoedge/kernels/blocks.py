"""Quantized blocks: the layout of a weight matrix in bytes, and its values.

A matrix of R rows (outputs) by C columns (inputs) is cut into *tiles* of 16 rows and *blocks*
of 32 columns. Inside a tile the 16 rows are interleaved, four columns at a time, so that one
vector holds the same four columns of many rows: a kernel multiplies it by four broadcast
activations and never reduces across lanes. T = ceil(R/16) tiles, B = C/32 blocks,
S = C/`superblock` superblocks; rows past R in the last tile are zero.

Planes, in this order, each starting at a multiple of 64 bytes (structure of arrays):

    quants      4-6 bits: u8 [T, B, 4, 16, 4]; byte (v, r, j) holds, of row r, the low four bits
                of element 4v+j in its low nibble and of element 16+4v+j in its high nibble
                8 bits:   i8 [T, B, 8, 16, 4]; byte (v, r, j) is element 4v+j of row r
    highs       5 bits:   u8 [T, B, 16, 4]; bit v (0-7) of byte (r, j) is bit 4 of element 4v+j
                6 bits:   u8 [T, B, 2, 16, 4]; bits 2i, 2i+1 of byte (p, r, j) are bits 4, 5 of
                element 4v+j, where v = 4p+i
    scales      f16 [T, B, 16], or u8 [T, B, 16] (k), or i8 [T, B, 2, 16] (q6k: two of 16 columns)
    mins        f16 [T, B, 16], or u8 [T, B, 16] (k)
    superscales f16 [T, S, 16]
    supermins   f16 [T, S, 16]

With q the stored unsigned quant (q8: the signed int8), a weight is

    q4, q5, q6    scale * (q - offset)                       offset 8, 16, 32
    q8            scale * q
    q4m, q5m      scale * q + min
    q4k, q5k      superscale * scale * q - supermin * min
    q6k           superscale * scale[half] * (q - 32)

and `f32` is plain row-major [R, C], no tiles, no blocks.
"""

from __future__ import annotations

import ctypes as ct
import math
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from picoedge.errors import ModelError
from picoedge.kernels.arrays import F32, U8, Array

TILE_ROWS = 16
BLOCK_COLS = 32
PLANE_ALIGN = 64
SUPERBLOCK_COLS = 256
_PLANES = ("quants", "highs", "scales", "mins", "superscales", "supermins")


@dataclass(frozen=True)
class Format:
    """A quantization format: bits of a quant, kind of scale, minimum or not."""

    name: str
    code: int  # its number in native.c
    bits: int
    offset: int
    has_min: bool = False
    superblocks: bool = False  # integer scales under an f16 superscale


FORMATS = {
    f.name: f
    for f in (
        Format("q4", 0, 4, 8),
        Format("q4m", 1, 4, 0, has_min=True),
        Format("q4k", 2, 4, 0, has_min=True, superblocks=True),
        Format("q5", 3, 5, 16),
        Format("q5m", 4, 5, 0, has_min=True),
        Format("q5k", 5, 5, 0, has_min=True, superblocks=True),
        Format("q6", 6, 6, 32),
        Format("q6k", 7, 6, 32, superblocks=True),
        Format("q8", 8, 8, 0),
        Format("f32", 9, 32, 0),
    )
}


_Plane = tuple[int, tuple[int, ...], np.dtype[np.generic]]


@dataclass(frozen=True)
class MatrixSpec:
    """One matrix within a shard: format, shape, and the offsets of its planes.

    `offset` is the byte, from the start of the shard, at which the first plane begins (a
    multiple of 64). `superblock` is the columns one superscale covers; for formats without
    superblocks it is 0. Raises ModelError on a shape the format cannot hold.
    """

    format: Format
    rows: int
    cols: int
    offset: int = 0
    superblock: int = 0
    planes: dict[str, _Plane] = field(init=False, repr=False, compare=False)
    """plane name -> (byte offset from the start of the shard, shape, dtype)"""
    nbytes: int = field(init=False, compare=False)
    """bytes from `offset` to the end of the last plane, rounded up to 64"""

    def __post_init__(self) -> None:
        if self.rows <= 0 or self.cols <= 0 or self.offset % PLANE_ALIGN or self.offset < 0:
            raise ModelError(f"a matrix of {self.rows} x {self.cols} at {self.offset}")
        name = self.format.name
        if self.format.bits < 32 and self.cols % BLOCK_COLS:
            raise ModelError(f"{name} needs columns in 32s, not {self.cols}", "use f32")
        if self.format.superblocks and (
            self.superblock <= 0 or self.superblock % BLOCK_COLS or self.cols % self.superblock
        ):
            raise ModelError(f"superblocks of {self.superblock} do not fit {self.cols} columns")
        planes: dict[str, _Plane] = {}
        at, size = self.offset, (self.rows, self.cols, self.superblock)
        for plane, (shape, dtype) in _plane_shapes(self.format, *size).items():
            planes[plane] = (at, shape, dtype)
            at += -(-math.prod(shape) * dtype.itemsize // PLANE_ALIGN) * PLANE_ALIGN
        object.__setattr__(self, "planes", planes)
        object.__setattr__(self, "nbytes", at - self.offset)

    def plane(self, shard: U8, name: str) -> Array:
        """View of one plane inside `shard` (u8 [shard bytes])."""
        at, shape, dtype = self.planes[name]
        return shard[at : at + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)


def _plane_shapes(
    fmt: Format, rows: int, cols: int, superblock: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """Shape and type of each plane, in their order."""
    if fmt.bits == 32:
        return {"values": ((rows, cols), np.dtype("<f4"))}
    t, b = -(-rows // TILE_ROWS), cols // BLOCK_COLS
    u8, i8, f16 = np.dtype(np.uint8), np.dtype(np.int8), np.dtype("<f2")
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]] = {}
    shapes["quants"] = (t, b, 8 if fmt.bits == 8 else 4, TILE_ROWS, 4), i8 if fmt.bits == 8 else u8
    if fmt.bits in (5, 6):
        pairs = (2,) if fmt.bits == 6 else ()
        shapes["highs"] = (t, b, *pairs, TILE_ROWS, 4), u8
    halves = (2,) if fmt.name == "q6k" else ()
    integer = i8 if fmt.bits == 6 else u8
    scale = integer if fmt.superblocks else f16
    shapes["scales"] = (t, b, *halves, TILE_ROWS), scale
    if fmt.has_min:
        shapes["mins"] = (t, b, TILE_ROWS), scale
    for name in ("superscales", "supermins")[: fmt.superblocks * (1 + fmt.has_min)]:
        shapes[name] = (t, cols // superblock, TILE_ROWS), f16
    return shapes


@dataclass(frozen=True, eq=False)
class Weights:
    """One matrix over a span of shards of one size: shard i starts at byte i * `stride` of `data`.

    A projection stacks the shards' rows; a summed projection stacks their columns.
    """

    spec: MatrixSpec
    data: U8  # [>= (count - 1) * stride + spec.offset + spec.nbytes]
    stride: int
    count: int

    @property
    def total_rows(self) -> int:
        """Rows of all shards, stacked by rows."""
        return self.spec.rows * self.count

    @property
    def total_cols(self) -> int:
        """Columns of all shards, stacked by columns."""
        return self.spec.cols * self.count

    def shard(self, i: int) -> U8:
        """Bytes of shard `i`, from its start to the end of this matrix's planes."""
        end = self.spec.offset + self.spec.nbytes
        return self.data[i * self.stride : i * self.stride + end]

    def plane(
        self, name: str, shape: Sequence[int] = (), dtype: npt.DTypeLike | None = None
    ) -> Array:
        """One plane of all shards as one array, [count, *shape]; nothing is copied.

        `shape`, `dtype`: other ones for the same bytes.
        """
        at, own_shape, own_dtype = self.spec.planes[name]
        shape, dtype = shape or own_shape, own_dtype if dtype is None else np.dtype(dtype)
        strides = (self.stride, *np.ndarray(shape, dtype, self.data.data, at).strides)
        return np.ndarray((self.count, *shape), dtype, self.data.data, at, strides)


class WeightsRecord(ct.Structure):
    """weights_t of weights.h."""

    _fields_ = [
        ("data", c_void_p),
        *((name, c_int64) for name in ("stride", *_PLANES)),
        ("bias", c_void_p),
        *(
            (name, c_int32)
            for name in ("count", "rows", "cols", "format", "superblock", "out_offset")
        ),
    ]


def weight_records(
    weights: Sequence[Weights], biases: Sequence[F32 | None] = ()
) -> ct.Array[WeightsRecord]:
    """A weights_t for each matrix; the rows of all are stacked in the output.

    They hold addresses alone: keep `weights` and `biases` while they are in use.
    """
    records, column = (WeightsRecord * len(weights))(), 0
    for record, w, bias in zip(records, weights, biases or [None] * len(weights), strict=True):
        planes = w.spec.planes
        last = (w.count - 1) * w.stride + w.spec.offset + w.spec.nbytes
        assert w.data.nbytes >= last, "a span of shards ends beyond its bytes"
        assert bias is None or bias.shape == (w.total_rows,)
        for name in _PLANES:
            setattr(record, name, planes[name][0] if name in planes else 0)
        if "values" in planes:
            record.quants = planes["values"][0]
        record.data = w.data.ctypes.data
        record.stride = w.stride
        record.bias = None if bias is None else bias.ctypes.data
        record.count, record.rows, record.cols = w.count, w.spec.rows, w.spec.cols
        record.format, record.superblock = w.spec.format.code, w.spec.superblock
        record.out_offset = column
        column += w.total_rows
    return records


@dataclass(frozen=True, eq=False)
class Quants:
    """Quants and scales of a matrix, row-major: a reader yields them, `pack_planes` lays them out.

    `q` u8 [R, C] (q8: int8 viewed as u8); `scales` and `mins` [R, B] (q6k: scales [R, 2B]);
    `superscales`, `supermins` f16 [R, S].
    """

    q: U8
    scales: Array
    mins: Array | None = None
    superscales: Array | None = None
    supermins: Array | None = None


def pack_planes(spec: MatrixSpec, parts: Quants, shard: U8) -> None:
    """Write `parts` into the planes of `spec` inside `shard` (u8, writable, zeroed)."""
    fmt, t, b = spec.format, -(-spec.rows // TILE_ROWS), spec.cols // BLOCK_COLS
    q = _pad_rows(parts.q, t).reshape(t, TILE_ROWS, b, 8, 4)  # tile, row, block, v, j
    q = q.transpose(0, 2, 3, 1, 4)  # tile, block, v, row, j
    if fmt.bits == 8:
        spec.plane(shard, "quants")[...] = q.view(np.int8)
    else:
        low = q & 15
        spec.plane(shard, "quants")[...] = low[:, :, :4] | (low[:, :, 4:] << 4)
    if fmt.bits == 5:
        bit = (q >> 4) << np.arange(8, dtype=np.uint8)[:, None, None]
        spec.plane(shard, "highs")[...] = np.bitwise_or.reduce(bit, axis=2)
    if fmt.bits == 6:
        shift = 2 * np.arange(4, dtype=np.uint8)[:, None, None]
        pair = (q >> 4).reshape(t, b, 2, 4, TILE_ROWS, 4) << shift
        spec.plane(shard, "highs")[...] = np.bitwise_or.reduce(pair, axis=3)
    for name in ("scales", "mins", "superscales", "supermins"):
        values = getattr(parts, name)
        if values is not None:
            plane = spec.plane(shard, name)
            rows = _pad_rows(values, t).reshape(t, TILE_ROWS, plane.shape[1], -1)
            plane[...] = rows.transpose(0, 2, 3, 1).reshape(plane.shape)


def join_quants(fmt: Format, quants: U8, highs: U8 | None) -> U8:
    """Quants u8 [T, B, 8, …] of the planes `quants` (low nibbles, or bytes) and `highs`.

    quants u8 [T, B, 4 (8 bits: 8), …], highs u8 [T, B, 1 (6 bits: 2), …] or None.
    """
    if fmt.bits == 8:
        return quants
    q = np.concatenate([quants & 15, quants >> 4], axis=2)
    if highs is None:
        return q
    width, per_byte = fmt.bits - 4, 8 // (fmt.bits - 4)
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(-1, *(1,) * (quants.ndim - 3))
    high = (highs[:, :, :, None] >> shifts) & (2**width - 1)  # T, B, byte, in byte, …
    assert highs.shape[2] * per_byte == 8
    whole: U8 = q | (high.reshape(q.shape) << 4)
    return whole


def dequantize(spec: MatrixSpec, parts: Quants) -> F32:
    """Weights as f32 [R, C]: the definition that every kernel is tested against."""
    fmt, rows, cols = spec.format, spec.rows, spec.cols
    q = (parts.q.view(np.int8) if fmt.bits == 8 else parts.q).astype(np.float32) - fmt.offset
    scales = parts.scales.astype(np.float32)
    per_block = scales.shape[1]
    out = q.reshape(rows, per_block, -1) * scales[:, :, None]
    if fmt.superblocks:
        assert parts.superscales is not None
        big = out.reshape(rows, cols // spec.superblock, -1)
        out = (big * parts.superscales.astype(np.float32)[:, :, None]).reshape(out.shape)
    if fmt.has_min:
        assert parts.mins is not None
        mins = parts.mins.astype(np.float32)
        if parts.supermins is not None:
            span = spec.superblock // BLOCK_COLS
            mins = -mins * np.repeat(parts.supermins.astype(np.float32), span, axis=1)
        out = out.reshape(rows, -1, BLOCK_COLS) + mins[:, :, None]
    return out.reshape(rows, cols)


class RowGather:
    """Look-up of rows as f32, e.g. the embedding in a tied head.

    The views of the planes are made once, so that `gather` copies nothing but rows.
    """

    def __init__(self, weights: Weights) -> None:
        self._spec = weights.spec
        self._planes = {name: _plane_of_all(weights, name) for name in weights.spec.planes}

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = row ids[i], counted over all shards stacked by rows; out f32 [>= n, cols]."""
        if self._spec.format.bits == 32:
            shard, row = np.divmod(np.asarray(ids, dtype=np.intp), self._spec.rows)
            out[: len(shard)] = self._planes["values"][shard, row]
            return
        spec = MatrixSpec(self._spec.format, len(ids), self._spec.cols, 0, self._spec.superblock)
        out[: len(ids)] = dequantize(spec, self.quants(ids))

    def quants(self, ids: Sequence[int]) -> Quants:
        """Rows `ids` of a quantized matrix as they are stored, row-major."""
        rows = np.asarray(ids, dtype=np.intp)
        shard, row = np.divmod(rows, self._spec.rows)
        tile, lane = np.divmod(row, TILE_ROWS)
        picked = {
            name: np.ascontiguousarray(plane[shard, tile, ..., lane, :])
            if name in ("quants", "highs")
            else plane[shard, tile, ..., lane].reshape(len(rows), -1)
            for name, plane in self._planes.items()
        }
        highs = picked.pop("highs", None)
        q = join_quants(self._spec.format, picked.pop("quants"), highs)  # n, B, 8, 4
        return Quants(q.reshape(len(rows), self._spec.cols), **picked)


def _plane_of_all(weights: Weights, name: str) -> Array:
    """One plane of every shard as one array, no copy: [count, T, B, v, 16, 4] for quants and
    highs, [count, T, B or S, 1 or 2, 16] for the others, [count, rows, cols] for f32 values."""
    _, shape, dtype = weights.spec.planes[name]
    if name in ("quants", "highs"):
        shape, dtype = (*shape[:2], math.prod(shape[2:-2]), *shape[-2:]), np.dtype(np.uint8)
    elif name != "values":
        shape = (*shape[:2], math.prod(shape[2:-1]), TILE_ROWS)
    return weights.plane(name, shape, dtype)


def _pad_rows(values: Array, tiles: int) -> Array:
    missing = tiles * TILE_ROWS - len(values)
    return np.pad(values, ((0, missing), (0, 0))) if missing else values
