"""A pack in f32 as a source: what was trained here can be packed again in fewer bits."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from picoedge.errors import ModelError
from picoedge.files import storing
from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import RowGather, Weights
from picoedge.store.encodings import ENCODINGS
from picoedge.store.pack.reader import Pack
from picoedge.store.pack.sharding import BIASES, MATRICES
from picoedge.store.shards import LAYER_KINDS
from picoedge.store.sources.tensors import ModelSource, SourceTensor, tensor_shapes

_COLUMN_CUT = ("o", "down")
_NOTHING = re.compile(r"(?!)")
_KINDS = {name: kind for kind in LAYER_KINDS for name in MATRICES[kind]}

ReadRows = Callable[[int, int], F32]


@dataclass(frozen=True)
class _PackTensor(SourceTensor):
    """A tensor whose rows are read from a pack's shards."""

    rows_of: ReadRows | None = None

    def raw(self, first: int, last: int) -> U8:
        """See `SourceTensor.raw`."""
        assert self.rows_of is not None
        values = np.ascontiguousarray(self.rows_of(first, last), "<f4")
        return values.reshape(last - first, -1).view(np.uint8)


class PackSource(ModelSource):
    """A whole pack whose matrices are in f32. Raises ModelError for any other."""

    kind = "pack"

    def __init__(self, pack: Pack) -> None:
        pack.check_held(pack.all_shards, embed=True)
        self._pack, self.name, self.metadata = pack, pack.name, {}
        self.fingerprint, self.sampling = pack.identity, pack.sampling
        for weights in self._matrices():
            if weights.spec.format.bits != 32:
                raise ModelError(f"{pack.path} is already packed", "use it as it is")
        stored = {
            name: _PackTensor(
                name, (rows, cols) if cols > 1 else (rows,), ENCODINGS["F32"], pack.path, 0,
                4 * rows * cols, rows_of=self._reader(name),
            )
            for name, (rows, cols) in tensor_shapes(pack.config).items()
        }  # fmt: skip
        super().__init__(pack.path, pack.config, stored, lambda name: name, _NOTHING)

    def _matrices(self) -> Iterator[Weights]:
        for kind in LAYER_KINDS:
            for layer in range(self._pack.config.num_hidden_layers):
                yield from self._pack.mapped(kind, layer).values()
        yield self._pack.head()

    def _reader(self, name: str) -> ReadRows:
        """Reads rows of a canonical tensor."""
        pack = self._pack
        if name == "final_norm":
            return lambda first, last: pack.final_norm[first:last]
        if name == "head":
            return lambda first, last: _gathered([pack.head()], first, last)
        if name == "embed":
            return self._embedding
        _, number, kind = name.split(".")
        layer = int(number)
        if kind in BIASES:
            return lambda first, last: pack.biases(layer)[kind][first:last]
        if kind not in _KINDS:
            return lambda first, last: pack.norms(layer)[kind][first:last]
        return lambda first, last: _gathered(self._parts(layer, kind), first, last)

    def _embedding(self, first: int, last: int) -> F32:
        table = self._pack.embedding
        if isinstance(table, Weights):
            return _gathered([table], first, last)
        out = np.empty((last - first, self._pack.config.hidden_size), np.float32)
        table.gather(range(first, last), out)
        return out

    def _parts(self, layer: int, kind: str) -> list[Weights]:
        """Matrices that lie side by side."""
        whole = self._pack.mapped(_KINDS[kind], layer)[kind]
        if kind not in _COLUMN_CUT:
            return [whole]
        return [
            replace(whole, data=whole.data[i * whole.stride :], count=1) for i in range(whole.count)
        ]

    def write_text(self, folder: Path) -> None:
        """Copy the text files of the pack. Raises StorageError."""
        with storing(folder):
            for item in self._pack.items():
                if item.is_text:
                    shutil.copyfile(self._pack.path / item.file, folder / item.file)


def _gathered(parts: list[Weights], first: int, last: int) -> F32:
    columns = []
    for weights in parts:
        out = np.empty((last - first, weights.spec.cols), np.float32)
        RowGather(weights).gather(range(first, last), out)
        columns.append(out)
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
