"""Planes of a span of shards: as strided views, and as f32 for products with many tokens.

A view is one array for all shards; nothing is copied. A band of rows at a time becomes f32, in
scratch. Its columns are in the order [4, B, 8]: element 4v + j of block b is at (j, b, v), the
order in which shifts and masks unpack a u32 of the planes. `rounded_columns` gives activations in
it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS, MatrixSpec, Weights
from picoedge.kernels.reference.threads import Scratch

_F32_OF_F16 = np.float32(2.0**112)  # 2^(127 - 15): the difference of the exponents' biases


@dataclass(frozen=True, eq=False)
class Planes:
    """Views of quantized weights. T tiles of 16 rows, B blocks of 32 columns, S superblocks.

    `words` u16 (q8: u32) [count, T, B*128]; `highs` u16 [count, T, B*32 or B*64] or None;
    `scales` [p, count, T, B, 16], p: scale (q6k: of each half), then minimum if
    the format has one; `supers` [p or 1, count, T, S, 16] or None, their superscales.
    f16 values are viewed as i16, which `widen` takes.
    """

    spec: MatrixSpec
    count: int
    tiles: int
    blocks: int
    words: Array
    highs: Array | None
    scales: Array
    supers: Array | None

    @classmethod
    def of(cls, weights: Weights) -> Planes:
        """Views of `weights`, which must be quantized."""
        spec = weights.spec
        t, b = -(-spec.rows // TILE_ROWS), spec.cols // BLOCK_COLS
        fmt = spec.format
        highs = None
        if "highs" in spec.planes:
            highs = weights.plane("highs", (t, (32 if fmt.bits == 5 else 64) * b), "<u2")
        if fmt.name == "q6k":
            scales = weights.plane("scales").transpose(3, 0, 1, 2, 4)
        else:
            scales = _parts(weights, "scales", "mins")
        supers = _parts(weights, "superscales", "supermins") if fmt.superblocks else None
        words = weights.plane("quants", (t, b * 128), "<u4" if fmt.bits == 8 else "<u2")
        return cls(spec, weights.count, t, b, words, highs, scales, supers)

    @property
    def tile_bytes(self) -> int:
        """Bytes of words in one tile of one shard."""
        return self.blocks * 128 * self.words.itemsize

    @property
    def weights(self) -> int:
        """Weights in all shards."""
        return self.count * self.spec.rows * self.spec.cols

    def cut(self, shards: slice, tiles: slice, *, by_columns: bool) -> Planes:
        """Some tiles of some shards; with `by_columns` [count, T, ..] becomes [T, count, ..]."""

        def of(plane: Array, axis: int) -> Array:
            part = plane[(slice(None),) * axis + (shards, tiles)]
            return part.swapaxes(axis, axis + 1) if by_columns else part

        return replace(
            self,
            count=shards.stop - shards.start,
            tiles=tiles.stop - tiles.start,
            words=of(self.words, 0),
            highs=None if self.highs is None else of(self.highs, 0),
            scales=of(self.scales, 1),
            supers=None if self.supers is None else of(self.supers, 1),
        )


def _parts(weights: Weights, first: str, second: str) -> Array:
    """Two planes of one shape (or the first alone): [2 or 1, count, T, .., 16]."""
    at, _, dtype = weights.spec.planes[first]
    kind = np.dtype("<i2") if dtype.kind == "f" else dtype
    one = weights.plane(first, dtype=kind)
    if second not in weights.spec.planes:
        return one[None]
    apart = weights.spec.planes[second][0] - at
    return np.ndarray((2, *one.shape), kind, weights.data.data, at, (apart, *one.strides))


def widen(halves: Array, out: F32) -> F32:
    """out = `halves` (f16 viewed as i16) as f32, 3 operations in place of NumPy's slow cast.

    Infinities become 65536.
    """
    np.copyto(out.view(np.int32), halves)
    return halves_to_f32(out)


def halves_to_f32(out: F32) -> F32:
    """The second half of `widen`, in place: `out` holds the i16 values as i32."""
    bits = out.view(np.int32)
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, -0x70002000, out=bits)  # the copies of the sign below bit 31
    return np.multiply(out, _F32_OF_F16, out=out)


def band(planes: Planes, shards: slice, tiles: slice, scratch: Scratch) -> F32:
    """Weights of these tiles as f32 [cols, shards * tiles * 16], valid until the next band."""
    words = planes.words[shards, tiles]
    c, t = words.shape[:2]
    b, fmt = planes.blocks, planes.spec.format
    out: F32 = scratch.take("band", (4, b, 8, c * t * TILE_ROWS), np.float32)
    scales = _scales(planes, shards, tiles, scratch)
    if fmt.bits == 8:
        _bytes(words.view(np.int32).reshape(c, t, b, 8, TILE_ROWS), out, scratch)
    else:
        quants = words.view(np.uint32).reshape(c, t, b, 4, TILE_ROWS)
        highs = None
        if planes.highs is not None:
            highs = planes.highs[shards, tiles].view(np.uint32).reshape(c, t, b, -1, TILE_ROWS)
        _nibbles(quants, highs, fmt.offset, out, scratch)
    if fmt.name == "q6k":
        halves = out.reshape(4, b, 2, 4, -1)
        np.multiply(halves, scales.transpose(1, 0, 2)[:, :, None], out=halves)
    else:
        np.multiply(out, scales[0][:, None], out=out)
    if fmt.has_min:
        np.add(out, scales[1][:, None], out=out)
    return out.reshape(b * BLOCK_COLS, -1)


def _nibbles(quants: Array, highs: Array | None, offset: int, out: F32, scratch: Scratch) -> None:
    """quants u32 [c, t, B, 4, 16], highs u32 [c, t, B, 1 or 2, 16] -> quants less offset in out."""
    c, t, b = quants.shape[:3]
    part = scratch.take("part", quants.shape, np.uint32)
    high = scratch.take("high", quants.shape, np.uint32)
    for byte in range(4):
        into = out[byte].reshape(b, 2, 4, c, t, TILE_ROWS)
        for nibble in range(2):
            np.right_shift(quants, np.uint32(8 * byte + 4 * nibble), out=part)
            np.bitwise_and(part, np.uint32(15), out=part)
            if highs is not None:
                _high_bits(highs, byte, nibble, high)
                np.bitwise_or(part, high, out=part)
            signed = part.view(np.int32)
            if offset:
                np.subtract(signed, offset, out=signed)
            into[:, nibble] = signed.transpose(2, 3, 0, 1, 4)


def _high_bits(highs: Array, byte: int, nibble: int, out: Array) -> None:
    """Bits from 4 on of elements 16 nibble + 4v + byte, v = 0 .. 3: u32 [c, t, B, 4, 16]."""
    v = np.arange(4, dtype=np.uint32)[:, None]
    if highs.shape[3] == 1:
        np.right_shift(highs, 8 * byte + 4 * nibble + v, out=out)
        np.bitwise_and(out, np.uint32(1), out=out)
    else:
        np.right_shift(highs[:, :, :, nibble, None], 8 * byte + 2 * v, out=out)
        np.bitwise_and(out, np.uint32(3), out=out)
    np.left_shift(out, np.uint32(4), out=out)


def _bytes(quants: Array, out: F32, scratch: Scratch) -> None:
    """quants i32 [c, t, B, 8, 16] of four signed bytes each -> whole numbers in out."""
    c, t, b = quants.shape[:3]
    part = scratch.take("part", quants.shape, np.int32)
    for byte in range(4):
        np.left_shift(quants, 24 - 8 * byte, out=part)
        np.right_shift(part, 24, out=part)
        out[byte].reshape(b, 8, c, t, TILE_ROWS)[...] = part.transpose(2, 3, 0, 1, 4)


def _scales(planes: Planes, shards: slice, tiles: slice, scratch: Scratch) -> F32:
    """Scale (q6k: of both halves) and minimum of each block and row: f32 [p, B, rows]."""
    stored = planes.scales[:, shards, tiles]
    p, c, t, b, _ = stored.shape
    wide: F32 = scratch.take("scales", stored.shape, np.float32)
    if planes.supers is None:
        widen(stored, wide)
    else:
        np.copyto(wide, stored)
        supers = planes.supers[:, shards, tiles]
        factors: F32 = scratch.take("supers", supers.shape, np.float32)
        widen(supers, factors)
        np.negative(factors[1:], out=factors[1:])  # minimums are subtracted
        apart = wide.reshape(p, c, t, factors.shape[3], -1, TILE_ROWS)
        np.multiply(apart, factors[..., None, :], out=apart)
    out: F32 = scratch.take("band_scales", (p, b, c, t, TILE_ROWS), np.float32)
    out[...] = wide.transpose(0, 3, 1, 2, 4)
    return out.reshape(p, b, -1)
