"""A pack's tensors by canonical name: rows as f32, or quantized as they are stored."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from picoedge.kernels.arrays import F32
from picoedge.kernels.blocks import SUPERBLOCK_COLS, Quants, RowGather, Weights
from picoedge.store.encodings import RowEmbedding
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.sharding import BIASES, MATRICES
from picoedge.store.shards import LAYER_KINDS, UnitKind
from picoedge.store.sources.tensors import tensor_shapes

ReadRows = Callable[[int, int], F32]
"""Reads rows [first, last), f32 [n, columns]."""

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

    def vector(self, name: str) -> F32:
        """A norm or bias, f32 [n]."""
        if name == "final_norm":
            return self.pack.final_norm
        _, layer, kind = name.split(".")
        found = self.pack.biases(int(layer)) if kind in BIASES else self.pack.norms(int(layer))
        return found[kind]

    def matrix(self, name: str) -> StoredRows:
        """A matrix of a layer, or the head, which is a tied embedding too."""
        if "." not in name:
            return StoredRows(self.pack.head())
        _, layer, kind = name.split(".")
        weights = self.pack.mapped(_KINDS[kind], int(layer))[kind]
        return StoredRows(weights, is_cut=kind in _COLUMN_CUT)

    def reader(self, name: str) -> ReadRows:
        """A reader of a tensor's rows, dequantized."""
        if self.shapes[name][1] == 1:
            return lambda first, last: self.vector(name)[first:last].reshape(-1, 1)
        table = self.pack.embedding if name == "embed" else None
        if isinstance(table, RowEmbedding):
            return lambda first, last: self._embedded(table, first, last)
        return self.matrix(name).floats

    def _embedded(self, table: RowEmbedding, first: int, last: int) -> F32:
        out = np.empty((last - first, self.shapes["embed"][1]), np.float32)
        table.gather(range(first, last), out)
        return out

    def blocks(self, name: str) -> Iterator[F32]:
        """The tensor's rows in order, a few megabytes at a time: f32 [n, columns]."""
        (rows, cols), read = self.shapes[name], self.reader(name)
        step = rows if cols == 1 else max(1, _BLOCK_BYTES // (4 * cols))
        for first in range(0, rows, step):
            yield read(first, min(rows, first + step))


class StoredRows:
    """Rows of a matrix in a pack; where shards cut it by columns, all shards' side by side."""

    def __init__(self, weights: Weights, *, is_cut: bool = False) -> None:
        self.spec, self.nbytes = weights.spec, weights.data.nbytes
        shards = [
            replace(weights, data=weights.data[i * weights.stride :], count=1)
            for i in range(weights.count)
        ]
        self._parts = [RowGather(part) for part in (shards if is_cut else [weights])]

    def floats(self, first: int, last: int) -> F32:
        """Rows [first, last), f32 [n, columns of all shards]."""
        ids, cols = range(first, last), self.spec.cols
        out = np.empty((len(ids), cols * len(self._parts)), np.float32)
        if len(self._parts) == 1:
            self._parts[0].gather(ids, out)
            return out
        rows = np.empty((len(ids), cols), np.float32)
        for i, part in enumerate(self._parts):
            part.gather(ids, rows)
            out[:, i * cols : (i + 1) * cols] = rows
        return out

    def quants(self, first: int, last: int) -> Quants:
        """Rows [first, last) as they are stored."""
        parts = [part.quants(range(first, last)) for part in self._parts]
        if len(parts) == 1:
            return parts[0]
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=1)
            for name in ("q", "scales", "mins", "superscales", "supermins")
            if getattr(parts[0], name) is not None
        }
        for name in ("superscales", "supermins"):  # narrower shards have a copy each
            if name in joined:
                joined[name] = joined[name][:, :: SUPERBLOCK_COLS // self.spec.superblock]
        return Quants(**joined)


def copy_text(pack: Pack, folder: Path) -> None:
    """Copy the pack's files of tokenizer and chat template. Raises OSError."""
    for item in pack.items():
        if item.is_text:
            shutil.copyfile(pack.path / item.file, folder / item.file)
