"""A pack with an adapter's matrices added to its own, as a source for the packer.

Matrices without an adapter are copied as they are. Others are dequantized, B A is added, and they
are quantized anew: in formats with superblocks, which nothing is quantized in, in the format of as
many bits without. What that costs is counted on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from picoedge.kernels.arrays import F32, U8
from picoedge.kernels.blocks import (
    BLOCK_COLS,
    FORMATS,
    MatrixSpec,
    Quants,
    dequantize,
)
from picoedge.store.encodings import ENCODINGS, Encoding, RowEmbedding
from picoedge.store.pack.pack_tensors import PackTensors, StoredRows, copy_text
from picoedge.store.pack.packer import OnWritten, pack_source
from picoedge.store.pack.quantize import FORMAT_OF_BITS, quantize
from picoedge.store.pack.reader import Pack
from picoedge.store.sources.tensors import ModelSource, SourceTensor

if TYPE_CHECKING:
    from picoedge.store.sources.adapter_matrices import LowRankMatrix

_WITHOUT_SUPERBLOCKS = {"q4k": "q4m", "q5k": "q5m", "q6k": "q6"}


@dataclass
class Powers:
    """Sums of squares over the matrices of a name: merged weights, what was added, the error."""

    weights: float = 0.0
    added: float = 0.0
    error: float = 0.0

    @property
    def relative_added(self) -> float:
        """RMS of what the adapter adds, relative to that of the merged weights."""
        return float(np.sqrt(self.added / self.weights)) if self.weights else 0.0

    @property
    def relative_error(self) -> float:
        """RMS of what quantizing changed, relative to that of the merged weights."""
        return float(np.sqrt(self.error / self.weights)) if self.weights else 0.0


MergeCost = dict[str, Powers]
"""by the matrix's name: q, k, v, o, gate, up, down"""


def merge_adapter(
    pack: Pack,
    matrices: Mapping[tuple[int, str], LowRankMatrix],
    out: Path,
    *,
    bits: int | None = None,
    progress: OnWritten | None = None,
) -> MergeCost:
    """Write the pack `out`, atomically: `pack` with these matrices added; what it cost by name.

    `bits` None: each matrix keeps its bits. Raises as `pack_source` does.
    """
    source = MergedSource(pack, matrices, bits)
    # Without `bits` floats stay floats, and each other matrix says its own format.
    pack_source(
        source, out, bits=bits or 32, progress=progress,
        write_text=lambda _, folder: copy_text(pack, folder),
    )  # fmt: skip
    return source.cost


class MergedSource(ModelSource):
    """A whole pack and an adapter for it."""

    kind = "picoedge merge"

    def __init__(
        self,
        pack: Pack,
        matrices: Mapping[tuple[int, str], LowRankMatrix],
        bits: int | None,
    ) -> None:
        self._tensors = PackTensors(pack)
        self.path, self.config, self.name = pack.path, pack.config, pack.name
        self.metadata: dict[str, Any] = {}
        self.sampling, self.fingerprint = dict(pack.sampling), pack.identity[:32]
        self.tensor_bytes = pack.nbytes
        self.cost: MergeCost = {}
        self._matrices = matrices
        self._format = FORMAT_OF_BITS.get(bits) if bits else None
        self._shapes = self._tensors.shapes

    def tensor(self, name: str) -> SourceTensor:
        """See `ModelSource.tensor`; `cost` grows as merged matrices are read."""
        shape, path = self._shapes[name], self.path
        kind = name.rpartition(".")[2]
        if shape[1] == 1:
            vector = self._tensors.vector(name)
            place = (shape[0],), ENCODINGS["F32"], path, 0, vector.nbytes
            return VectorTensor(name, *place, values=vector)
        if name == "embed" and isinstance(table := self._tensors.pack.embedding, RowEmbedding):
            rows = table.rows[: shape[0]]
            return RowTensor(name, shape, table.encoding, path, 0, rows.nbytes, table=rows)
        layer = int(name.split(".")[1]) if "." in name else 0
        added = self._matrices.get((layer, kind)) if "." in name else None
        stored = self._tensors.matrix(name)
        cost = self.cost.setdefault(kind, Powers()) if added is not None else Powers()
        encoding = self._encoding(stored.spec, is_merged=added is not None)
        return PackedMatrix(
            name, shape, encoding, path, 0, stored.nbytes, stored=stored, update=added, cost=cost
        )  # fmt: skip

    def _encoding(self, spec: MatrixSpec, *, is_merged: bool) -> Encoding:
        """An encoding whose quants the packer takes as they are."""
        own = spec.format.name
        if own == "f32" or self._format == "f32":
            return ENCODINGS["F32"]
        new = self._format or (_WITHOUT_SUPERBLOCKS.get(own, own) if is_merged else own)
        return Encoding(f"packed {new}", BLOCK_COLS, 0, new)


@dataclass(frozen=True)
class VectorTensor(SourceTensor):
    """Norms and biases."""

    values: F32 = field(default_factory=lambda: np.empty(0, np.float32))

    def floats(self, first: int, last: int) -> F32:
        """See `SourceTensor.floats`."""
        return self.values[first:last]


@dataclass(frozen=True)
class RowTensor(SourceTensor):
    """An embedding apart from the head, u8 [rows, row bytes] in its encoding."""

    table: U8 = field(default_factory=lambda: np.empty((0, 0), np.uint8))

    def raw(self, first: int, last: int) -> U8:
        """See `SourceTensor.raw`."""
        return self.table[first:last]


@dataclass(frozen=True)
class PackedMatrix(SourceTensor):
    """A matrix of the pack, to which B A of `update` is added, if there is one."""

    stored: StoredRows | None = None
    update: LowRankMatrix | None = None
    cost: Powers = field(default_factory=Powers)

    def floats(self, first: int, last: int) -> F32:
        """See `SourceTensor.floats`."""
        assert self.stored is not None
        values = self.stored.floats(first, last)
        if self.update is not None:
            added = self.update.b[first:last] @ self.update.a
            values += added
            self.cost.added += _power(added)
            self.cost.weights += _power(values)
        self._refuse_nonfinite(values)
        return values

    def quants(self, first: int, last: int) -> Quants:
        """See `SourceTensor.quants`: as stored where nothing changes, else quantized anew."""
        assert self.stored is not None
        own, new = self.stored.spec.format, FORMATS[self.encoding.format]
        if self.update is None and own.name == new.name:
            return self.stored.quants(first, last)
        values = self.floats(first, last)
        parts = quantize(values, new, self.name)
        if self.update is not None:
            back = dequantize(MatrixSpec(new, *values.shape), parts)
            self.cost.error += _power(back - values)
        return parts


def _power(values: F32) -> float:
    return float(np.square(values, dtype=np.float64).sum())
