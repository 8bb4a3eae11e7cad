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


class FloatRows:
    """Rows [kv_heads, positions, d] in f32 or f16."""

    def __init__(self, size: tuple[int, int, int], bits: int) -> None:
        self.rows: Array = np.zeros(size, np.float32 if bits == 32 else np.float16)

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return self.rows.nbytes

    def write(self, position: int, rows: F32) -> None:
        """Store rows [n, kv_heads, d] at position .. position+n-1."""
        with np.errstate(over="ignore"):  # past 65504 an f16 is infinite, and is read as 65536
            self.rows[:, position : position + len(rows)] = rows.transpose(1, 0, 2)

    def read(self, heads: slice, positions: slice, scratch: Scratch) -> F32:
        """Rows as f32: a view, or (f16) a copy in scratch, valid until the next read."""
        stored = self.rows[heads, positions]
        if stored.dtype == np.float32:
            return stored
        return widen(stored.view(np.int16), scratch.take("wide", stored.shape, np.float32))


class Int8Rows:
    """Rows [kv_heads, positions, d] in int8 and an f16 scale for each block of 32 dimensions."""

    def __init__(self, size: tuple[int, int, int]) -> None:
        *most, d = size
        self.rows = np.zeros(size, np.int8)
        self.scales = np.zeros((*most, scale_blocks(d)), np.float16)

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return self.rows.nbytes + self.scales.nbytes

    def write(self, position: int, rows: F32) -> None:
        """Store rows [n, kv_heads, d] at position .. position+n-1."""
        span = slice(position, position + len(rows))
        quants, scales = quantize_rows(rows.transpose(1, 0, 2))
        self.rows[:, span], self.scales[:, span] = quants, scales

    def read(self, heads: slice, positions: slice, scratch: Scratch) -> F32:
        """Rows as f32 in scratch, valid until the next read."""
        stored, kept = self.rows[heads, positions], self.scales[heads, positions]
        out: F32 = scratch.take("wide", stored.shape, np.float32)
        scales: F32 = scratch.take("scales", kept.shape, np.float32)
        widen(kept.view(np.int16), scales)
        np.copyto(out, stored)
        whole = stored.shape[2] // BLOCK_COLS
        cut = out[:, :, : whole * BLOCK_COLS].reshape(*out.shape[:2], whole, BLOCK_COLS)  # a view
        np.multiply(cut, scales[:, :, :whole, None], out=cut)
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
        self.keys: FloatRows | Int8Rows = Int8Rows(size) if bits == 8 else FloatRows(size, bits)
        self.values: FloatRows | Int8Rows = Int8Rows(size) if bits == 8 else FloatRows(size, bits)

    @property
    def nbytes(self) -> int:
        """Bytes when full; untouched pages cost nothing yet."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, position: int, keys: F32, values: F32) -> None:
        """Store keys and values, each [n, kv_heads, d], at position .. position+n-1."""
        self.keys.write(position, keys)
        self.values.write(position, values)
