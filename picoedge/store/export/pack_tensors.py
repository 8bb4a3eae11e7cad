"""A pack's tensors by canonical name, dequantized, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from picoedge.kernels.arrays import F32
from picoedge.kernels.blocks import RowGather, Weights
from picoedge.store.encodings import RowEmbedding
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.sharding import BIASES, MATRICES
from picoedge.store.shards import LAYER_KINDS, UnitKind
from picoedge.store.sources.tensors import tensor_shapes

_BLOCK_BYTES = 4 << 20  # of f32 rows at a time
_COLUMN_CUT = ("o", "down")
_KINDS: dict[str, UnitKind] = {name: kind for kind in LAYER_KINDS for name in MATRICES[kind]}


class PackTensors:
    """The tensors of a whole pack, by the names of `store.sources.tensors`.

    `shapes`: (rows, columns) of each; a vector is (n, 1). Raises ModelError where the pack holds
    only a part of the model.
    """

    def __init__(self, pack: Pack) -> None:
        pack.check_held(pack.all_shards, embed=True)
        self.pack, self.shapes = pack, tensor_shapes(pack.config)

    @property
    def is_exact(self) -> bool:
        """Whether all matrices are in f32: no value of them was rounded."""
        config = self.pack.config
        specs = [
            spec
            for kind in LAYER_KINDS
            for i in range(config.num_hidden_layers)
            for spec in self.pack.shard(kind, i).matrices.values()
        ]
        specs += self.pack.shard("head", config.num_hidden_layers).matrices.values()
        return all(spec.format.bits == 32 for spec in specs)

    def blocks(self, name: str) -> Iterator[F32]:
        """The tensor's rows in order, a few megabytes at a time: f32 [n, columns]."""
        rows, cols = self.shapes[name]
        if cols == 1:
            yield self._vector(name).reshape(-1, 1)
            return
        gather = _Columns(self._parts(name))
        step = max(1, _BLOCK_BYTES // (4 * cols))
        for first in range(0, rows, step):
            out = np.empty((min(step, rows - first), cols), np.float32)
            gather.rows(first, out)
            yield out

    def _vector(self, name: str) -> F32:
        if name == "final_norm":
            return self.pack.final_norm
        _, layer, kind = name.split(".")
        found = self.pack.biases(int(layer)) if kind in BIASES else self.pack.norms(int(layer))
        return found[kind]

    def _parts(self, name: str) -> list[RowGather | RowEmbedding]:
        """Parts of a matrix that lie side by side."""
        if name == "head":
            return [RowGather(self.pack.head())]
        if name == "embed":
            table = self.pack.embedding
            return [RowGather(table) if isinstance(table, Weights) else table]
        _, layer, kind = name.split(".")
        whole = self.pack.mapped(_KINDS[kind], int(layer))[kind]
        if kind not in _COLUMN_CUT:
            return [RowGather(whole)]
        shards = [
            replace(whole, data=whole.data[i * whole.stride :], count=1) for i in range(whole.count)
        ]
        return [RowGather(shard) for shard in shards]


class _Columns:
    """Matrices side by side, read by rows."""

    def __init__(self, parts: list[RowGather | RowEmbedding]) -> None:
        self._parts = parts

    def rows(self, first: int, out: F32) -> None:
        """out [n, columns] = rows from `first` on."""
        ids = range(first, first + len(out))
        for part, columns in zip(self._parts, np.split(out, len(self._parts), axis=1), strict=True):
            into = np.empty(columns.shape, np.float32)
            part.gather(ids, into)
            columns[...] = into
