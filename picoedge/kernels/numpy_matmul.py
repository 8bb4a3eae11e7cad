"""Products of quantized and f32 matrices with NumPy.

Activations are quantized to int8 in blocks of 32 and block products are summed as integers:
in f32, which holds every such sum exactly (32 * 127 * 127 < 2^24), so that BLAS can do it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import BLOCK_COLS, MatrixSpec, Quants, Weights, unpack_planes

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Activations:
    """Rows of activations, as they are and in int8 blocks of 32 (held in f32).

    `plain` [n, C]; `quants` [n, B, 32] whole numbers -127..127, `scales` [n, B].
    """

    plain: F32
    quants: F32
    scales: F32

    def columns(self, start: int, stop: int) -> Activations:
        """The same rows, columns start .. stop-1 (whole blocks, unless only `plain` is used)."""
        b0, b1 = start // BLOCK_COLS, stop // BLOCK_COLS
        return Activations(
            self.plain[:, start:stop], self.quants[:, b0:b1], self.scales[:, b0:b1]
        )


def quantize(x: F32) -> Activations:
    """Quantize x [n, C] per block: scale amax / 127, rounded half to even.

    Columns past the last whole block stay out of the blocks: only f32 matrices have them.
    """
    blocks = x.shape[1] // BLOCK_COLS
    cut = x[:, : blocks * BLOCK_COLS].reshape(len(x), blocks, BLOCK_COLS)
    amax = np.abs(cut).max(axis=2, initial=0.0)
    inverse = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 0)
    return Activations(x, np.rint(cut * inverse[:, :, None]), amax / np.float32(127))


def multiply(weights: Weights, shard: int, x: Activations) -> F32:
    """Partial of one shard: f32 [n, rows] = x [n, cols] times its rows."""
    spec, data = weights.spec, weights.shard(shard)
    if spec.format.bits == 32:
        values: F32 = spec.plane(data, "values").view(np.float32)
        return x.plain @ values.T
    return _multiply_blocks(spec, unpack_planes(spec, data), x)


def _multiply_blocks(spec: MatrixSpec, parts: Quants, x: Activations) -> F32:
    fmt, n = spec.format, len(x.plain)
    signed = parts.q.view(np.int8) if fmt.bits == 8 else parts.q
    q = signed.astype(np.float32) - np.float32(fmt.offset)  # [R, C]
    scales = parts.scales.astype(np.float32).T[:, :, None]  # [runs, R, 1]; a run has one scale
    runs = len(scales)
    xq = x.quants.reshape(n, runs, -1)  # [n, runs, 32 or 16]
    xs = np.repeat(x.scales, runs // x.scales.shape[1], axis=1).T[:, None, :]  # [runs, 1, n]
    isum = q.reshape(spec.rows, runs, -1).transpose(1, 0, 2) @ xq.transpose(1, 2, 0)
    acc = scales * (isum * xs)  # [runs, R, n]
    if parts.superscales is not None:
        acc = acc.reshape(spec.cols // spec.superblock, -1, spec.rows, n).sum(axis=1)
        acc *= parts.superscales.astype(np.float32).T[:, :, None]
    out = acc.sum(axis=0)  # [R, n]
    if parts.mins is not None:
        out += _minimums(spec, parts) @ (x.scales * x.quants.sum(axis=2)).T
    return out.T


def _minimums(spec: MatrixSpec, parts: Quants) -> F32:
    assert parts.mins is not None
    mins: F32 = parts.mins.astype(np.float32)  # [R, B]
    if parts.supermins is not None:
        span = spec.superblock // BLOCK_COLS
        mins = -mins * np.repeat(parts.supermins.astype(np.float32), span, axis=1)
    return mins
