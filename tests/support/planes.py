"""The inverse of `pack_planes`, to compare with."""

from __future__ import annotations

import numpy as np

from picoedge.kernels.arrays import U8, Array
from picoedge.kernels.blocks import BLOCK_COLS, TILE_ROWS, MatrixSpec, Quants, join_quants


def unpack_planes(spec: MatrixSpec, shard: U8) -> Quants:
    """The inverse of `pack_planes`: copies, row-major."""
    fmt, t, b = spec.format, -(-spec.rows // TILE_ROWS), spec.cols // BLOCK_COLS
    highs = spec.plane(shard, "highs").view(np.uint8) if "highs" in spec.planes else None
    if highs is not None:
        highs = highs.reshape(t, b, -1, TILE_ROWS, 4)
    q = join_quants(fmt, spec.plane(shard, "quants").view(np.uint8), highs)
    q = q.transpose(0, 3, 1, 2, 4).reshape(t * TILE_ROWS, spec.cols)[: spec.rows]
    rest: dict[str, Array] = {}
    for name in ("scales", "mins", "superscales", "supermins"):
        if name in spec.planes:
            plane = spec.plane(shard, name)
            rows = plane.reshape(t, plane.shape[1], -1, TILE_ROWS).transpose(0, 3, 1, 2)
            rest[name] = rows.reshape(t * TILE_ROWS, -1)[: spec.rows].copy()
    return Quants(np.ascontiguousarray(q), **rest)
