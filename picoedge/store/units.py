"""Units: what is held in memory, or streamed through it, as one. A run of shards of one kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from picoedge.store.slices import Slice

if TYPE_CHECKING:
    from picoedge.store.reader import Pack

Kind = Literal["attention", "ffn", "head"]


@dataclass(frozen=True)
class Unit:
    """A run of shards, in one piece of one file. The head counts as the layer after the last."""

    kind: Kind
    layer: int
    shards: range
    file: str
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """First byte of the file behind the unit."""
        return self.offset + self.nbytes

    def shard_at(self, offset: int) -> str:
        """Name in the shard table of the shard that has this byte of the file, or is nearest."""
        each = self.nbytes // len(self.shards)
        index = (min(max(offset, self.offset), self.end - 1) - self.offset) // each
        folder = self.file.removesuffix(".safetensors")
        return f"{folder}/{self.kind}.{self.shards[index]:03d}"


def cut_units(pack: Pack, part: Slice, most: int, *, head: bool = True) -> tuple[Unit, ...]:
    """A slice's units in the order a token uses them; each of at most `most` bytes, or one shard.

    Runs of a kind are cut into units of nearly one size.
    """
    units: list[Unit] = []
    for layer in range(pack.config.num_hidden_layers):
        units += _cut(pack, "attention", layer, part.attention, most)
        units += _cut(pack, "ffn", layer, part.ffn, most)
    if head:
        last = pack.config.num_hidden_layers
        units += _cut(pack, "head", last, range(pack.n_head_shards), most)
    return tuple(units)


def _cut(pack: Pack, kind: Kind, layer: int, shards: range, most: int) -> Iterator[Unit]:
    if not shards:
        return
    whole = pack.unit(kind, layer, shards)
    each = max(1, most // (whole.nbytes // len(shards)))
    count = -(-len(shards) // each)
    for i in range(count):
        first, last = (len(shards) * k // count for k in (i, i + 1))
        yield pack.unit(kind, layer, shards[first:last])
