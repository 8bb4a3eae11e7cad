"""A LoRA adapter made ready for a model, or for one slice of it.

A's columns and B's rows follow the slice: B's rows where the base's rows are cut (q k v gate up),
A's columns where its columns are (o down). The other factor is there whole. So boards add, shard by
shard, what one board would have added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from picoedge.errors import ProtocolError
from picoedge.kernels.api import LOW_RANK_STEP, LowRankPart
from picoedge.kernels.arrays import F32
from picoedge.store.adapter_shape import ADAPTED, AdapterShape
from picoedge.store.shards import Slice, UnitKind
from picoedge.store.sources.adapter_matrices import canonical_matrices

if TYPE_CHECKING:
    from picoedge.config import ModelConfig
    from picoedge.store.adapters import Adapter

_COLUMNS_CUT = ("o", "down")


@dataclass(frozen=True)
class Cut:
    """Cut of a model's matrices into shards: `cols` of the intermediate dimension a shard."""

    config: ModelConfig
    cols: int

    def step(self, name: str) -> int:
        """Rows (of o and down: columns) of a matrix in one shard."""
        config = self.config
        if ADAPTED[name] == "ffn":
            return self.cols
        return config.head_dim * (config.heads_per_group if name in ("q", "o") else 1)

    def sizes(self, name: str, part: Slice) -> tuple[int, int]:
        """(inputs, outputs) of a matrix in a slice."""
        own, hidden = self.step(name) * len(part.of(ADAPTED[name])), self.config.hidden_size
        return (own, hidden) if name in _COLUMNS_CUT else (hidden, own)


@dataclass(frozen=True, eq=False)
class Factors:
    """A and B of one matrix, transposed: a f32 [inputs, padded rank], b f32 [rank, outputs]."""

    a: F32
    b: F32


@dataclass(frozen=True, eq=False)
class AdapterSlice:
    """An adapter's matrices by layer and name, as far as `part` of a model needs them."""

    shape: AdapterShape
    cut: Cut
    part: Slice
    factors: Mapping[tuple[int, str], Factors]

    @classmethod
    def prepare(cls, adapter: Adapter, config: ModelConfig, cols: int) -> AdapterSlice:
        """The whole of an adapter. Raises ModelError where it is another model's."""
        matrices = canonical_matrices(adapter, config)
        layers, cut = range(config.num_hidden_layers), Cut(config, cols)
        ranks = {
            name: tuple(len(m.a) if (m := matrices.get((i, name))) else 0 for i in layers)
            for name in ADAPTED
        }
        shape = AdapterShape(adapter.identity, ranks)
        whole = Slice(range(config.num_key_value_heads), range(config.intermediate_size // cols))
        factors = {key: Factors(_padded(m.a.T), _flat(m.b.T)) for key, m in matrices.items()}
        return cls(shape, cut, whole, factors)

    @classmethod
    def from_values(cls, shape: AdapterShape, cut: Cut, part: Slice, values: F32) -> AdapterSlice:
        """The slice whose `values`, f32 [slice_values(...)], another board has sent."""
        factors, at = {}, 0
        for layer, name, rank in shape.matrices():
            inputs, outputs = cut.sizes(name, part)
            a = values[at : (at := at + inputs * rank)]
            b = values[at : (at := at + rank * outputs)]
            a, b = a.reshape(inputs, rank), b.reshape(rank, outputs)
            factors[layer, name] = Factors(_padded(a), b)
        return cls(shape, cut, part, factors)

    def of(self, part: Slice) -> AdapterSlice:
        """A slice of this one."""
        factors = {key: self._part(*key, part) for key in self.factors}
        return replace(self, part=part, factors=factors)

    def _part(self, layer: int, name: str, part: Slice) -> Factors:
        f, step, kind = self.factors[layer, name], self.cut.step(name), ADAPTED[name]
        first, own = self.part.of(kind).start, part.of(kind)
        span = slice((own.start - first) * step, (own.stop - first) * step)
        return Factors(f.a[span], f.b) if name in _COLUMNS_CUT else Factors(f.a, f.b[:, span])

    def values(self) -> F32:
        """All its values, for `from_values` on another board."""
        parts = [np.empty(0, np.float32)]
        for layer, name, rank in self.shape.matrices():
            f = self.factors[layer, name]
            parts += [f.a[:, :rank].reshape(-1), f.b.reshape(-1)]
        return np.concatenate(parts)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its matrices."""
        return sum(f.a.nbytes + f.b.nbytes for f in self.factors.values())

    def project_parts(self, layer: int, kind: UnitKind, shards: range) -> list[LowRankPart]:
        """Parts added to the rows of these shards: q k v, or gate up, stacked."""
        parts, offset = list[LowRankPart](), 0
        for name, of in ADAPTED.items():
            if of != kind or name in _COLUMNS_CUT:
                continue
            step = self.cut.step(name)
            if (f := self.factors.get((layer, name))) and shards:
                first = (shards.start - self.part.of(kind).start) * step
                rows = f.b[:, first : first + step * len(shards)]
                parts.append(LowRankPart(f.a, rows, 0, offset))
            offset += step * len(shards)
        return parts

    def sum_parts(self, layer: int, kind: UnitKind, shards: range) -> list[LowRankPart]:
        """Parts that the columns of each of these shards add to the sums of o, or of down."""
        name = next(name for name in _COLUMNS_CUT if ADAPTED[name] == kind)
        f, step = self.factors.get((layer, name)), self.cut.step(name)
        if f is None:
            return []
        first = self.part.of(kind).start
        return [
            LowRankPart(
                f.a[(i - first) * step : (i + 1 - first) * step], f.b, (i - shards.start) * step, 0
            )
            for i in shards
        ]


def slice_values(shape: AdapterShape, cut: Cut, part: Slice) -> int:
    """Values that a slice of an adapter has, as they are sent.

    Raises ProtocolError where its ranks are no ranks of this model's matrices.
    """
    total = 0
    whole = Slice(range(cut.config.num_key_value_heads), range(cut.config.intermediate_size))
    for name, ranks in shape.ranks.items():
        if len(ranks) != cut.config.num_hidden_layers:
            raise ProtocolError("an adapter of another number of layers than the model's")
        inputs, outputs = cut.sizes(name, part)
        if max(ranks) > max(Cut(cut.config, 1).sizes(name, whole)):  # above the lesser is usual
            raise ProtocolError("an adapter whose rank is above both sides of the model's matrices")
        total += sum(ranks) * (inputs + outputs)
    return total


def _padded(a: F32) -> F32:
    """a [inputs, rank] with zeros up to a multiple of LOW_RANK_STEP."""
    padded = np.zeros((len(a), -(-a.shape[1] // LOW_RANK_STEP) * LOW_RANK_STEP), np.float32)
    padded[:, : a.shape[1]] = a
    return padded


def _flat(b: F32) -> F32:
    return np.ascontiguousarray(b)
