"""One matrix that a pack holds as several: q, k and v; gate and up; columns of shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from picoedge.kernels.arrays import F32
from picoedge.kernels.blocks import RowGather, Weights


@dataclass(frozen=True, eq=False)
class StackedWeights:
    """A matrix [rows, cols]: the shards of its parts below each other.

    `by_columns`: shards of its only part beside each other, as of a summed projection.
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
