"""Rows picked out of a run of shards: how an embedding is looked up in a tied head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from picoedge.kernels.arrays import F32, Array
from picoedge.kernels.blocks import TILE_ROWS, MatrixSpec, Quants, Weights, dequantize, join_quants


class RowGather:
    """Gathers f32 rows; the views of the planes are made once, so a look-up copies only rows."""

    def __init__(self, weights: Weights) -> None:
        self._spec = weights.spec
        self._planes = {name: _plane_of_run(weights, name) for name in weights.spec.planes}

    def gather(self, ids: Sequence[int], out: F32) -> None:
        """out[i] = row ids[i] of the run (rows stacked over shards), out f32 [>= n, cols]."""
        rows = np.asarray(ids, dtype=np.intp)
        shard, row = np.divmod(rows, self._spec.rows)
        if self._spec.format.bits == 32:
            out[: len(rows)] = self._planes["values"][shard, row]
            return
        tile, lane = np.divmod(row, TILE_ROWS)
        picked = {
            name: np.ascontiguousarray(plane[shard, tile, ..., lane, :])
            if name in ("quants", "highs")
            else plane[shard, tile, ..., lane].reshape(len(rows), -1)
            for name, plane in self._planes.items()
        }
        spec = MatrixSpec(self._spec.format, len(rows), self._spec.cols, 0, self._spec.superblock)
        out[: len(rows)] = dequantize(spec, _row_quants(spec, picked))


def _plane_of_run(weights: Weights, name: str) -> Array:
    """One plane of every shard as one array, no copy: [count, T, B, v, 16, 4] for quants and
    highs, [count, T, B or S, 1 or 2, 16] for the others, [count, rows, cols] for f32 values."""
    at, shape, dtype = weights.spec.planes[name]
    if name in ("quants", "highs"):
        shape, dtype = (*shape[:2], math.prod(shape[2:-2]), *shape[-2:]), np.dtype(np.uint8)
    elif name != "values":
        shape = (*shape[:2], math.prod(shape[2:-1]), TILE_ROWS)
    inner = np.ndarray(shape, dtype, weights.data, at).strides
    strides = (weights.stride, *inner)
    return np.ndarray((weights.count, *shape), dtype, weights.data, at, strides)


def _row_quants(spec: MatrixSpec, picked: dict[str, Array]) -> Quants:
    q = join_quants(spec.format, picked["quants"], picked.get("highs"))  # n, B, 8, 4
    rest = {k: v for k, v in picked.items() if k not in ("quants", "highs")}
    return Quants(q.reshape(spec.rows, spec.cols), **rest)
