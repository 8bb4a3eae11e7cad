"""Writing and reading a `KvCache` in the reference's order: rows [kv_heads, positions, d]."""

from __future__ import annotations

import numpy as np

from picoedge.kernels.api import KvCache
from picoedge.kernels.arrays import F16, F32, I8, Array
from picoedge.kernels.blocks import BLOCK_COLS
from picoedge.kernels.reference.planes import widen
from picoedge.kernels.reference.threads import Scratch

_TOP = np.float32(127)
_LARGEST = np.float32(65504)  # of an f16


def append(cache: KvCache, position: int, keys: F32, values: F32) -> None:
    """Store keys and values, each [n, kv_heads, d], at position .. position+n-1."""
    span = slice(position, position + len(keys))
    for rows, stored, scales in (
        (keys.transpose(1, 0, 2), cache.keys, cache.key_scales),
        (values.transpose(1, 0, 2), cache.values, cache.value_scales),
    ):
        if scales is not None:
            stored[:, span], scales[:, span] = quantize_rows(rows)
        else:
            with np.errstate(over="ignore"):  # past 65504 an f16 is infinite, and is read as 65536
                stored[:, span] = rows


def read(stored: Array, scales: F16 | None, where: tuple[slice, slice], scratch: Scratch) -> F32:
    """Rows `where` (heads, positions) of `stored` keys or values, as f32.

    A view of f32 rows, or a copy in scratch, valid until the next read.
    """
    stored = stored[where]
    if stored.dtype == np.float32:
        return stored
    out: F32 = scratch.take("wide", stored.shape, np.float32)
    if scales is None:
        return widen(stored.view(np.int16), out)
    halves = scales[where].view(np.int16)
    steps: F32 = widen(halves, scratch.take("scales", halves.shape, np.float32))
    np.copyto(out, stored)
    whole = stored.shape[2] // BLOCK_COLS
    blocks = out[:, :, : whole * BLOCK_COLS].reshape(*out.shape[:2], whole, BLOCK_COLS)
    np.multiply(blocks, steps[:, :, :whole, None], out=blocks)  # a view
    rest = out[:, :, whole * BLOCK_COLS :]
    if rest.shape[2]:
        np.multiply(rest, steps[:, :, whole:], out=rest)
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
