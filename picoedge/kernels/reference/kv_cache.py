"""The reference backend's cache of keys and values of one layer: f32, f16, or int8 with scales."""

from __future__ import annotations

import numpy as np

from picoedge.kernels.api import AttentionShape, padded_positions, scale_blocks
from picoedge.kernels.arrays import F16, F32, I8, Array
from picoedge.kernels.blocks import BLOCK_COLS
from picoedge.kernels.reference.planes import widen
from picoedge.kernels.reference.threads import Scratch

_TOP = np.float32(127)
_LARGEST = np.float32(65504)  # of an f16


class CacheRows:
    """Rows [kv_heads, positions, d] in f32, f16, or int8 with an f16 scale per 32 dimensions."""

    def __init__(self, size: tuple[int, int, int], bits: int) -> None:
        heads, positions, d = size
        self.rows: Array = np.zeros(size, {32: np.float32, 16: np.float16, 8: np.int8}[bits])
        blocks = scale_blocks(d) if bits == 8 else 0
        self.scales = np.zeros((heads, positions, blocks), np.float16)

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return self.rows.nbytes + self.scales.nbytes

    def write(self, position: int, rows: F32) -> None:
        """Store rows [n, kv_heads, d] at position .. position+n-1."""
        span, by_head = slice(position, position + len(rows)), rows.transpose(1, 0, 2)
        if self.rows.dtype == np.int8:
            self.rows[:, span], self.scales[:, span] = quantize_rows(by_head)
            return
        with np.errstate(over="ignore"):  # past 65504 an f16 is infinite, and is read as 65536
            self.rows[:, span] = by_head

    def read(self, heads: slice, positions: slice, scratch: Scratch) -> F32:
        """Rows as f32: a view of f32 rows, or a copy in scratch, valid until the next read."""
        stored = self.rows[heads, positions]
        if stored.dtype == np.float32:
            return stored
        out: F32 = scratch.take("wide", stored.shape, np.float32)
        if stored.dtype == np.float16:
            return widen(stored.view(np.int16), out)
        halves = self.scales[heads, positions]
        scales: F32 = widen(halves.view(np.int16), scratch.take("scales", halves.shape, np.float32))
        np.copyto(out, stored)
        whole = stored.shape[2] // BLOCK_COLS
        blocks = out[:, :, : whole * BLOCK_COLS].reshape(*out.shape[:2], whole, BLOCK_COLS)
        np.multiply(blocks, scales[:, :, :whole, None], out=blocks)  # a view
        rest = out[:, :, whole * BLOCK_COLS :]
        if rest.shape[2]:
            np.multiply(rest, scales[:, :, whole:], out=rest)
        return out


def quantize_rows(rows: F32) -> tuple[I8, F16]:
    """Rows [..., d] as int8 [..., d] and the scales of their blocks, f16(amax / 127) [..., B].

    Values are divided by the scale after its rounding to f16, and rounded half to even; where that
    rounding made the scale much smaller (f16 ends at 65504 and at 2^-24) they are clamped to 127.
    """
    d = rows.shape[-1]
    amax = np.maximum.reduceat(np.abs(rows), np.arange(0, d, BLOCK_COLS), axis=-1)
    scales = np.minimum(amax / _TOP, _LARGEST).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    steps = rows * np.repeat(inverse, BLOCK_COLS, axis=-1)[..., :d]
    quants = np.rint(np.clip(steps, -_TOP, _TOP, out=steps), out=steps)
    return quants.astype(np.int8), scales


class NumpyCache:
    """Keys and values of one layer; see `Kernels.kv_cache`."""

    def __init__(self, n_ctx: int, shape: AttentionShape, bits: int) -> None:
        assert bits in (32, 16, 8), "a cache has 32, 16 or 8 bits"
        size = (shape.kv_heads, padded_positions(n_ctx), shape.head_dim)
        self.keys, self.values = CacheRows(size, bits), CacheRows(size, bits)

    @property
    def nbytes(self) -> int:
        """Bytes when full; untouched pages cost nothing yet."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, position: int, keys: F32, values: F32) -> None:
        """Store keys and values, each [n, kv_heads, d], at position .. position+n-1."""
        self.keys.write(position, keys)
        self.values.write(position, values)
