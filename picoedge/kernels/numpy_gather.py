"""Rows of a packed matrix as f32: an embedding look-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from picoedge.kernels.blocks import TILE_ROWS, MatrixSpec, Quants, Weights, dequantize

F32 = npt.NDArray[np.float32]


def gather_rows(weights: Weights, ids: Sequence[int], out: F32) -> None:
    """out[i] = row ids[i] of the run of shards, dequantized."""
    spec = weights.spec
    shards, rows = np.divmod(np.asarray(ids, np.int64), spec.rows)
    if spec.format.bits == 32:
        out[: len(rows)] = _plane(weights, "values")[shards, rows]
        return
    some = MatrixSpec(spec.format, len(rows), spec.cols, superblock=spec.superblock)
    out[: len(rows)] = dequantize(some, _quants(weights, shards, *np.divmod(rows, TILE_ROWS)))


def _quants(weights: Weights, shard: Any, tile: Any, row: Any) -> Quants:
    """Row `row` of tile `tile` of shard `shard`, each an index array [n]."""
    bits, n = weights.spec.format.bits, len(row)
    words = _plane(weights, "quants")[shard, tile, :, :, row]  # [n, B, 4 or 8, 4]
    q = words.view(np.uint8)
    if bits < 8:
        q = np.concatenate([q & 15, q >> 4], axis=2)  # [n, B, 8, 4]
    if bits == 5:
        highs = _plane(weights, "highs")[shard, tile, :, row][:, :, None]  # [n, B, 1, 4]
        q |= ((highs >> np.arange(8, dtype=np.uint8)[:, None]) & 1) << 4
    if bits == 6:
        highs = _plane(weights, "highs")[shard, tile, :, :, row]  # [n, B, 2, 4]
        two = (highs[:, :, :, None] >> (2 * np.arange(4, dtype=np.uint8)[:, None])) & 3
        q |= two.reshape(q.shape) << 4
    rest = {
        name: _plane(weights, name)[shard, tile, ..., row].reshape(n, -1)
        for name in ("scales", "mins", "superscales", "supermins")
        if name in weights.spec.planes
    }
    return Quants(q.reshape(n, -1), **rest)


def _plane(weights: Weights, name: str) -> npt.NDArray[Any]:
    """One plane of all shards: [count, *shape]."""
    at, shape, dtype = weights.spec.planes[name]
    one = np.ndarray(shape, dtype, weights.data.data, at)
    return np.ndarray(
        (weights.count, *shape), dtype, weights.data.data, at, (weights.stride, *one.strides)
    )
