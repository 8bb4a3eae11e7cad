"""Planes of a span of shards as strided views: one array for all shards, nothing copied."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS, MatrixSpec, Weights

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
