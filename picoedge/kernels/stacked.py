"""One matrix that a pack holds as several: q, k and v; gate and up; columns of shards."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Iterator, Sequence
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np

from picoedge.kernels.arrays import F32
from picoedge.kernels.blocks import RowGather, Weights

_PLANES = ("quants", "highs", "scales", "mins", "superscales", "supermins")


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
class StackedWeights:
    """A matrix [rows, cols]: the shards of its parts below each other.

    `by_columns`: those of its only part beside each other, as of a summed projection.
    `limit`: rows beyond it are not the matrix's; 0: none (the vocabulary's last shard ends in
    rows of zeros).
    """

    parts: tuple[Weights, ...]
    by_columns: bool = False
    limit: int = 0

    def __post_init__(self) -> None:
        assert self.parts
        assert not (self.by_columns and (len(self.parts) > 1 or self.limit))
        assert len({part.spec.cols for part in self.parts}) == 1

    @property
    def rows(self) -> int:
        """Outputs."""
        if self.by_columns:
            return self.parts[0].spec.rows
        held = sum(part.total_rows for part in self.parts)
        return min(self.limit, held) if self.limit else held

    @property
    def cols(self) -> int:
        """Inputs."""
        return self.parts[0].total_cols if self.by_columns else self.parts[0].spec.cols

    def dense_shards(self) -> Iterator[tuple[slice, slice, F32]]:
        """Rows, columns and values f32 of one shard after another."""
        row = col = 0
        for part in self.parts:
            gather = RowGather(part)
            for shard in range(part.count):
                count = min(part.spec.rows, self.rows - row)
                if count <= 0:
                    return
                values = _rows(gather, shard * part.spec.rows, count, part.spec.cols)
                yield slice(row, row + count), slice(col, col + part.spec.cols), values
                if self.by_columns:
                    col += part.spec.cols
                else:
                    row += part.spec.rows


def _rows(gather: RowGather, first: int, count: int, cols: int) -> F32:
    out = np.empty((count, cols), np.float32)
    gather.gather(range(first, first + count), out)
    return out
